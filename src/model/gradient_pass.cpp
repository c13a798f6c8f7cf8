// Gradients of batches of one shape, recorded as a graph.
#include <algorithm>
#include <bit>
#include <vector>

#include "core/check.h"
#include "core/format.h"
#include "core/located.h"
#include "model/loss.h"

namespace flashmha::model {

// Tensors that stay where they are, for batches of one shape.
struct GradientPass::Recording {
  Recording(const Shape& shape, Device device, std::int64_t num_sequences, std::int64_t longest,
            bool recomputes)
      : recompute(recomputes),
        input_ids(Tensor::empty(shape, DType::int64, device)),
        targets(Tensor::empty({shape[0] * shape[1]}, DType::int64, device)),
        scale(Tensor::empty({1}, DType::float32, device)),
        loss(empty_loss(device)),
        graph(device) {
    if (num_sequences == 0) return;
    position_ids = Tensor::empty(shape, DType::int32, device);
    packed.cu_seqlens = Tensor::empty({num_sequences + 1}, DType::int32, device);
    packed.max_seqlen = longest;
  }

  bool serves(const ModelInputs& inputs) const {
    if (inputs.input_ids.shape != input_ids.shape()) return false;
    if (inputs.recompute != recompute) return false;
    if ((inputs.packed != nullptr) != packed.cu_seqlens.defined()) return false;
    return !inputs.packed || (inputs.packed->cu_seqlens.numel() <= packed.cu_seqlens.numel() &&
                              inputs.packed->max_seqlen <= packed.max_seqlen);
  }

  // Sequences that are missing are empty ones at the end.
  void set(const ModelInputs& inputs, const TensorView& wanted, float share) {
    copy(inputs.input_ids, input_ids);
    copy(wanted, targets);
    copy(view_of(&share, {1}), scale);
    if (!inputs.packed) return;
    const Located given(inputs.packed->cu_seqlens);
    const auto* starts = given.as<std::int32_t>();
    const std::int64_t count = given.view().numel();
    std::vector<std::int32_t> padded(static_cast<std::size_t>(packed.cu_seqlens.numel()),
                                     starts[count - 1]);
    std::copy_n(starts, count, padded.begin());
    copy(view_of(padded.data(), packed.cu_seqlens.shape()), packed.cu_seqlens);
    copy(packed_positions(*inputs.packed, input_ids.size(0), input_ids.size(1)), position_ids);
  }

  ModelInputs inputs(const ModelInputs& given) const {
    ModelInputs inputs{.input_ids = input_ids, .training = given.training, .recompute = recompute};
    if (!given.packed) return inputs;
    inputs.position_ids = position_ids;
    inputs.num_positions = packed.max_seqlen;
    inputs.packed = &packed;
    return inputs;
  }

  bool recompute;
  Tensor input_ids;     // int64 [batch, seqlen]
  Tensor targets;       // int64 [batch * seqlen]
  Tensor scale;         // float32 [1]
  Tensor loss;          // float32 [2]
  Tensor position_ids;  // int32 [batch, seqlen]; with packed sequences
  PackedSequences packed;
  Graph graph;
};

namespace {

bool can_be_recorded(const ModelConfig& config, const ModelInputs& inputs) {
  if (config.device.type == DeviceType::cpu || config.has_dynamic_rotary()) return false;
  if (inputs.training && config.attention.dropout > 0.0f) return false;
  // Plain attention makes a mask of packed sequences, on the host.
  const bool plain = config.attention_kind == AttentionKind::plain;
  if (inputs.packed && (plain || inputs.packed->max_seqlen == 0)) return false;
  return !inputs.attention_mask.defined() && !inputs.position_ids.defined();
}

// At least 64, so that few batches have more than the one before.
std::int64_t rounded_up(std::int64_t count) {
  return static_cast<std::int64_t>(
      std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(count, 64))));
}

}  // namespace

GradientPass::GradientPass(CausalLM& model) : model_(&model) {}
GradientPass::~GradientPass() = default;
GradientPass::GradientPass(GradientPass&&) noexcept = default;
GradientPass& GradientPass::operator=(GradientPass&&) noexcept = default;

Loss GradientPass::operator()(const ModelInputs& inputs, const TensorView& targets, float scale) {
  const ModelConfig& config = model_->config();
  if (!can_be_recorded(config, inputs)) return compute_gradients(*model_, inputs, targets, scale);
  check(inputs.input_ids.rank() == 2 && targets.numel() == inputs.input_ids.numel(),
        "[GradientPass] input_ids must be [batch, seqlen] and targets [batch * seqlen]; got {} and "
        "{}",
        inputs.input_ids, targets);
  if (!recording_ || !recording_->serves(inputs)) {
    recording_.reset();  // its memory first
    const PackedSequences* packed = inputs.packed;
    recording_ =
        std::make_unique<Recording>(inputs.input_ids.shape, config.device,
                                    packed ? rounded_up(packed->cu_seqlens.numel() - 1) : 0,
                                    packed ? rounded_up(packed->max_seqlen) : 0, inputs.recompute);
  }
  Recording& recording = *recording_;
  recording.set(inputs, targets, scale);
  recording.graph.run([&] {
    queue_gradients(*model_, recording.inputs(inputs), recording.targets, recording.scale,
                    recording.loss);
  });
  return read_loss(recording.loss);
}

}  // namespace flashmha::model
