// A case with tensors: fresh random inputs, poison wherever nothing may be read or must be written.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "flashmha/plan.h"
#include "tests/cases.h"
#include "tests/seed.h"

namespace flashmha::tests {

using test::test_seed;

// Owns the memory of one call. Windows of larger blocks have NaN borders.
class Memory {
 public:
  explicit Memory(std::uint64_t seed) : random_(seed) {}

  std::mt19937_64& random() { return random_; }
  std::int64_t uniform(std::int64_t low, std::int64_t high);

  // Filled with NaN; `strided` gives a window of a larger, NaN-filled block with an odd offset.
  TensorView poisoned(const Shape& shape, DType dtype, bool strided);
  // Normally distributed times `scale`.
  TensorView normal(const Shape& shape, DType dtype, bool strided, double scale = 1.0);
  TensorView indices(const std::vector<std::int64_t>& values, const Shape& shape);
  // true with the given probability; all false for 0.
  TensorView booleans(const Shape& shape, bool strided, double probability);

  // For every window: fills it with NaN again; true if the block around it never changed.
  bool borders_intact();

 private:
  struct Window {
    TensorView block;
    TensorView view;
  };
  std::mt19937_64 random_;
  std::vector<Tensor> blocks_;
  std::vector<Window> windows_;
};

// Every tensor of a call: f(tensor, is_output).
template <class F>
void for_each_tensor(AttentionCall& call, F f) {
  for (TensorView* input : {&call.q,
                            &call.k,
                            &call.v,
                            &call.sequences.cu_seqlens_q,
                            &call.sequences.cu_seqlens_k,
                            &call.sequences.seqused_q,
                            &call.sequences.seqused_k,
                            &call.sequences.block_table,
                            &call.cache.k,
                            &call.cache.v,
                            &call.cache.cache_seqlens,
                            &call.cache.cache_batch_idx,
                            &call.cache.cache_leftpad,
                            &call.cache.block_table,
                            &call.append.k,
                            &call.append.v,
                            &call.append.rotary.cos,
                            &call.append.rotary.sin,
                            &call.append.rotary.positions,
                            &call.dout,
                            &call.dlse,
                            &call.options.alibi_slopes,
                            &call.options.bias,
                            &call.options.mask,
                            &call.options.sinks}) {
    if (input->defined()) f(*input, false);
  }
  for (TensorView* output :
       {&call.out, &call.lse, &call.dq, &call.dk, &call.dv, &call.dbias, &call.dsinks}) {
    if (output->defined()) f(*output, true);
  }
}

// A call with its memory. The inputs depend on the case and the seed only.
struct Instance {
  Instance(const Case& spec, std::uint64_t seed);

  Case spec;
  Memory inputs;
  Memory outputs;
  AttentionCall call;  // forward or decode; out and lse poisoned
  TensorView dout;     // the gradients that a backward would receive
  TensorView dlse;

  // The call of the backward: out and lse are given, gradients poisoned.
  AttentionCall backward_call(const TensorView& out, const TensorView& lse);
};

// The same call in float64, contiguous, on its own memory: what the specification computes on.
struct Twin {
  explicit Twin(const AttentionCall& original);

  AttentionCall call;
  std::vector<Tensor> memory;
};

}  // namespace flashmha::tests
