// Decoding steps of a batch, recorded as a graph: on a GPU a step is one launch.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "flashmha/generation.h"
#include "flashmha/graph.h"

namespace flashmha::model {

class DecodeGraph {
 public:
  // One token of each row: the last one, its logical position, and the slots before the row's first
  // real token.
  struct Row {
    std::int64_t token = 0;
    std::int64_t position = 0;
    std::int64_t leftpad = 0;
  };

  // True if steps of this model with these caches can be recorded: on a GPU, flash attention,
  // caches that give out their memory, no rotary scaling that follows the length.
  static bool serves(const CausalLM& model, nn::KVCaches& caches);

  // The model and the caches must outlive it.
  DecodeGraph(const CausalLM& model, nn::KVCaches& caches);

  // Appends the tokens to the caches. Logits [rows, 1, vocab_size], valid until the next step.
  // Recorded anew when the number of rows or the caches' memory changes.
  const Tensor& step(std::span<const Row> rows);

 private:
  void prepare(std::int64_t num_rows, bool padded);
  ModelInputs inputs() const;

  const CausalLM* model_;
  nn::KVCaches* caches_;
  std::vector<const void*> memory_;  // of every layer's cache
  std::int64_t capacity_ = 0;
  bool padded_ = false;
  Tensor integers_;  // int32 [4, rows]: token, position, slots that are filled, first real slot
  Tensor logits_;
  nn::DecodeStep decode_;
  Graph graph_;
};

}  // namespace flashmha::model
