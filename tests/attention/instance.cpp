#include "tests/attention/instance.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace flashmha::tests {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Lengths of the sequences of a batch.
std::vector<std::int64_t> draw_lengths(Memory& memory, Lengths lengths, std::int64_t batch,
                                       std::int64_t longest) {
  std::vector<std::int64_t> values(static_cast<std::size_t>(batch), longest);
  for (std::size_t b = 0; b < values.size(); ++b) {
    if (lengths == Lengths::random) values[b] = memory.uniform(0, longest);
    if (lengths == Lengths::some_zero) values[b] = b % 2 == 0 ? 0 : memory.uniform(0, longest);
    if (lengths == Lengths::all_zero) values[b] = 0;
  }
  return values;
}

std::vector<std::int64_t> running_sum(const std::vector<std::int64_t>& lengths) {
  std::vector<std::int64_t> ends{0};
  for (const std::int64_t length : lengths)
    ends.push_back(ends.back() + length);
  return ends;
}

// Builds the call piece by piece; all methods read spec and write call.
class Builder {
 public:
  explicit Builder(Instance& instance)
      : c_(instance.spec), call_(instance.call), memory_(instance.inputs), instance_(instance) {}

  void build() {
    switch (c_.layout) {
      case Layout::dense: dense(); break;
      case Layout::ragged:
      case Layout::ragged_paged: ragged(); break;
      case Layout::cache:
      case Layout::cache_paged: cache(); break;
    }
    options();
    outputs();
  }

 private:
  double query_scale() const { return c_.softcap > 0 ? static_cast<double>(c_.softcap) : 1.0; }
  DType extra_dtype() const { return c_.narrow_extras ? c_.dtype : DType::float32; }

  TensorView normal(const Shape& shape, double scale = 1.0) {
    return memory_.normal(shape, c_.dtype, c_.strided, scale);
  }

  void dense() {
    call_.q = normal({c_.batch, c_.seqlen_q, c_.num_heads_q, c_.head_dim}, query_scale());
    call_.k = normal({c_.batch, c_.seqlen_k, c_.num_heads_kv, c_.head_dim});
    call_.v = normal({c_.batch, c_.seqlen_k, c_.num_heads_kv, value_dim(c_)});
  }

  void ragged() {
    const auto lengths_q = draw_lengths(memory_, c_.lengths_q, c_.batch, c_.seqlen_q);
    const auto lengths_k = draw_lengths(memory_, c_.lengths_k, c_.batch, c_.seqlen_k);
    const auto ends_q = running_sum(lengths_q);
    const auto ends_k = running_sum(lengths_k);
    const std::int64_t unowned = c_.strided ? 3 : 0;  // rows behind the last sequence
    call_.sequences.cu_seqlens_q = memory_.indices(ends_q, {c_.batch + 1});
    call_.sequences.cu_seqlens_k = memory_.indices(ends_k, {c_.batch + 1});
    call_.sequences.max_seqlen_q = c_.seqlen_q;
    call_.sequences.max_seqlen_k = c_.seqlen_k;
    call_.q = normal({ends_q.back() + unowned, c_.num_heads_q, c_.head_dim}, query_scale());
    poison_tail(call_.q, ends_q.back(), unowned);
    std::vector<std::int64_t> used_q = lengths_q;
    std::vector<std::int64_t> used_k = lengths_k;
    if (c_.seqused) {
      for (auto& used : used_q)
        used = memory_.uniform(0, used);
      for (auto& used : used_k)
        used = memory_.uniform(0, used);
      call_.sequences.seqused_q = memory_.indices(used_q, {c_.batch});
      call_.sequences.seqused_k = memory_.indices(used_k, {c_.batch});
    }
    poison_unused(call_.q, ends_q, used_q);
    if (is_paged(c_)) {
      call_.sequences.block_table = paged(call_.k, call_.v, lengths_k);
      return;
    }
    call_.k = normal({ends_k.back() + unowned, c_.num_heads_kv, c_.head_dim});
    call_.v = normal({ends_k.back() + unowned, c_.num_heads_kv, value_dim(c_)});
    for (const TensorView& tensor : {call_.k, call_.v}) {
      poison_tail(tensor, ends_k.back(), unowned);
      poison_unused(tensor, ends_k, used_k);
    }
  }

  static void poison_tail(const TensorView& tensor, std::int64_t begin, std::int64_t count) {
    fill(tensor.slice(0, begin, begin + count), kNaN);
  }
  static void poison_unused(const TensorView& tensor, const std::vector<std::int64_t>& ends,
                            const std::vector<std::int64_t>& used) {
    for (std::size_t b = 0; b < used.size(); ++b) {
      fill(tensor.slice(0, ends[b] + used[b], ends[b + 1]), kNaN);
    }
  }

  // Pages in random order for the given lengths; slots that no key occupies are poisoned and table
  // entries that nobody needs are invalid.
  TensorView paged(TensorView& k, TensorView& v, const std::vector<std::int64_t>& lengths) {
    const std::int64_t max_pages = (c_.seqlen_k + c_.page_size - 1) / c_.page_size;
    const std::int64_t num_pages = c_.batch * max_pages + 2;
    k = normal({num_pages, c_.page_size, c_.num_heads_kv, c_.head_dim});
    v = normal({num_pages, c_.page_size, c_.num_heads_kv, value_dim(c_)});
    std::vector<std::int64_t> order(static_cast<std::size_t>(num_pages));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), memory_.random());
    std::vector<std::int64_t> table;
    std::vector<std::int64_t> filled(order.size(), 0);
    for (std::size_t b = 0; b < lengths.size(); ++b) {
      for (std::int64_t page = 0; page < max_pages; ++page) {
        const std::int64_t slots =
            std::clamp<std::int64_t>(lengths[b] - page * c_.page_size, 0, c_.page_size);
        table.push_back(slots > 0 ? order.back() : -7);
        if (slots == 0) continue;
        filled[static_cast<std::size_t>(order.back())] = slots;
        order.pop_back();
      }
    }
    for (std::int64_t page = 0; page < num_pages; ++page) {
      const std::int64_t slots = filled[static_cast<std::size_t>(page)];
      for (const TensorView& tensor : {k, v}) {
        fill(tensor.select(0, page).slice(0, slots, c_.page_size), kNaN);
      }
    }
    return memory_.indices(table, {c_.batch, max_pages});
  }

  void cache() {
    const std::int64_t capacity = c_.seqlen_k;
    const auto filled = draw_lengths(memory_, c_.lengths_k, c_.batch,
                                     std::max<std::int64_t>(0, capacity - c_.seqlen_new));
    std::vector<std::int64_t> total = filled;
    for (auto& length : total)
      length += c_.seqlen_new;
    std::vector<std::int64_t> leftpad(filled.size(), 0);
    if (c_.leftpad) {
      // Now and then everything is padding.
      for (std::size_t b = 0; b < leftpad.size(); ++b)
        leftpad[b] = memory_.uniform(0, filled[b]);
      call_.cache.cache_leftpad = memory_.indices(leftpad, {c_.batch});
    }
    call_.cache.cache_seqlens = memory_.indices(filled, {c_.batch});
    call_.q = normal({c_.batch, c_.seqlen_q, c_.num_heads_q, c_.head_dim}, query_scale());
    if (c_.layout == Layout::cache_paged) {
      call_.cache.block_table = paged(call_.cache.k, call_.cache.v, total);
    } else {
      contiguous_cache(capacity, filled, leftpad);
    }
    if (c_.seqlen_new > 0) {
      call_.append.k = normal({c_.batch, c_.seqlen_new, c_.num_heads_kv, c_.head_dim});
      call_.append.v = normal({c_.batch, c_.seqlen_new, c_.num_heads_kv, value_dim(c_)});
    }
    call_.append.num_splits = c_.num_splits;
    if (c_.rotary_dim > 0) rotary(capacity);
  }

  void contiguous_cache(std::int64_t capacity, const std::vector<std::int64_t>& filled,
                        const std::vector<std::int64_t>& leftpad) {
    const std::int64_t rows = c_.batch_idx ? c_.batch + 2 : c_.batch;
    call_.cache.k = normal({rows, capacity, c_.num_heads_kv, c_.head_dim});
    call_.cache.v = normal({rows, capacity, c_.num_heads_kv, value_dim(c_)});
    std::vector<std::int64_t> row_of(static_cast<std::size_t>(rows));
    std::iota(row_of.begin(), row_of.end(), 0);
    if (c_.batch_idx) {
      std::shuffle(row_of.begin(), row_of.end(), memory_.random());
      const std::vector<std::int64_t> used(row_of.begin(), row_of.begin() + c_.batch);
      call_.cache.cache_batch_idx = memory_.indices(used, {c_.batch});
    }
    for (const TensorView& tensor : {call_.cache.k, call_.cache.v}) {
      for (std::size_t b = 0; b < filled.size(); ++b) {
        const TensorView row = tensor.select(0, row_of[b]);
        fill(row.slice(0, 0, leftpad[b]), kNaN);
        fill(row.slice(0, filled[b], capacity), kNaN);
      }
    }
  }

  void rotary(std::int64_t capacity) {
    const std::int64_t rows = std::max(c_.seqlen_q, c_.seqlen_new);
    const std::int64_t num_positions = capacity + rows + 1;
    const std::int64_t num_pairs = c_.rotary_dim / 2;
    Rotary& rotary = call_.append.rotary;
    rotary.interleaved = c_.rotary_interleaved;
    const Tensor cos = Tensor::empty({num_positions, num_pairs}, DType::float64);
    const Tensor sin = Tensor::empty({num_positions, num_pairs}, DType::float64);
    for (std::int64_t position = 0; position < num_positions; ++position) {
      for (std::int64_t n = 0; n < num_pairs; ++n) {
        const double angle =
            static_cast<double>(position) *
            std::pow(10000.0, -static_cast<double>(n) / static_cast<double>(num_pairs));
        cos.as<double>()[position * num_pairs + n] = std::cos(angle);
        sin.as<double>()[position * num_pairs + n] = std::sin(angle);
      }
    }
    rotary.cos = memory_.poisoned(cos.shape(), extra_dtype(), c_.strided);
    rotary.sin = memory_.poisoned(sin.shape(), extra_dtype(), c_.strided);
    copy(cos, rotary.cos);
    copy(sin, rotary.sin);
    if (!c_.positions) return;
    std::vector<std::int64_t> positions;
    for (std::int64_t i = 0; i < c_.batch * rows; ++i) {
      positions.push_back(memory_.uniform(0, num_positions - 1));
    }
    rotary.positions = memory_.indices(positions, {c_.batch, rows});
  }

  Shape broadcast_shape(unsigned varies) const {
    std::int64_t seqlen_k = c_.seqlen_k;
    if (c_.layout == Layout::cache_paged) {
      seqlen_k = call_.cache.block_table.size(1) * c_.page_size;
    }
    return {(varies & kBatch) != 0 ? c_.batch : 1, (varies & kHead) != 0 ? c_.num_heads_q : 1,
            (varies & kRow) != 0 ? c_.seqlen_q : 1, (varies & kColumn) != 0 ? seqlen_k : 1};
  }

  void options() {
    AttentionOptions& options = call_.options;
    options.causal = c_.causal;
    options.window_left = c_.window_left;
    options.window_right = c_.window_right;
    options.align = c_.align;
    options.softcap = c_.softcap;
    if (c_.softmax_scale > 0) options.softmax_scale = c_.softmax_scale;
    if (c_.dropout > 0) {
      options.dropout = {.p = c_.dropout, .seed = memory_.random()(), .offset = memory_.random()()};
    }
    if (c_.alibi) {
      options.alibi_slopes =
          memory_.normal({c_.batch, c_.num_heads_q}, DType::float32, c_.strided, 0.1);
    }
    if (c_.bias.given) {
      options.bias = memory_.normal(broadcast_shape(c_.bias.varies), extra_dtype(), c_.strided);
    }
    if (c_.mask.given) {
      // A mask that does not vary hides everything: the hardest one.
      const double share = c_.mask.varies == kNowhere ? 0.0 : 0.7;
      options.mask = memory_.booleans(broadcast_shape(c_.mask.varies), c_.strided, share);
    }
    if (c_.sinks) {
      options.sinks = memory_.normal({c_.num_heads_q}, extra_dtype(), c_.strided);
    }
  }

  void outputs() {
    Shape out = call_.q.shape;
    out[out.rank - 1] = value_dim(c_);
    const Shape lse = out.rank == 4 ? Shape{out[0], out[2], out[1]} : Shape{out[1], out[0]};
    const DType lse_dtype = c_.dtype == DType::float64 ? DType::float64 : DType::float32;
    call_.out = instance_.outputs.poisoned(out, c_.dtype, c_.strided);
    call_.lse = instance_.outputs.poisoned(lse, lse_dtype, c_.strided);
    if (!has_backward(c_)) return;
    instance_.dout = normal(out);
    if (c_.dlse) instance_.dlse = memory_.normal(lse, lse_dtype, c_.strided);
  }

  const Case& c_;
  AttentionCall& call_;
  Memory& memory_;
  Instance& instance_;
};

}  // namespace

std::int64_t Memory::uniform(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
}

TensorView Memory::poisoned(const Shape& shape, DType dtype, bool strided) {
  Shape larger = shape;
  if (strided) {
    for (int dim = 0; dim < shape.rank; ++dim)
      larger[dim] += 3;
  }
  Tensor block = Tensor::empty(larger, dtype);
  if (dtype == DType::boolean) {
    std::memset(block.view().data, 1, block.view().bytes());
  } else {
    fill(block, kNaN);
  }
  TensorView view = block;
  if (strided) {
    for (int dim = 0; dim < shape.rank; ++dim)
      view = view.slice(dim, 1, 1 + shape[dim]);
    windows_.push_back({block, view});
  }
  blocks_.push_back(std::move(block));
  return view;
}

TensorView Memory::normal(const Shape& shape, DType dtype, bool strided, double scale) {
  const TensorView view = poisoned(shape, dtype, strided);
  const Tensor values = Tensor::empty(shape, DType::float64);
  std::normal_distribution<double> distribution(0.0, scale);
  for (std::int64_t i = 0; i < values.numel(); ++i)
    values.as<double>()[i] = distribution(random_);
  copy(values, view);
  return view;
}

TensorView Memory::indices(const std::vector<std::int64_t>& values, const Shape& shape) {
  Tensor tensor = Tensor::empty(shape, DType::int32);
  for (std::size_t i = 0; i < values.size(); ++i) {
    tensor.as<std::int32_t>()[i] = static_cast<std::int32_t>(values[i]);
  }
  blocks_.push_back(std::move(tensor));
  return blocks_.back();
}

TensorView Memory::booleans(const Shape& shape, bool strided, double probability) {
  const TensorView view = poisoned(shape, DType::boolean, strided);
  const Tensor values = Tensor::empty(shape, DType::boolean);
  std::bernoulli_distribution distribution(probability);
  for (std::int64_t i = 0; i < values.numel(); ++i)
    values.as<bool>()[i] = distribution(random_);
  copy(values, view);
  return view;
}

bool Memory::borders_intact() {
  const auto is_nan_everywhere = [](const TensorView& block) {
    const Tensor values = cast(block, DType::float64);
    return std::all_of(values.as<double>(), values.as<double>() + values.numel(),
                       [](double value) { return std::isnan(value); });
  };
  for (const Window& window : windows_) {
    if (window.view.dtype == DType::boolean) continue;
    fill(window.view, kNaN);
    if (!is_nan_everywhere(window.block)) return false;
  }
  return true;
}

Instance::Instance(const Case& the_spec, std::uint64_t seed)
    : spec(the_spec), inputs(seed), outputs(seed + 1) {
  Builder(*this).build();
}

AttentionCall Instance::backward_call(const TensorView& out, const TensorView& lse) {
  AttentionCall backward = call;
  backward.out = out;
  backward.lse = lse;
  backward.dout = dout;
  backward.dlse = dlse;
  const auto poisoned_like = [&](const TensorView& tensor) {
    return outputs.poisoned(tensor.shape, tensor.dtype, spec.strided);
  };
  backward.dq = poisoned_like(call.q);
  backward.dk = poisoned_like(call.k);
  backward.dv = poisoned_like(call.v);
  if (call.options.bias.defined()) {
    backward.dbias = outputs.poisoned(call.options.bias.shape, call.lse.dtype, false);
  }
  if (call.options.sinks.defined()) {
    backward.dsinks = outputs.poisoned(call.options.sinks.shape, call.lse.dtype, false);
  }
  return backward;
}

Twin::Twin(const AttentionCall& original) : call(original) {
  for_each_tensor(call, [&](TensorView& tensor, bool /*is_output*/) {
    const bool stays = !is_floating(tensor.dtype) || &tensor == &call.options.alibi_slopes;
    memory.push_back(stays ? clone(tensor) : cast(tensor, DType::float64));
    tensor = memory.back();
  });
}

}  // namespace flashmha::tests
