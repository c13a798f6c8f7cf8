#include "bindings.h"

#include <nanobind/stl/optional.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>

#include "array.h"
#include "flashmha/plan.h"

namespace nb = nanobind;
using namespace nb::literals;  // NOLINT(google-build-using-namespace): "q"_a

namespace flashmha::python {
namespace {

// Everything that a call may bring besides its tensors, as Python objects.
struct OptionObjects {
  std::optional<float> softmax_scale;
  bool causal;
  std::int64_t window_left, window_right;
  bool top_left;
  float softcap;
  nb::handle alibi_slopes, bias, mask, sinks;
};

AttentionOptions read_options(CallArrays& arrays, const OptionObjects& objects) {
  AttentionOptions options;
  options.softmax_scale = objects.softmax_scale;
  options.causal = objects.causal;
  options.window_left = objects.window_left;
  options.window_right = objects.window_right;
  options.align = objects.top_left ? MaskAlign::top_left : MaskAlign::bottom_right;
  options.softcap = objects.softcap;
  options.alibi_slopes = arrays.read(objects.alibi_slopes, "alibi_slopes");
  options.bias = arrays.read(objects.bias, "bias");
  options.mask = arrays.read(objects.mask, "mask");
  options.sinks = arrays.read(objects.sinks, "sinks");
  return options;
}

// workspace(bytes, device index), if given, returns an array to work in, from the pool of the
// library whose arrays these are.
void run_without_gil(const AttentionCall& call, CallArrays& arrays, nb::handle workspace) {
  const Stream stream = arrays.stream();
  nb::object memory;
  const auto allocate = [&](std::size_t bytes) {
    const nb::gil_scoped_acquire acquired;
    memory = workspace(bytes, call.q.device.index);
    const TensorView view = arrays.write(memory, "workspace");
    if (view.device != call.q.device || view.bytes() < bytes) {
      throw nb::value_error("the workspace must be on the device of q, and large enough");
    }
    return static_cast<std::byte*>(view.data);
  };
  const nb::gil_scoped_release released;
  workspace.is_none() ? run(call, stream) : run(call, std::ref(allocate), stream);
}

void attend(nb::handle q, nb::handle k, nb::handle v, nb::handle out, nb::handle lse,
            std::optional<float> softmax_scale, bool causal, std::int64_t window_left,
            std::int64_t window_right, bool top_left, float softcap, nb::handle alibi_slopes,
            nb::handle bias, nb::handle mask, nb::handle sinks, float dropout_p, std::uint64_t seed,
            std::uint64_t offset, bool deterministic, nb::handle cu_seqlens_q,
            nb::handle cu_seqlens_k, std::int64_t max_seqlen_q, std::int64_t max_seqlen_k,
            nb::handle seqused_q, nb::handle seqused_k, nb::handle block_table, nb::handle dout,
            nb::handle dlse, nb::handle dq, nb::handle dk, nb::handle dv, nb::handle dbias,
            nb::handle dsinks, nb::handle workspace) {
  const bool backward = !dout.is_none();
  const bool ragged = !cu_seqlens_q.is_none();
  AttentionCall call;
  call.name = backward ? ragged ? "attention_backward (ragged)" : "attention_backward"
              : ragged ? "attention (ragged)"
                       : "attention";
  CallArrays arrays(call.name.data());
  call.q = arrays.read(q, "q");
  call.k = arrays.read(k, "k");
  call.v = arrays.read(v, "v");
  call.out = backward ? arrays.read(out, "out") : arrays.write(out, "out");
  call.lse = backward ? arrays.read(lse, "lse") : arrays.write(lse, "lse");
  call.options = read_options(arrays, {softmax_scale, causal, window_left, window_right, top_left,
                                       softcap, alibi_slopes, bias, mask, sinks});
  call.options.dropout = {dropout_p, seed, offset};
  call.options.deterministic = deterministic;
  if (ragged) {
    call.sequences.cu_seqlens_q = arrays.read(cu_seqlens_q, "cu_seqlens_q");
    call.sequences.cu_seqlens_k = arrays.read(cu_seqlens_k, "cu_seqlens_k");
    call.sequences.max_seqlen_q = max_seqlen_q;
    call.sequences.max_seqlen_k = max_seqlen_k;
    call.sequences.seqused_q = arrays.read(seqused_q, "seqused_q");
    call.sequences.seqused_k = arrays.read(seqused_k, "seqused_k");
    call.sequences.block_table = arrays.read(block_table, "block_table");
  }
  if (backward) {
    call.dout = arrays.read(dout, "dout");
    call.dlse = arrays.read(dlse, "dlse");
    call.dq = arrays.write(dq, "dq");
    call.dk = arrays.write(dk, "dk");
    call.dv = arrays.write(dv, "dv");
    call.dbias = arrays.write(dbias, "dbias");
    call.dsinks = arrays.write(dsinks, "dsinks");
  }
  run_without_gil(call, arrays, workspace);
}

// The call of a small forward pass, where every argument that is looked at costs. False: it is none
// of those that out, an array like q, fits, or an error; nothing was done.
bool attend_quickly(nb::handle q, nb::handle k, nb::handle v, nb::handle out, nb::handle lse,
                    std::optional<float> softmax_scale, bool causal, std::int64_t window_left,
                    std::int64_t window_right, float softcap, nb::handle workspace) {
  AttentionCall call;
  CallArrays arrays(call.name.data());
  call.q = arrays.read(q, "q");
  call.k = arrays.read(k, "k");
  call.v = arrays.read(v, "v");
  if (call.q.rank() != 4 || call.v.rank() != 4 || call.q.size(0) == 0 ||
      call.q.size(-1) != call.v.size(-1) || call.q.dtype == DType::float64) {
    return false;
  }
  call.out = arrays.write(out, "out");
  call.lse = arrays.write(lse, "lse");
  call.options.softmax_scale = softmax_scale;
  call.options.causal = causal;
  call.options.window_left = window_left;
  call.options.window_right = window_right;
  call.options.softcap = softcap;
  run_without_gil(call, arrays, workspace);
  return true;
}

void attend_to_cache(nb::handle q, nb::handle k_cache, nb::handle v_cache, nb::handle out,
                     nb::handle lse, nb::handle k, nb::handle v, nb::handle rotary_cos,
                     nb::handle rotary_sin, bool rotary_interleaved, nb::handle positions,
                     nb::handle cache_seqlens, nb::handle cache_batch_idx, nb::handle cache_leftpad,
                     nb::handle block_table, int num_splits, std::optional<float> softmax_scale,
                     bool causal, std::int64_t window_left, std::int64_t window_right,
                     bool top_left, float softcap, nb::handle alibi_slopes, nb::handle bias,
                     nb::handle mask, nb::handle sinks, nb::handle workspace) {
  AttentionCall call;
  call.name = "attention_with_kvcache";
  CallArrays arrays(call.name.data());
  call.q = arrays.read(q, "q");
  call.out = arrays.write(out, "out");
  call.lse = arrays.write(lse, "lse");
  const bool appends = !k.is_none();
  call.cache = {.k = appends ? arrays.write(k_cache, "k_cache") : arrays.read(k_cache, "k_cache"),
                .v = appends ? arrays.write(v_cache, "v_cache") : arrays.read(v_cache, "v_cache"),
                .cache_seqlens = arrays.read(cache_seqlens, "cache_seqlens"),
                .cache_batch_idx = arrays.read(cache_batch_idx, "cache_batch_idx"),
                .cache_leftpad = arrays.read(cache_leftpad, "cache_leftpad"),
                .block_table = arrays.read(block_table, "block_table")};
  call.append = {.k = arrays.read(k, "k"),
                 .v = arrays.read(v, "v"),
                 .rotary = {.cos = arrays.read(rotary_cos, "rotary_cos"),
                            .sin = arrays.read(rotary_sin, "rotary_sin"),
                            .interleaved = rotary_interleaved,
                            .positions = arrays.read(positions, "positions")},
                 .num_splits = num_splits};
  call.options = read_options(arrays, {softmax_scale, causal, window_left, window_right, top_left,
                                       softcap, alibi_slopes, bias, mask, sinks});
  run_without_gil(call, arrays, workspace);
}

}  // namespace

void bind_attention(nb::module_& module) {
  const auto none = nb::none();
  module.def(
      "attend", &attend, "q"_a, "k"_a, "v"_a, "out"_a, "lse"_a.none(), "softmax_scale"_a = none,
      "causal"_a = false, "window_left"_a = -1, "window_right"_a = -1, "top_left"_a = false,
      "softcap"_a = 0.0f, "alibi_slopes"_a = none, "bias"_a = none, "mask"_a = none,
      "sinks"_a = none, "dropout_p"_a = 0.0f, "seed"_a = 0, "offset"_a = 0,
      "deterministic"_a = false, "cu_seqlens_q"_a = none, "cu_seqlens_k"_a = none,
      "max_seqlen_q"_a = 0, "max_seqlen_k"_a = 0, "seqused_q"_a = none, "seqused_k"_a = none,
      "block_table"_a = none, "dout"_a = none, "dlse"_a = none, "dq"_a = none, "dk"_a = none,
      "dv"_a = none, "dbias"_a = none, "dsinks"_a = none, "workspace"_a = none,
      "AttentionCall of flashmha/plan.h: writes out and, unless it is None, lse; with dout given, "
      "reads them and writes dq, dk, dv and, where given, dbias and dsinks. workspace(bytes, "
      "device index) returns an array to work in; without it the library allocates.");
  module.def(
      "attend_quickly", &attend_quickly, "q"_a, "k"_a, "v"_a, "out"_a, "lse"_a.none(),
      "softmax_scale"_a.none(), "causal"_a, "window_left"_a, "window_right"_a, "softcap"_a,
      "workspace"_a.none(),
      "attend with the options of most calls alone, all given. False, and nothing done: q has "
      "not 4 dimensions, no batch, another head_dim than v, or float64.");
  module.def("attend_to_cache", &attend_to_cache, "q"_a, "k_cache"_a, "v_cache"_a, "out"_a,
             "lse"_a.none(), "k"_a = none, "v"_a = none, "rotary_cos"_a = none,
             "rotary_sin"_a = none, "rotary_interleaved"_a = false, "positions"_a = none,
             "cache_seqlens"_a = none, "cache_batch_idx"_a = none, "cache_leftpad"_a = none,
             "block_table"_a = none, "num_splits"_a = 0, "softmax_scale"_a = none,
             "causal"_a = false, "window_left"_a = -1, "window_right"_a = -1, "top_left"_a = false,
             "softcap"_a = 0.0f, "alibi_slopes"_a = none, "bias"_a = none, "mask"_a = none,
             "sinks"_a = none, "workspace"_a = none,
             "flash_attn_with_kvcache of flashmha/attention.h: writes out and, unless it is None, "
             "lse, and appends k and v to the cache where given.");
}

}  // namespace flashmha::python
