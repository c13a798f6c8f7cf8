// Properties that hold whatever kernel serves the call: mostly equality of bits.
#include <gtest/gtest.h>

#include <sys/mman.h>

#include <cmath>
#include <vector>

#include "tests/attention/api.h"
#include "tests/compare.h"

namespace flashmha::tests {
namespace {

constexpr DType kStorage[] = {DType::float32, DType::bfloat16, DType::float16};

// A batch with most options switched on, none of which differs between batch rows.
Case busy(DType dtype) {
  return {.dtype = dtype,
          .batch = 3,
          .seqlen_q = 70,
          .seqlen_k = 133,
          .num_heads_q = 4,
          .num_heads_kv = 2,
          .head_dim = 48,
          .causal = true,
          .window_left = 90,
          .softcap = 20.0f,
          .bias = {true, kHead | kRow | kColumn},
          .sinks = true,
          .dlse = true};
}

void expect_same_bits(const Case& spec, const char* what, const TensorView& a,
                      const TensorView& b) {
  EXPECT_TRUE(same_bits(a, b)) << what << " of " << describe(spec);
}

// One row of the batch of a dense call.
AttentionCall row_of(const AttentionCall& call, std::int64_t b) {
  AttentionCall row = call;
  for (TensorView* tensor : {&row.q, &row.k, &row.v})
    *tensor = tensor->slice(0, b, b + 1);
  return row;
}

TEST(C7, a_sequence_alone_gives_the_bits_it_has_in_a_batch) {
  for (const DType dtype : kStorage) {
    const Case spec = busy(dtype);
    const Instance instance(spec, test_seed());
    const AttentionCall& call = instance.call;
    const AttentionResult all = forward(call);
    const AttentionGradients all_gradients = backward(instance, all);
    for (std::int64_t b = 0; b < spec.batch; ++b) {
      const auto one = [&](const Tensor& tensor) { return tensor.view().slice(0, b, b + 1); };
      const AttentionCall row = row_of(call, b);
      const AttentionResult alone = forward(row);
      expect_same_bits(spec, "out", alone.out, one(all.out));
      expect_same_bits(spec, "lse", alone.lse, one(all.lse));
      const AttentionGradients gradients =
          flash_attn_backward(instance.dout.slice(0, b, b + 1), row.q, row.k, row.v, alone,
                              row.options, instance.dlse.slice(0, b, b + 1));
      expect_same_bits(spec, "dq", gradients.dq, one(all_gradients.dq));
      expect_same_bits(spec, "dk", gradients.dk, one(all_gradients.dk));
      expect_same_bits(spec, "dv", gradients.dv, one(all_gradients.dv));
    }
  }
}

// A ragged batch of sequences of different lengths against dense calls of each.
TEST(C7, a_ragged_batch_gives_the_bits_of_its_sequences) {
  for (const DType dtype : kStorage) {
    Case spec = busy(dtype);
    spec.layout = Layout::ragged;
    spec.batch = 5;
    spec.lengths_q = Lengths::random;
    spec.lengths_k = Lengths::some_zero;
    spec.bias = {};
    const Instance instance(spec, test_seed());
    const AttentionCall& call = instance.call;
    const AttentionResult all = forward(call);
    const AttentionGradients all_gradients = backward(instance, all);
    const auto* ends_q = call.sequences.cu_seqlens_q.as<std::int32_t>();
    const auto* ends_k = call.sequences.cu_seqlens_k.as<std::int32_t>();
    for (std::int64_t b = 0; b < spec.batch; ++b) {
      const auto rows = [&](const TensorView& tensor, const std::int32_t* ends) {
        const TensorView slice = tensor.slice(0, ends[b], ends[b + 1]);
        return slice.reshape({1, slice.size(0), slice.size(1), slice.size(2)});
      };
      const auto columns = [&](const TensorView& lse) {
        const Tensor part = clone(lse.slice(1, ends_q[b], ends_q[b + 1]));
        return clone(part.view().reshape({1, part.size(0), part.size(1)}));
      };
      const TensorView q = rows(call.q, ends_q);
      const TensorView k = rows(call.k, ends_k);
      const TensorView v = rows(call.v, ends_k);
      const AttentionResult alone = flash_attn_func(q, k, v, call.options);
      expect_same_bits(spec, "out", alone.out, rows(all.out, ends_q));
      expect_same_bits(spec, "lse", alone.lse, columns(all.lse));
      const AttentionGradients gradients = flash_attn_backward(
          rows(instance.dout, ends_q), q, k, v, alone, call.options, columns(instance.dlse));
      expect_same_bits(spec, "dq", gradients.dq, rows(all_gradients.dq, ends_q));
      expect_same_bits(spec, "dk", gradients.dk, rows(all_gradients.dk, ends_k));
      expect_same_bits(spec, "dv", gradients.dv, rows(all_gradients.dv, ends_k));
    }
  }
}

Case decoding(DType dtype) {
  return {.layout = Layout::cache,
          .dtype = dtype,
          .batch = 3,
          .seqlen_q = 2,
          .seqlen_k = 300,
          .num_heads_q = 6,
          .num_heads_kv = 2,
          .head_dim = 64,
          .lengths_k = Lengths::random,
          .causal = true,
          .num_splits = 1};
}

TEST(C7, a_decoded_sequence_gives_the_same_bits_alone) {
  for (const DType dtype : kStorage) {
    const Case spec = decoding(dtype);
    const Instance instance(spec, test_seed());
    const AttentionResult all = forward(instance.call);
    for (std::int64_t b = 0; b < spec.batch; ++b) {
      AttentionCall row = instance.call;
      row.q = row.q.slice(0, b, b + 1);
      row.cache.k = row.cache.k.slice(0, b, b + 1);
      row.cache.v = row.cache.v.slice(0, b, b + 1);
      row.cache.cache_seqlens = row.cache.cache_seqlens.slice(0, b, b + 1);
      expect_same_bits(spec, "out", forward(row).out, all.out.view().slice(0, b, b + 1));
    }
  }
}

TEST(C7, permuting_the_batch_permutes_the_result) {
  const Case spec = busy(DType::float32);
  const Instance instance(spec, test_seed());
  const AttentionResult all = forward(instance.call);
  AttentionCall reversed = instance.call;
  std::vector<Tensor> memory;
  for (TensorView* tensor : {&reversed.q, &reversed.k, &reversed.v}) {
    Tensor copied = Tensor::empty(tensor->shape, tensor->dtype);
    for (std::int64_t b = 0; b < spec.batch; ++b) {
      copy(tensor->select(0, spec.batch - 1 - b), copied.view().select(0, b));
    }
    memory.push_back(std::move(copied));
    *tensor = memory.back();
  }
  const AttentionResult result = forward(reversed);
  for (std::int64_t b = 0; b < spec.batch; ++b) {
    expect_same_bits(spec, "out", result.out.view().select(0, b),
                     all.out.view().select(0, spec.batch - 1 - b));
  }
}

// Equal up to the order of additions.
void expect_close(const Case& spec, const Tensor& actual, const Tensor& expected) {
  const double unit = spec.dtype == DType::bfloat16  ? 0x1p-7
                      : spec.dtype == DType::float16 ? 0x1p-10
                                                     : 0x1p-20;
  const Comparison comparison = compare("out", actual, expected, unit * max_abs(expected));
  EXPECT_TRUE(comparison.ok) << describe(spec) << "\n" << comparison.message;
}

TEST(B4, splitting_the_keys_changes_nothing_but_rounding) {
  for (const DType dtype : kStorage) {
    Case spec = decoding(dtype);
    const AttentionResult expected = forward(Instance(spec, test_seed()).call);
    for (const int num_splits : {0, 2, 3, 16, 1000}) {
      spec.num_splits = num_splits;
      const AttentionResult result = forward(Instance(spec, test_seed()).call);
      expect_close(spec, result.out, expected.out);
    }
  }
}

// Gathers the pages of every sequence into rows of a contiguous tensor.
Tensor gather_pages(const TensorView& pages, const TensorView& table) {
  const std::int64_t batch = table.size(0);
  const std::int64_t page_size = pages.size(1);
  Tensor rows =
      Tensor::zeros({batch, table.size(1) * page_size, pages.size(2), pages.size(3)}, pages.dtype);
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t n = 0; n < table.size(1); ++n) {
      const std::int64_t page = table.as<std::int32_t>()[b * table.stride(0) + n];
      if (page < 0) continue;
      copy(pages.select(0, page),
           rows.view().select(0, b).slice(0, n * page_size, (n + 1) * page_size));
    }
  }
  return rows;
}

TEST(B5, pages_give_what_a_contiguous_cache_gives) {
  for (const DType dtype : kStorage) {
    for (const std::int64_t page_size : {1, 16, 48, 256}) {
      Case spec = decoding(dtype);
      spec.layout = Layout::cache_paged;
      spec.page_size = page_size;
      const Instance paged(spec, test_seed());
      AttentionCall contiguous = paged.call;
      const Tensor k = gather_pages(paged.call.cache.k, paged.call.cache.block_table);
      const Tensor v = gather_pages(paged.call.cache.v, paged.call.cache.block_table);
      contiguous.cache.k = k;
      contiguous.cache.v = v;
      contiguous.cache.block_table = {};
      expect_close(spec, forward(paged.call).out, forward(contiguous).out);
    }
  }
}

TEST(B4, left_padding_is_a_shift) {
  for (const DType dtype : kStorage) {
    Case spec = decoding(dtype);
    spec.batch = 1;
    spec.lengths_k = Lengths::equal;
    const Instance instance(spec, test_seed());
    const std::int64_t leftpad = 37;
    AttentionCall padded = instance.call;
    Memory memory(0);
    padded.cache.cache_leftpad = memory.indices({leftpad}, {1});
    AttentionCall shifted = instance.call;
    shifted.cache.k = shifted.cache.k.slice(1, leftpad, spec.seqlen_k);
    shifted.cache.v = shifted.cache.v.slice(1, leftpad, spec.seqlen_k);
    shifted.cache.cache_seqlens = memory.indices({spec.seqlen_k - leftpad}, {1});
    expect_same_bits(spec, "out", forward(padded).out, forward(shifted).out);
  }
}

struct Bits {
  AttentionResult result;
  AttentionGradients gradients;
};

Bits run_both(const Instance& instance) {
  Bits bits;
  bits.result = forward(instance.call);
  if (has_backward(instance.spec)) bits.gradients = backward(instance, bits.result);
  return bits;
}

void expect_same(const Case& spec, const Bits& a, const Bits& b) {
  expect_same_bits(spec, "out", a.result.out, b.result.out);
  expect_same_bits(spec, "lse", a.result.lse, b.result.lse);
  if (!has_backward(spec)) return;
  expect_same_bits(spec, "dq", a.gradients.dq, b.gradients.dq);
  expect_same_bits(spec, "dk", a.gradients.dk, b.gradients.dk);
  expect_same_bits(spec, "dv", a.gradients.dv, b.gradients.dv);
  expect_same_bits(spec, "dbias", a.gradients.dbias, b.gradients.dbias);
  expect_same_bits(spec, "dsinks", a.gradients.dsinks, b.gradients.dsinks);
}

TEST(C7, bits_do_not_depend_on_the_number_of_threads) {
  for (const DType dtype : kStorage) {
    for (Case spec : {busy(dtype), decoding(dtype)}) {
      spec.dropout = is_cache(spec) ? 0.0f : 0.17f;
      set_num_threads(1);
      if (is_cache(spec)) spec.bias = {}, spec.sinks = false;
      const Bits expected = run_both(Instance(spec, test_seed()));
      for (const int threads : {2, 3, 7}) {
        set_num_threads(threads);
        expect_same(spec, run_both(Instance(spec, test_seed())), expected);
      }
      set_num_threads(0);
    }
  }
}

TEST(B2, deterministic_over_fifty_repeats) {
  Case spec = busy(DType::float32);
  spec.dropout = 0.17f;
  const Instance instance(spec, test_seed());
  const Bits expected = run_both(instance);
  for (int repeat = 0; repeat < 50; ++repeat)
    expect_same(spec, run_both(instance), expected);
}

// A NaN key reaches exactly the rows that see it.
TEST(B2, a_nan_reaches_only_rows_that_see_it) {
  for (const bool in_value : {false, true}) {
    const Case spec{.batch = 1,
                    .seqlen_q = 150,
                    .seqlen_k = 150,
                    .num_heads_q = 2,
                    .num_heads_kv = 2,
                    .head_dim = 32,
                    .causal = true};
    const Instance instance(spec, test_seed());
    const AttentionCall& call = instance.call;
    const std::int64_t poisoned = 77;
    fill((in_value ? call.v : call.k).select(1, poisoned), NAN);
    const AttentionResult result = forward(call);
    for (std::int64_t i = 0; i < spec.seqlen_q; ++i) {
      const float value = result.out.view().select(1, i).as<float>()[0];
      EXPECT_EQ(std::isnan(value), i >= poisoned) << (in_value ? "v" : "k") << "[" << poisoned
                                                  << "] is NaN; out row " << i << " is " << value;
    }
  }
}

// Elements that lie more than 2^32 apart; the memory between them is never touched.
TEST(B6, offsets_beyond_32_bits) {
  constexpr std::int64_t kFar = (std::int64_t{1} << 32) + 64;
  constexpr std::int64_t kBatch = 2, kSeqlen = 3, kHeads = 1, kHeadDim = 8;
  constexpr std::size_t kBytes = static_cast<std::size_t>(2 * kFar) * sizeof(float);
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) GTEST_SKIP() << "no 34 GB of address space";
  const Instance near({.batch = kBatch,
                       .seqlen_q = kSeqlen,
                       .seqlen_k = kSeqlen,
                       .num_heads_q = kHeads,
                       .num_heads_kv = kHeads,
                       .head_dim = kHeadDim},
                      test_seed());
  const AttentionCall& call = near.call;
  for (const bool far_rows : {false, true}) {
    TensorView k = call.k;
    k.data = memory;
    k.strides = far_rows ? Shape{64, kFar / 2, 32, 1} : Shape{kFar, 64, 32, 1};
    copy(call.k, k);
    EXPECT_TRUE(same_bits(flash_attn_func(call.q, k, call.v).out, forward(call).out));
  }
  munmap(memory, kBytes);
}

}  // namespace
}  // namespace flashmha::tests
