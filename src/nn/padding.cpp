// Between padded batches and ragged ones.
#include "flashmha/padding.h"

#include <algorithm>

#include "flashmha/ops.h"
#include "nn/host.h"

namespace flashmha {
namespace {

// Sequences are appended one after another; tokens that are kept are named by their padded row.
class UnpadBuilder {
 public:
  UnpadBuilder(std::int64_t batch, std::int64_t seqlen) {
    data_.batch = batch;
    data_.seqlen = seqlen;
  }

  void keep(std::int64_t padded_row) { indices_.push_back(padded_row); }

  void end_sequence() {
    const auto total = static_cast<std::int32_t>(indices_.size());
    data_.max_seqlen = std::max<std::int64_t>(data_.max_seqlen, total - cu_seqlens_.back());
    cu_seqlens_.push_back(total);
  }

  UnpadData finish() {
    data_.indices = Tensor::from(std::span<const std::int64_t>(indices_),
                                 {static_cast<std::int64_t>(indices_.size())});
    data_.cu_seqlens = int32_tensor(cu_seqlens_);
    return std::move(data_);
  }

 private:
  UnpadData data_;
  std::vector<std::int64_t> indices_;
  std::vector<std::int32_t> cu_seqlens_{0};
};

// [rows, ...] of the flattened first two dimensions.
TensorView flatten_tokens(const char* function, const TensorView& x, const UnpadData& data) {
  check(x.rank() >= 2 && x.size(0) == data.batch && x.size(1) == data.seqlen,
        "[{}] the tensor must begin with the mask's dimensions [{},{}]; got {}", function,
        data.batch, data.seqlen, x);
  Shape flat = x.shape;
  flat[0] = data.batch * data.seqlen;
  for (int dim = 1; dim + 1 < x.rank(); ++dim)
    flat[dim] = x.shape[dim + 1];
  flat[--flat.rank] = 0;
  return x.reshape(flat);
}

// The first `count` elements of a vector, which keep all of it alive.
Tensor first_elements(Tensor vector, std::int64_t count) {
  const TensorView view = vector.view().slice(0, 0, count);
  return Tensor::adopt(view, std::make_shared<Tensor>(std::move(vector)));
}

// On a CPU: nothing may be left out.
void check_bound(const TensorView& mask, const TensorView& unused_mask, const UnpadBound& bound) {
  if (mask.device.type != DeviceType::cpu) return;
  const UnpadData all = get_unpad_data(mask, unused_mask);
  check(all.total() <= bound.total && all.max_seqlen <= bound.max_seqlen,
        "[get_unpad_data] the bound (total {}, max_seqlen {}) must hold; the mask keeps {} tokens, "
        "{} of one row",
        bound.total, bound.max_seqlen, all.total(), all.max_seqlen);
}

}  // namespace

UnpadData get_unpad_data(const TensorView& mask, const TensorView& unused_mask,
                         const std::optional<UnpadBound>& bound) {
  check(mask.rank() == 2, "[get_unpad_data] mask must be [batch,seqlen]; got {}", mask);
  for (const TensorView& view : {mask, unused_mask}) {
    check(!view.defined() || view.dtype == DType::boolean || view.dtype == DType::int32 ||
              view.dtype == DType::int64,
          "[get_unpad_data] masks must be boolean, int32 or int64; got {}", view);
    check(!view.defined() || (view.shape == mask.shape && view.device == mask.device),
          "[get_unpad_data] unused_mask must have the shape of mask and be where it is; got {} and "
          "{}",
          view, mask);
  }
  UnpadData data{.batch = mask.size(0), .seqlen = mask.size(1)};
  const std::int64_t room = bound ? std::min(bound->total, mask.numel()) : mask.numel();
  check(room >= 0 && (!bound || bound->max_seqlen >= 0),
        "[get_unpad_data] a bound must not be negative; got total {} and max_seqlen {}", room,
        bound ? bound->max_seqlen : 0);
  data.indices = Tensor::empty({room}, DType::int64, mask.device);
  data.cu_seqlens = Tensor::empty({data.batch + 1}, DType::int32, mask.device);
  if (unused_mask.defined()) data.seqused = Tensor::empty({data.batch}, DType::int32, mask.device);
  ops::unpad(mask, unused_mask, data.indices, data.cu_seqlens, data.seqused);
  if (bound) {
    data.max_seqlen = std::min(bound->max_seqlen, data.seqlen);
    check_bound(mask, unused_mask, *bound);
    return data;
  }
  const Located host(data.cu_seqlens);
  const auto* starts = host.as<std::int32_t>();
  for (std::int64_t b = 0; b < data.batch; ++b)
    data.max_seqlen = std::max<std::int64_t>(data.max_seqlen, starts[b + 1] - starts[b]);
  data.indices = first_elements(std::move(data.indices), starts[data.batch]);
  return data;
}

UnpadData get_unpad_data_for_concatenated_sequences(const TensorView& lengths) {
  constexpr const char* kName = "get_unpad_data_for_concatenated_sequences";
  const std::vector<std::int64_t> values = host_matrix(kName, "lengths", lengths);
  const std::int64_t batch = lengths.size(0);
  const std::int64_t seqlen = lengths.size(1);
  UnpadBuilder builder(batch, seqlen);
  for (std::int64_t b = 0; b < batch; ++b) {
    std::int64_t position = 0;
    for (std::int64_t i = 0; i < seqlen; ++i) {
      const std::int64_t length = values[static_cast<std::size_t>(b * seqlen + i)];
      check(length >= 0 && position + length <= seqlen,
            "[{}] lengths of row {} must not be negative nor exceed seqlen ({}) in sum; got {} "
            "after {} tokens",
            kName, b, seqlen, length, position);
      if (length == 0) continue;
      for (std::int64_t end = position + length; position < end; ++position) {
        builder.keep(b * seqlen + position);
      }
      builder.end_sequence();
    }
  }
  return builder.finish();
}

Tensor unpad_input(const TensorView& x, const UnpadData& data) {
  const Tensor copied = x.is_contiguous() ? Tensor() : clone(x);
  const TensorView flat = flatten_tokens("unpad_input", copied.defined() ? copied : x, data);
  Shape shape = flat.shape;
  shape[0] = data.total();
  Tensor packed = Tensor::empty(shape, x.dtype, x.device);
  ops::gather_rows(flat, Located(data.indices, x.device), packed);
  return packed;
}

Tensor unpad_input_backward(const TensorView& dout, const UnpadData& data) {
  return pad_input(dout, data);
}

Tensor pad_input(const TensorView& x, const UnpadData& data) {
  check(x.rank() >= 1 && x.rank() < Shape::kMaxRank && x.size(0) == data.total(),
        "[pad_input] x must be [{},...]; got {}", data.total(), x);
  Shape shape = x.shape;
  shape.rank = x.rank() + 1;
  shape[0] = data.batch;
  shape[1] = data.seqlen;
  for (int dim = 2; dim < shape.rank; ++dim)
    shape[dim] = x.shape[dim - 1];
  Tensor padded = Tensor::empty(shape, x.dtype, x.device);
  ops::scatter_rows(x, Located(data.indices, x.device), flatten_tokens("pad_input", padded, data));
  return padded;
}

Tensor pad_input_backward(const TensorView& dout, const UnpadData& data) {
  return unpad_input(dout, data);
}

PackedSequences packed_sequences(const TensorView& position_ids) {
  constexpr const char* kName = "packed_sequences";
  check(position_ids.rank() == 2,
        "[{}] position_ids must be [batch,seqlen]: ids of several axes are not several sequences; "
        "got {}",
        kName, position_ids);
  const std::vector<std::int64_t> ids = host_matrix(kName, "position_ids", position_ids);
  const std::int64_t batch = position_ids.size(0);
  const std::int64_t seqlen = position_ids.size(1);
  std::vector<std::int32_t> cu_seqlens{0};
  std::int64_t max_seqlen = 0;
  const auto end_sequence = [&](std::int64_t token) {
    max_seqlen = std::max<std::int64_t>(max_seqlen, token - cu_seqlens.back());
    cu_seqlens.push_back(static_cast<std::int32_t>(token));
  };
  for (std::int64_t b = 0; b < batch && seqlen > 0; ++b) {
    const auto row = ids.begin() + b * seqlen;
    const std::int64_t first = *std::min_element(row, row + seqlen);
    check(first >= 0, "[{}] position_ids must not be negative; got {} in row {}", kName, first, b);
    check(row[0] == first,
          "[{}] row {} of position_ids must begin with its smallest value ({}); got {}", kName, b,
          first, row[0]);
    for (std::int64_t i = 1; i < seqlen; ++i) {
      check(row[i] == first || row[i] == row[i - 1] + 1,
            "[{}] positions must count up by 1 or start again at {}; got {} after {} at [{},{}]",
            kName, first, row[i], row[i - 1], b, i);
      if (row[i] == first) end_sequence(b * seqlen + i);
    }
    end_sequence((b + 1) * seqlen);
  }
  return {int32_tensor(cu_seqlens), max_seqlen};
}

Tensor packed_positions(const PackedSequences& packed, std::int64_t batch, std::int64_t seqlen) {
  Tensor positions = Tensor::zeros({batch, seqlen}, DType::int32);
  const Located cu_seqlens(packed.cu_seqlens);
  const auto* starts = cu_seqlens.as<std::int32_t>();
  for (std::int64_t s = 0; s + 1 < packed.cu_seqlens.size(0); ++s) {
    check(starts[s + 1] <= batch * seqlen,
          "[packed_positions] packed.cu_seqlens must stay within the {} tokens of the batch; got "
          "{}",
          batch * seqlen, starts[s + 1]);
    for (std::int32_t i = starts[s]; i < starts[s + 1]; ++i) {
      positions.as<std::int32_t>()[i] = i - starts[s];
    }
  }
  return positions;
}

Tensor positions_from_mask(const TensorView& mask, std::int64_t seqlen_q) {
  const std::vector<std::int64_t> used = host_matrix("positions_from_mask", "mask", mask);
  const std::int64_t batch = mask.size(0);
  const std::int64_t seqlen = mask.size(1);
  check(seqlen_q >= 0 && seqlen_q <= seqlen,
        "[positions_from_mask] seqlen_q ({}) must not exceed the mask's length; got {}", seqlen_q,
        mask);
  Tensor positions = Tensor::zeros({batch, seqlen_q}, DType::int32);
  for (std::int64_t b = 0; b < batch; ++b) {
    std::int32_t count = 0;
    for (std::int64_t i = 0; i < seqlen; ++i) {
      if (used[static_cast<std::size_t>(b * seqlen + i)] == 0) continue;
      const std::int64_t query = i - (seqlen - seqlen_q);
      if (query >= 0) positions.as<std::int32_t>()[b * seqlen_q + query] = count;
      ++count;
    }
  }
  return positions;
}

Window window_of_length(std::int64_t length, bool causal) {
  check(length >= 0, "[window_of_length] length ({}) must not be negative", length);
  if (length == 0) return {-1, causal ? 0 : -1};
  return {length - 1, causal ? 0 : length - 1};
}

}  // namespace flashmha
