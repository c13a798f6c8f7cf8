#include "kernel_case.h"

#include <utility>

#include "flashmha/random.h"
#include "measure.h"

namespace flashmha::app {
namespace {

// Random numbers in the first sequence, copied to the others: hundreds of MiB are to be filled, and
// the time of attention does not depend on their values.
Tensor normal(const Shape& shape, DType dtype, std::uint64_t seed) {
  Tensor tensor = Tensor::empty(shape, dtype);
  const TensorView first = tensor.view().slice(0, 0, 1);
  model::fill_normal(first, seed);
  for (std::int64_t row = 1; row < shape[0]; ++row) {
    copy(first, tensor.view().slice(0, row, row + 1));
  }
  return tensor;
}

}  // namespace

double KernelShape::flops() const {
  const double products = pass == Pass::backward ? 10.0 : 4.0;
  const auto rows = static_cast<double>(pass == Pass::decode ? 1 : seq_length);
  const double full = products * rows * static_cast<double>(batch_size * heads) *
                      static_cast<double>(seq_length * head_dim);
  return causal && pass != Pass::decode ? 0.5 * full : full;
}

double KernelShape::kv_bytes() const {
  return 2.0 * static_cast<double>(batch_size * seq_length * kv_heads * head_dim) *
         static_cast<double>(dtype_bytes(dtype));
}

const char* pass_name(Pass pass) {
  switch (pass) {
    case Pass::forward: return "forward";
    case Pass::backward: return "backward";
    case Pass::decode: return "decode";
  }
  return "unknown";
}

KernelCase::KernelCase(const KernelShape& shape) : shape_(shape) {
  const std::int64_t batch = shape.batch_size;
  const std::int64_t seqlen_q = shape.pass == Pass::decode ? 1 : shape.seq_length;
  const Shape q_shape = {batch, seqlen_q, shape.heads, shape.head_dim};
  const Shape kv_shape = {batch, shape.seq_length, shape.kv_heads, shape.head_dim};
  q_ = normal(q_shape, shape.dtype, 1);
  k_ = normal(kv_shape, shape.dtype, 2);
  v_ = normal(kv_shape, shape.dtype, 3);
  out_ = Tensor::empty(q_shape, shape.dtype);
  lse_ = Tensor::empty({batch, shape.heads, seqlen_q}, DType::float32);
  call_ = {
      .q = q_, .k = k_, .v = v_, .out = out_, .lse = lse_, .options = {.causal = shape.causal}};
  if (shape.pass == Pass::decode) {
    cache_seqlens_ = Tensor::empty({batch}, DType::int32);
    fill(cache_seqlens_, static_cast<double>(shape.seq_length));
    call_.k = call_.v = {};
    call_.cache = {.k = k_, .v = v_, .cache_seqlens = cache_seqlens_};
  }
  if (shape.pass == Pass::backward) {
    AttentionResult forward = flash_attn_func(q_, k_, v_, call_.options);
    out_ = std::move(forward.out);
    lse_ = std::move(forward.lse);
    dout_ = normal(q_shape, shape.dtype, 4);
    dq_ = Tensor::empty(q_shape, shape.dtype);
    dk_ = Tensor::empty(kv_shape, shape.dtype);
    dv_ = Tensor::empty(kv_shape, shape.dtype);
    call_.out = out_;
    call_.lse = lse_;
    call_.dout = dout_;
    call_.dq = dq_;
    call_.dk = dk_;
    call_.dv = dv_;
  }
}

KernelCase::Prepared& KernelCase::prepared(int threads) {
  for (Prepared& candidate : prepared_) {
    if (candidate.threads == threads) return candidate;
  }
  set_num_threads(threads);
  const Plan plan = make_plan(call_);
  const auto bytes = static_cast<std::int64_t>(plan.workspace_bytes);
  prepared_.push_back(
      {.threads = threads, .plan = plan, .workspace = Tensor::empty({bytes}, DType::boolean)});
  return prepared_.back();
}

void KernelCase::run_flash(int threads) {
  const Prepared& ready = prepared(threads);
  set_num_threads(threads);
  auto* bytes = static_cast<std::byte*>(ready.workspace.view().data);
  run(ready.plan, call_, {bytes, ready.plan.workspace_bytes});
}

void KernelCase::run_plain(int threads) {
  set_num_threads(threads);
  if (shape_.pass != Pass::backward) {
    nn::plain_attention(q_, k_, v_, call_.options);
    return;
  }
  if (!plain_forward_.out.defined())
    plain_forward_ = nn::plain_attention(q_, k_, v_, call_.options);
  nn::plain_attention_backward(dout_, q_, k_, v_, plain_forward_, call_.options);
}

std::size_t KernelCase::flash_extra_bytes() const {
  std::size_t bytes = out_.view().bytes() + lse_.view().bytes();
  for (const Tensor* gradient : {&dq_, &dk_, &dv_}) {
    if (gradient->defined()) bytes += gradient->view().bytes();
  }
  return bytes + (prepared_.empty() ? 0 : prepared_.back().plan.workspace_bytes);
}

std::size_t KernelCase::plain_extra_bytes() {
  plain_forward_ = {};
  return extra_memory_bytes([&] { run_plain(num_threads()); });
}

}  // namespace flashmha::app
