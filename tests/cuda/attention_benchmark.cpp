// Times attention on a GPU over the grid that bench/peers.py compares:
//
//   attention_benchmark [milliseconds of one measurement]
//
// batch x sequence = 16384, num_heads x head_dim = 2048, bfloat16, standard normal inputs. One line
// for each cell, "pass head_dim causal seqlen milliseconds": the median of five measurements, each
// of calls queued one behind the other until the time has passed. Then one new token against a
// cache, head_dim 128, "decode num_heads_q num_heads_kv batch length milliseconds", replayed from a
// graph.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#include "flashmha/plan.h"

namespace flashmha {
namespace {

constexpr Device kGpu{DeviceType::cuda, 0};
constexpr std::int64_t kRows = 16384;
constexpr std::int64_t kWidth = 2048;

double seconds_of(int count, const std::function<void()>& work) {
  synchronize(kGpu);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < count; ++i)
    work();
  synchronize(kGpu);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median_seconds(double measurement, const std::function<void()>& work) {
  work();
  const double once = seconds_of(3, work) / 3;
  const int count = std::max(3, static_cast<int>(measurement / once));
  std::vector<double> times;
  times.reserve(5);
  for (int i = 0; i < 5; ++i)
    times.push_back(seconds_of(count, work) / count);
  std::sort(times.begin(), times.end());
  return times[2];
}

// Pieces of one long row of random numbers, so that tensors differ and cost little to make.
Tensor random_rows(std::uint64_t seed) {
  std::mt19937 random(static_cast<std::mt19937::result_type>(seed));
  std::normal_distribution<float> normal;
  constexpr std::int64_t kPeriod = (1 << 20) + 1;
  std::vector<float> numbers(kPeriod);
  std::generate(numbers.begin(), numbers.end(), [&] { return normal(random); });
  const Tensor host = Tensor::empty({kRows * kWidth}, DType::float32);
  for (std::int64_t i = 0; i < host.numel(); ++i)
    host.as<float>()[i] = numbers[static_cast<std::size_t>(i % kPeriod)];
  const Tensor narrow = cast(host, DType::bfloat16);
  Tensor result = Tensor::empty({kRows * kWidth}, DType::bfloat16, kGpu);
  copy(narrow, result);
  return result;
}

// Twenty calls as one CUDA graph: what a decoding loop launches.
constexpr int kCaptured = 20;

double median_seconds_of_graph(double measurement, const std::function<void(Stream)>& work) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  work({});
  synchronize(kGpu);
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
  for (int i = 0; i < kCaptured; ++i)
    work({stream});
  cudaStreamEndCapture(stream, &graph);
  if (cudaGraphInstantiate(&executable, graph, 0) != cudaSuccess) return 0.0;
  const double seconds = median_seconds(measurement, [&] {
    cudaGraphLaunch(executable, stream);
    synchronize(kGpu, {stream});
  });
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  return seconds / kCaptured;
}

struct Runner {
  Plan plan;
  AttentionCall call;
  Tensor workspace;

  explicit Runner(const AttentionCall& the_call)
      : plan(make_plan(the_call)),
        call(the_call),
        workspace(Tensor::empty({static_cast<std::int64_t>(plan.workspace_bytes) + 1},
                                DType::boolean, kGpu)) {}
  void operator()(Stream stream = {}) const {
    run(plan, call, {static_cast<std::byte*>(workspace.view().data), plan.workspace_bytes}, stream);
  }
};

void measure_cell(std::int64_t head_dim, std::int64_t seqlen, bool causal, double measurement,
                  const std::vector<Tensor>& memory) {
  const Shape shape{kRows / seqlen, seqlen, kWidth / head_dim, head_dim};
  const auto tensor = [&](std::size_t i) {
    return TensorView{memory[i].view().data, DType::bfloat16, kGpu, shape,
                      contiguous_strides(shape)};
  };
  const Tensor lse =
      Tensor::empty({kRows / seqlen, kWidth / head_dim, seqlen}, DType::float32, kGpu);
  AttentionCall call{.q = tensor(0), .k = tensor(1), .v = tensor(2), .out = tensor(3), .lse = lse};
  call.options.causal = causal;
  const auto print = [&](const char* pass, const AttentionCall& timed) {
    const Runner runner(timed);
    const double seconds = median_seconds(measurement, [&] { runner(); });
    fmt::print("{} {} {} {} {:.6f}\n", pass, head_dim, causal ? 1 : 0, seqlen, seconds * 1e3);
    std::fflush(stdout);
  };
  print("forward", call);
  call.dout = tensor(4);
  call.dq = tensor(5);
  call.dk = tensor(6);
  call.dv = tensor(7);
  print("backward", call);
  call.options.deterministic = true;
  print("deterministic", call);
}

struct DecodeCell {
  std::int64_t num_heads_q, num_heads_kv, batch, length;
};

void measure_decode(const DecodeCell& cell, double measurement, const std::vector<Tensor>& memory) {
  constexpr std::int64_t kHeadDim = 128;
  const auto tensor = [&](const Tensor& block, const Shape& shape) {
    return TensorView{block.view().data, DType::bfloat16, kGpu, shape, contiguous_strides(shape)};
  };
  const Shape cache{cell.batch, cell.length, cell.num_heads_kv, kHeadDim};
  const std::int64_t elements = cache[0] * cache[1] * cache[2] * cache[3];
  // The same random rows, as often as it takes.
  const Tensor k = Tensor::empty({elements}, DType::bfloat16, kGpu);
  const Tensor v = Tensor::empty({elements}, DType::bfloat16, kGpu);
  for (std::int64_t at = 0; at < elements; at += kRows * kWidth) {
    const std::int64_t count = std::min(kRows * kWidth, elements - at);
    copy(memory[1].view().slice(0, 0, count), k.view().slice(0, at, at + count));
    copy(memory[2].view().slice(0, 0, count), v.view().slice(0, at, at + count));
  }
  const Shape rows{cell.batch, 1, cell.num_heads_q, kHeadDim};
  const Tensor lse = Tensor::empty({cell.batch, cell.num_heads_q, 1}, DType::float32, kGpu);
  const Tensor lengths = Tensor::empty({cell.batch}, DType::int32, kGpu);
  fill(lengths, static_cast<double>(cell.length));
  AttentionCall call{.q = tensor(memory[0], rows), .out = tensor(memory[3], rows), .lse = lse};
  call.cache.k = tensor(k, cache);
  call.cache.v = tensor(v, cache);
  call.cache.cache_seqlens = lengths;
  call.options.causal = true;
  const Runner runner(call);
  const double seconds =
      median_seconds_of_graph(measurement, [&](Stream stream) { runner(stream); });
  fmt::print("decode {} {} {} {} {:.6f}\n", cell.num_heads_q, cell.num_heads_kv, cell.batch,
             cell.length, seconds * 1e3);
  std::fflush(stdout);
}

void run_grid(double measurement) {
  std::vector<Tensor> memory;
  memory.reserve(8);
  for (std::uint64_t i = 0; i < 8; ++i)
    memory.push_back(random_rows(i));
  for (const std::int64_t head_dim : {64, 128, 256}) {
    for (const bool causal : {false, true}) {
      for (std::int64_t seqlen = 512; seqlen <= kRows; seqlen *= 2)
        measure_cell(head_dim, seqlen, causal, measurement, memory);
    }
  }
  for (const auto& [num_heads_q, num_heads_kv] : {std::pair{32, 32}, {64, 8}, {16, 1}}) {
    for (const auto& [batch, length] :
         {std::pair{1, 1024}, {1, 4096}, {1, 65536}, {8, 8192}, {64, 4096}, {128, 1024}})
      measure_decode({num_heads_q, num_heads_kv, batch, length}, measurement, memory);
  }
}

}  // namespace
}  // namespace flashmha

int main(int argc, char** argv) {
  const double milliseconds = argc > 1 ? std::atof(argv[1]) : 20.0;
  flashmha::run_grid(milliseconds / 1e3);
  return 0;
}
