// Plans inside of CUDA graphs: what allocated, waited or read device memory on the host would fail
// while a stream is captured.
#include <cuda_runtime_api.h>

#include <vector>

#include "flashmha/plan.h"
#include "tests/attention/device_call.h"
#include "tests/attention/instance.h"
#include "tests/compare.h"
#include "tests/cuda/gpu.h"

namespace flashmha::tests {
namespace {

void require(cudaError_t error) {
  ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
}

// A stream of its own, which a capture needs.
struct OwnStream {
  cudaStream_t handle = nullptr;
  OwnStream() { require(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking)); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  ~OwnStream() { cudaStreamDestroy(handle); }
  Stream stream() const { return {handle}; }
};

Tensor to_host(const TensorView& tensor) {
  Tensor host = Tensor::empty(tensor.shape, tensor.dtype);
  copy(tensor, host);
  return host;
}

std::vector<Tensor> outputs_of(AttentionCall call) {
  std::vector<Tensor> outputs;
  for_each_tensor(call, [&](TensorView& tensor, bool is_output) {
    if (is_output) outputs.push_back(to_host(tensor));
  });
  return outputs;
}

// Poisons the outputs that the pass writes.
void poison(AttentionCall call, bool backward) {
  for (const TensorView* output :
       backward ? std::vector{&call.dq, &call.dk, &call.dv} : std::vector{&call.out, &call.lse})
    fill(*output, 7.0);
}

// Direct, and captured and replayed twice: the same bits.
void expect_capturable(const AttentionCall& call, bool backward) {
  const Plan plan = make_plan(call);
  const Tensor workspace =
      Tensor::empty({static_cast<std::int64_t>(plan.workspace_bytes) + 1}, DType::boolean, kGpu);
  const std::span<std::byte> bytes{static_cast<std::byte*>(workspace.view().data),
                                   plan.workspace_bytes};
  poison(call, backward);
  run(plan, call, bytes);
  synchronize(kGpu);
  const std::vector<Tensor> expected = outputs_of(call);

  const OwnStream own;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  require(cudaStreamBeginCapture(own.handle, cudaStreamCaptureModeGlobal));
  run(plan, call, bytes, own.stream());
  require(cudaStreamEndCapture(own.handle, &graph));
  require(cudaGraphInstantiate(&executable, graph, 0));
  for (int replay = 0; replay < 2; ++replay) {
    poison(call, backward);
    fill(workspace, 1.0);
    synchronize(kGpu);
    require(cudaGraphLaunch(executable, own.handle));
    synchronize(kGpu, own.stream());
    const std::vector<Tensor> actual = outputs_of(call);
    for (std::size_t i = 0; i < expected.size(); ++i)
      EXPECT_TRUE(same_bits(actual[i], expected[i])) << "output " << i << " of replay " << replay;
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
}

using DeviceGraph = OnGpu;

std::vector<Case> captured_cases() {
  const Case plain{.dtype = DType::bfloat16, .seqlen_q = 130, .seqlen_k = 200, .causal = true};
  Case options = plain;
  options.bias = {.given = true, .varies = kRow | kColumn};
  options.sinks = true;
  options.dropout = 0.1f;
  Case ragged = plain;
  ragged.layout = Layout::ragged;
  ragged.lengths_q = ragged.lengths_k = Lengths::random;
  Case wide = plain;
  wide.head_dim = 256;
  return {plain, options, ragged, wide};
}

TEST_F(DeviceGraph, ForwardAndBackward) {
  for (const Case& spec : captured_cases()) {
    SCOPED_TRACE(describe(spec));
    Instance instance(spec, test_seed());
    const DeviceCall forward(instance.call, kGpu);
    expect_capturable(forward.call(), false);
    AttentionCall call = instance.backward_call(instance.call.out, instance.call.lse);
    call.options.deterministic = true;
    const Plan plan = make_plan(instance.call);
    const Tensor workspace =
        Tensor::empty({static_cast<std::int64_t>(plan.workspace_bytes) + 1}, DType::boolean);
    run(plan, instance.call,
        {static_cast<std::byte*>(workspace.view().data), plan.workspace_bytes});
    const DeviceCall backward(call, kGpu);
    expect_capturable(backward.call(), true);
  }
}

TEST_F(DeviceGraph, DecodingWithAppendAndRotation) {
  for (const Layout layout : {Layout::cache, Layout::cache_paged}) {
    const Case spec{.layout = layout,
                    .dtype = DType::bfloat16,
                    .seqlen_q = 1,
                    .seqlen_k = 300,
                    .num_heads_kv = 2,
                    .lengths_k = Lengths::random,
                    .causal = true,
                    .seqlen_new = 1,
                    .rotary_dim = 32};
    SCOPED_TRACE(describe(spec));
    const Instance instance(spec, test_seed());
    const DeviceCall call(instance.call, kGpu);
    expect_capturable(call.call(), false);
  }
}

}  // namespace
}  // namespace flashmha::tests
