// Attention as a foreign function of XLA, for jax.jit: arrays by the names that the attribute
// "inputs" gives them, results by those of "outputs".
#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "bindings.h"
#include "flashmha/error.h"
#include "flashmha/plan.h"
#include "xla_ffi.h"

namespace nb = nanobind;

namespace flashmha::python {
namespace {

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorCode::invalid_argument, "[attention] " + message);
}

DType dtype_of(xla::DataType type) {
  switch (type) {
    case xla::DataType::pred: return DType::boolean;
    case xla::DataType::s32: return DType::int32;
    case xla::DataType::s64: return DType::int64;
    case xla::DataType::f16: return DType::float16;
    case xla::DataType::f32: return DType::float32;
    case xla::DataType::f64: return DType::float64;
    case xla::DataType::bf16: return DType::bfloat16;
  }
  refuse("an array has an element type that FlashMHA does not know");
}

TensorView view_of(const xla::Values& values, std::int64_t index, Device device) {
  if (index >= values.size || values.types[index] != xla::kBuffer) refuse("an array is missing");
  const auto& buffer = *static_cast<const xla::Buffer*>(values.values[index]);
  if (buffer.rank < 1 || buffer.rank > Shape::kMaxRank) refuse("an array needs 1 to 5 dimensions");
  const Shape shape(std::span<const std::int64_t>(buffer.dims, std::size_t(buffer.rank)));
  return {buffer.data, dtype_of(buffer.dtype), device, shape, contiguous_strides(shape)};
}

// Attributes by name.
class Numbers {
 public:
  explicit Numbers(const xla::Attributes& attributes) : attributes_(attributes) {}

  std::string_view text(std::string_view name) const {
    const auto& bytes = *static_cast<const xla::Bytes*>(find(name, xla::kString));
    return {bytes.data, bytes.size};
  }
  template <class Number>
  Number get(std::string_view name, xla::DataType type) const {
    const auto& scalar = *static_cast<const xla::Scalar*>(find(name, xla::kScalar));
    if (scalar.dtype != type) refuse("attribute " + std::string(name) + " is of another type");
    return *static_cast<const Number*>(scalar.value);
  }
  std::int64_t integer(std::string_view name) const {
    return get<std::int64_t>(name, xla::DataType::s64);
  }
  float real(std::string_view name) const { return get<float>(name, xla::DataType::f32); }

 private:
  const void* find(std::string_view name, std::int32_t type) const {
    for (std::int64_t i = 0; i < attributes_.size; ++i) {
      const xla::Bytes& found = *attributes_.names[i];
      if (std::string_view(found.data, found.size) == name && attributes_.types[i] == type)
        return attributes_.values[i];
    }
    refuse("attribute " + std::string(name) + " is missing");
  }

  const xla::Attributes& attributes_;
};

// Where an array of a name belongs.
TensorView* member(AttentionCall& call, std::string_view name) {
  AttentionOptions& options = call.options;
  Sequences& sequences = call.sequences;
  using Member = std::pair<std::string_view, TensorView*>;
  const Member members[] = {
      {"q", &call.q},
      {"k", &call.k},
      {"v", &call.v},
      {"out", &call.out},
      {"lse", &call.lse},
      {"dout", &call.dout},
      {"dlse", &call.dlse},
      {"dq", &call.dq},
      {"dk", &call.dk},
      {"dv", &call.dv},
      {"dbias", &call.dbias},
      {"dsinks", &call.dsinks},
      {"alibi_slopes", &options.alibi_slopes},
      {"bias", &options.bias},
      {"mask", &options.mask},
      {"sinks", &options.sinks},
      {"cu_seqlens_q", &sequences.cu_seqlens_q},
      {"cu_seqlens_k", &sequences.cu_seqlens_k},
      {"seqused_q", &sequences.seqused_q},
      {"seqused_k", &sequences.seqused_k},
      {"block_table", &sequences.block_table},
  };
  const auto* found = std::ranges::find(members, name, &Member::first);
  if (found == std::end(members)) refuse("no array is called " + std::string(name));
  return found->second;
}

void assign(AttentionCall& call, std::string_view names, const xla::Values& values, Device device) {
  for (std::int64_t index = 0; !names.empty(); ++index) {
    const std::size_t end = std::min(names.find(','), names.size());
    *member(call, names.substr(0, end)) = view_of(values, index, device);
    names.remove_prefix(std::min(end + 1, names.size()));
  }
}

void attend(const xla::CallFrame& frame, Device device, Stream stream) {
  const Numbers numbers(frame.attributes);
  AttentionCall call;
  assign(call, numbers.text("inputs"), frame.arguments, device);
  assign(call, numbers.text("outputs"), frame.results, device);
  AttentionOptions& options = call.options;
  options.softmax_scale = numbers.real("softmax_scale");
  options.softcap = numbers.real("softcap");
  options.window_left = numbers.integer("window_left");
  options.window_right = numbers.integer("window_right");
  options.causal = numbers.integer("causal") != 0;
  options.align = numbers.integer("top_left") != 0 ? MaskAlign::top_left : MaskAlign::bottom_right;
  options.deterministic = numbers.integer("deterministic") != 0;
  options.dropout = {numbers.real("dropout_p"), static_cast<std::uint64_t>(numbers.integer("seed")),
                     static_cast<std::uint64_t>(numbers.integer("offset"))};
  call.sequences.max_seqlen_q = numbers.integer("max_seqlen_q");
  call.sequences.max_seqlen_k = numbers.integer("max_seqlen_k");
  run(call, stream);
}

xla::Error* failed(const xla::CallFrame& frame, const char* message, xla::ErrorCode code) {
  xla::CreateError error{sizeof(error), nullptr, message, code};
  return frame.api->create_error(&error);
}

xla::ErrorCode code_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::invalid_argument: return xla::ErrorCode::invalid_argument;
    case ErrorCode::unsupported: return xla::ErrorCode::unimplemented;
    case ErrorCode::out_of_memory: return xla::ErrorCode::resource_exhausted;
    case ErrorCode::device:
    case ErrorCode::io: break;
  }
  return xla::ErrorCode::internal;
}

// The version that this function has is the one of whoever asks: what it uses is in all of them.
bool answer_metadata(const xla::CallFrame& frame) {
  if (frame.extensions == nullptr || frame.extensions->type != xla::kMetadata) return false;
  xla::Metadata& metadata = *reinterpret_cast<xla::MetadataExtension*>(frame.extensions)->metadata;
  metadata.version.major = frame.api == nullptr ? 0 : frame.api->version.major;
  metadata.version.minor = frame.api == nullptr ? 1 : frame.api->version.minor;
  metadata.traits = 0;
  return true;
}

template <DeviceType type>
xla::Error* handle(xla::CallFrame* frame) {
  if (answer_metadata(*frame) || frame->stage != xla::kExecute) return nullptr;
  try {
    Device device{type, 0};
    Stream stream;
    if constexpr (type == DeviceType::cuda) {
      xla::GetStream queue{sizeof(queue), nullptr, frame->context, nullptr};
      if (xla::Error* error = frame->api->get_stream(&queue)) return error;
      stream.handle = queue.stream;
      if (frame->api->struct_size >= offsetof(xla::Api, get_device) + sizeof(void*)) {
        xla::GetDevice ordinal{sizeof(ordinal), nullptr, frame->context, 0};
        if (xla::Error* error = frame->api->get_device(&ordinal)) return error;
        device.index = ordinal.ordinal;
      }
    }
    attend(*frame, device, stream);
  } catch (const Error& error) {
    return failed(*frame, error.what(), code_of(error.code()));
  } catch (const std::exception& error) {
    return failed(*frame, error.what(), xla::ErrorCode::internal);
  }
  return nullptr;
}

template <DeviceType type>
nb::capsule capsule_of() {
  return nb::capsule(reinterpret_cast<void*>(&handle<type>), "xla._CUSTOM_CALL_TARGET");
}

}  // namespace

void bind_jax(nb::module_& module) {
  module.def(
      "xla_handlers",
      [] { return nb::make_tuple(capsule_of<DeviceType::cpu>(), capsule_of<DeviceType::cuda>()); },
      "Attention as foreign functions of XLA, for CPUs and GPUs: capsules for "
      "jax.ffi.register_ffi_target.");
}

}  // namespace flashmha::python
