// The learning rate, and options with their defaults filled in.
#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/check.h"

namespace flashmha::train {

TrainerOptions resolved(TrainerOptions options) {
  check(options.num_steps > 0, "[Trainer] num_steps ({}) must be positive", options.num_steps);
  check(options.batch_size > 0 && options.accumulate > 0,
        "[Trainer] batch_size ({}) and accumulate ({}) must be positive", options.batch_size,
        options.accumulate);
  check(options.eval_every >= 0 && options.save_every >= 0 && options.keep >= 0 &&
            options.max_eval_sequences > 0,
        "[Trainer] eval_every ({}), save_every ({}) and keep ({}) must not be negative, "
        "max_eval_sequences ({}) must be positive",
        options.eval_every, options.save_every, options.keep, options.max_eval_sequences);
  const float highest = options.optimizer.learning_rate;
  check(highest > 0.0f && std::isfinite(highest),
        "[Trainer] learning_rate ({}) must be positive and finite", highest);
  if (!options.min_learning_rate) options.min_learning_rate = highest / 10.0f;
  check(*options.min_learning_rate >= 0.0f && *options.min_learning_rate <= highest,
        "[Trainer] min_learning_rate ({}) must be in [0, learning_rate ({})]",
        *options.min_learning_rate, highest);
  if (!options.warmup_steps) {
    options.warmup_steps = std::min<std::int64_t>(options.num_steps / 10, 100);
  }
  check(*options.warmup_steps >= 0 && *options.warmup_steps <= options.num_steps,
        "[Trainer] warmup_steps ({}) must be in [0, num_steps ({})]", *options.warmup_steps,
        options.num_steps);
  return options;
}

float learning_rate_at(const TrainerOptions& options, std::int64_t step) {
  const TrainerOptions all = resolved(options);
  const double highest = all.optimizer.learning_rate;
  const double lowest = *all.min_learning_rate;
  const std::int64_t warmup = *all.warmup_steps;
  check(step >= 1 && step <= all.num_steps, "[learning_rate_at] step ({}) must be in [1, {}]", step,
        all.num_steps);
  if (step <= warmup) {
    return static_cast<float>(highest * static_cast<double>(step) / static_cast<double>(warmup));
  }
  const double progress =
      static_cast<double>(step - warmup) / static_cast<double>(all.num_steps - warmup);
  return static_cast<float>(lowest + (highest - lowest) * 0.5 *
                                         (1.0 + std::cos(std::numbers::pi * progress)));
}

}  // namespace flashmha::train
