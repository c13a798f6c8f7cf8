// What a checkpoint holds besides the model: the state of the optimiser and of the run.
#pragma once

#include <cstdint>
#include <string>

#include "flashmha/model.h"
#include "flashmha/trainer.h"
#include "io/json.h"

namespace flashmha::train {

// Where a run is.
struct Progress {
  std::int64_t step = 0;
  std::int64_t num_tokens = 0;
};

// Everything in options, in which no default is left open, and data that decides what a step
// computes, by name.
io::Json settings_of(const TrainerOptions& options, const PackedDataset& training);

// training_state.json and training_state.safetensors.
void save_state(const std::string& folder, const Progress& progress, const io::Json& settings,
                const model::AdamW& optimizer);

// The same back, after checking that the settings are the same. Throws invalid_argument naming
// those that are not.
Progress load_state(const std::string& folder, const io::Json& settings, model::AdamW& optimizer);

// Throws invalid_argument, naming the fields, if folder/config.json describes another model.
// `scratch` is a folder that may be made and is removed.
void check_same_model(const std::string& folder, const model::ModelConfig& config,
                      const std::string& scratch);

}  // namespace flashmha::train
