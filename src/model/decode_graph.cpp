#include "model/decode_graph.h"

#include <algorithm>

#include "core/check.h"

namespace flashmha::model {

bool DecodeGraph::serves(const CausalLM& model, nn::KVCaches& caches) {
  const ModelConfig& config = model.config();
  return config.device.type == DeviceType::cuda && config.attention_kind == AttentionKind::flash &&
         !config.has_dynamic_rotary() && caches.reserve(1);
}

DecodeGraph::DecodeGraph(const CausalLM& model, nn::KVCaches& caches)
    : model_(&model), caches_(&caches), graph_(model.config().device) {}

void DecodeGraph::prepare(std::int64_t num_rows, bool padded) {
  std::vector<const void*> memory;
  for (const auto& cache : caches_->layers) {
    const std::optional<nn::ReservedKeys> keys = cache->reserve(1);
    check(keys.has_value(), "[DecodeGraph] the caches must give out their memory");
    memory.push_back(keys->k.data);
    capacity_ = keys->k.size(1);
  }
  const bool same = integers_.defined() && integers_.size(1) == num_rows && memory_ == memory &&
                    padded_ == padded;
  if (same) return;
  graph_.reset();
  const ModelConfig& config = model_->config();
  integers_ = Tensor::empty({4, num_rows}, DType::int32, config.device);
  logits_ = Tensor::empty({num_rows, 1, config.vocab_size}, config.dtype, config.device);
  decode_.cache_seqlens = integers_.view().select(0, 2);
  decode_.cache_leftpad = padded ? integers_.view().select(0, 3) : TensorView();
  memory_ = std::move(memory);
  padded_ = padded;
}

ModelInputs DecodeGraph::inputs() const {
  const std::int64_t num_rows = integers_.size(1);
  const auto row = [&](std::int64_t index) {
    return integers_.view().select(0, index).reshape({num_rows, 1});
  };
  return {.input_ids = row(0),
          .position_ids = row(1),
          .num_positions = capacity_,
          .caches = caches_,
          .decode = &decode_,
          .last_logits_only = true};
}

const Tensor& DecodeGraph::step(std::span<const Row> rows) {
  const auto count = std::ssize(rows);
  const auto filled = static_cast<std::int32_t>(caches_->seqlen());
  prepare(count, std::ranges::any_of(rows, [](const Row& row) { return row.leftpad > 0; }));
  std::vector<std::int32_t> integers(4 * rows.size());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    integers[i] = static_cast<std::int32_t>(rows[i].token);
    integers[rows.size() + i] = static_cast<std::int32_t>(rows[i].position);
    integers[2 * rows.size() + i] = filled;
    integers[3 * rows.size() + i] = static_cast<std::int32_t>(rows[i].leftpad);
  }
  copy(view_of(integers.data(), {4, count}), integers_);
  graph_.run([this] { model_->forward_into(inputs(), logits_); });
  caches_->advance(1);
  return logits_;
}

}  // namespace flashmha::model
