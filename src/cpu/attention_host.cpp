#include "cpu/attention_host.h"

#include <algorithm>
#include <limits>
#include <new>

#include "core/visit.h"

namespace flashmha::cpu {

Storage storage_of(DType dtype) {
  switch (dtype) {
    case DType::bfloat16: return Storage::bfloat16;
    case DType::float16: return Storage::float16;
    default: return Storage::float32;
  }
}

const TensorView& keys_of(const Problem& problem, const AttentionCall& call) {
  return problem.pass == Pass::decode ? call.cache.k : call.k;
}

const TensorView& values_of(const Problem& problem, const AttentionCall& call) {
  return problem.pass == Pass::decode ? call.cache.v : call.v;
}

void fill_spans(const SequenceBand& band, std::int64_t first, std::int64_t count, Span* spans) {
  for (std::int64_t r = 0; r < count; ++r) {
    const KeyRange keys = band.keys(first + r);
    spans[r] = {keys.begin, std::max(keys.begin, keys.end)};
  }
}

void fill_pointers(const Problem& problem, const AttentionCall& call, const TensorView& tensor,
                   const Sequence& sequence, std::int64_t head_kv, KeyRange keys,
                   const void** pointers) {
  for (std::int64_t key = keys.begin; key < keys.end;) {
    const KeyRun run = find_keys(problem, call, tensor, sequence, head_kv, key, keys.end - key);
    for (std::int64_t i = 0; i < run.length; ++i)
      *pointers++ = run.rows.row(i);
    key += run.length;
  }
}

bool has_score_options(const Problem& problem) {
  const Problem::Scores& scores = problem.scores;
  return scores.softcap > 0.0f || scores.dropout_p > 0.0f || scores.alibi || scores.bias ||
         scores.mask;
}

namespace {

PairMap pair_map(const TensorView& tensor, const Sequence& sequence, std::int64_t head_q) {
  const ScoreMap map = score_map(tensor, sequence, head_q);
  return {map.data, storage_of(map.dtype), map.row_stride, map.column_stride};
}

void keep_columns(const void* dropout, std::int64_t row, std::int64_t first, std::int64_t count,
                  float* keep) {
  const auto& rows = *static_cast<const DropoutRows*>(dropout);
  constexpr std::int64_t kBlock = DropoutRows::kColumnsPerBlock;
  for (std::int64_t column = first; column < first + count;) {
    const std::int64_t end = std::min(first + count, (column / kBlock + 1) * kBlock);
    const std::uint32_t bits = rows.keep_bits(row, column / kBlock);
    for (; column < end; ++column)
      *keep++ = static_cast<float>((bits >> (column % kBlock)) & 1u);
  }
}

}  // namespace

ScoreOptions score_options(const Problem& problem, const AttentionCall& call,
                           const Sequence& sequence, std::int64_t head_q, DropoutRows* dropout) {
  const Problem::Scores& scores = problem.scores;
  const SequenceBand band(problem.band, sequence.seqlen_q, sequence.seqlen_k);
  ScoreOptions options{};
  options.softcap = scores.softcap;
  options.alibi_slope = alibi_slope(call, sequence, head_q);
  options.alibi_shift = band.shift;
  if (scores.bias) options.bias = pair_map(call.options.bias, sequence, head_q);
  if (scores.mask) options.mask = pair_map(call.options.mask, sequence, head_q);
  if (scores.dropout_p > 0.0f) {
    options.keep_columns = keep_columns;
    options.dropout = new (dropout)
        DropoutRows(call.options.dropout, sequence.batch * problem.sizes.num_heads_q + head_q);
  }
  return options;
}

float sink_of(const AttentionCall& call, std::int64_t head_q) {
  const TensorView& sinks = call.options.sinks;
  if (!sinks.defined()) return -std::numeric_limits<float>::infinity();
  return static_cast<float>(element_as_double(sinks, head_q * sinks.stride(0)));
}

float dropout_scale(const Problem& problem) {
  return static_cast<float>(1.0 / (1.0 - static_cast<double>(problem.scores.dropout_p)));
}

void rotate_row(const Rotary& rotary, std::int64_t position, float* row) {
  const std::int64_t num_pairs = rotary.cos.size(1);
  const std::int64_t step = rotary.interleaved ? 2 : 1;
  const std::int64_t distance = rotary.interleaved ? 1 : num_pairs;
  visit_floating(rotary.cos.dtype, [&]<class T>(T) {
    const T* cos = static_cast<const T*>(rotary.cos.data) + position * rotary.cos.stride(0);
    visit_floating(rotary.sin.dtype, [&]<class U>(U) {
      const U* sin = static_cast<const U*>(rotary.sin.data) + position * rotary.sin.stride(0);
      for (std::int64_t n = 0; n < num_pairs; ++n) {
        float& first = row[n * step];
        float& second = row[n * step + distance];
        const auto c = static_cast<float>(cos[n]);
        const auto s = static_cast<float>(sin[n]);
        const float rotated = first * c - second * s;
        second = second * c + first * s;
        first = rotated;
      }
    });
  });
}

void load_row(DType dtype, const std::byte* row, std::int64_t count, float* floats) {
  visit_floating(dtype, [&]<class T>(T) {
    const T* elements = reinterpret_cast<const T*>(row);
    for (std::int64_t i = 0; i < count; ++i)
      floats[i] = static_cast<float>(elements[i]);
  });
}

void store_row(DType dtype, const float* floats, std::int64_t count, std::byte* row) {
  visit_floating(dtype, [&]<class T>(T) {
    T* elements = reinterpret_cast<T*>(row);
    for (std::int64_t i = 0; i < count; ++i)
      elements[i] = static_cast<T>(floats[i]);
  });
}

}  // namespace flashmha::cpu
