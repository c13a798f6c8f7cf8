#include "generation_speed.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>

#include "flashmha/device.h"
#include "measure.h"
#include "peak.h"

namespace flashmha::app {
namespace {

double median_seconds(const std::function<void()>& work, Device device) {
  const std::array candidates = {work};
  const Rounds rounds{.repetitions = 5, .min_seconds = 0.1, .device = device};
  return spread_of(time_in_turn(candidates, rounds).front()).median;
}

// Reading as many bytes as a step does, out of a cache if they fit into one.
double read_gbytes_per_second(std::int64_t bytes) {
  constexpr std::int64_t kSmallest = 1 << 20, kLargest = 256 << 20;
  const ReadProbe probe(num_threads(),
                        static_cast<std::size_t>(std::clamp(bytes, kSmallest, kLargest)));
  return probe.bytes() / median_seconds([&] { probe.run(); }, {}) * 1e-9;
}

// Reading and writing far more than a GPU's caches hold.
double copy_gbytes_per_second(Device device) {
  constexpr std::int64_t kBytes = 64 << 20;
  const Tensor source = Tensor::zeros({kBytes}, DType::boolean, device);
  const Tensor destination = Tensor::empty({kBytes}, DType::boolean, device);
  const double seconds = median_seconds([&] { copy(source, destination); }, device);
  return 2.0 * static_cast<double>(kBytes) / seconds * 1e-9;
}

}  // namespace

std::int64_t weight_bytes_of_step(model::CausalLM& model) {
  std::int64_t bytes = 0;
  const bool tied = model.config().tie_word_embeddings;
  model.visit([&](const std::string& name, nn::Parameter& parameter) {
    if (name == "model.embed_tokens.weight" && !tied) return;
    bytes += static_cast<std::int64_t>(parameter.value.view().bytes());
  });
  return bytes;
}

void GenerationClock::end_step() {
  last_ = Clock::now();
  if (num_steps_ == 0) first_ = last_;
  ++num_steps_;
}

double GenerationClock::first_step_ms() const {
  if (num_steps_ == 0) return 0.0;
  return std::chrono::duration<double, std::milli>(first_ - start_).count();
}

double GenerationClock::ms_per_later_step() const {
  if (num_steps_ < 2) return 0.0;
  const double ms = std::chrono::duration<double, std::milli>(last_ - first_).count();
  return ms / static_cast<double>(num_steps_ - 1);
}

GenerationSpeed measure_speed(const GenerationClock& clock, std::int64_t num_tokens,
                              std::int64_t num_first_tokens, std::int64_t weight_bytes,
                              Device device) {
  GenerationSpeed speed{.num_tokens = num_tokens,
                        .num_steps = clock.num_steps(),
                        .first_token_ms = clock.first_step_ms(),
                        .ms_per_step = clock.ms_per_later_step(),
                        .weight_bytes = weight_bytes};
  if (speed.ms_per_step == 0.0) return speed;
  const double seconds = speed.ms_per_step * 1e-3;
  speed.tokens_per_second = static_cast<double>(num_tokens - num_first_tokens) /
                            (seconds * static_cast<double>(speed.num_steps - 1));
  speed.weight_gbps = static_cast<double>(weight_bytes) / seconds * 1e-9;
  speed.copies = device.type == DeviceType::cuda;
  speed.memory_gbps =
      speed.copies ? copy_gbytes_per_second(device) : read_gbytes_per_second(weight_bytes);
  speed.memory_share = speed.weight_gbps / speed.memory_gbps;
  return speed;
}

void print_speed(const GenerationSpeed& speed) {
  fmt::print(stderr, "{} tokens; the first after {:.1f} ms", speed.num_tokens,
             speed.first_token_ms);
  if (speed.ms_per_step > 0.0) {
    fmt::print(stderr,
               ", then {:.1f} tokens/s\n{:.2f} ms a step read {:.1f} MiB of weights: {:.1f} GB/s, "
               "{:.2f} of {} memory ({:.1f} GB/s)",
               speed.tokens_per_second, speed.ms_per_step,
               static_cast<double>(speed.weight_bytes) / (1 << 20), speed.weight_gbps,
               speed.memory_share, speed.copies ? "copying" : "reading", speed.memory_gbps);
  }
  fmt::print(stderr, "\n");
}

Json speed_json(const GenerationSpeed& speed) {
  return {{"num_tokens", speed.num_tokens},
          {"num_steps", speed.num_steps},
          {"first_token_ms", speed.first_token_ms},
          {"step_ms", speed.ms_per_step},
          {"tokens_per_second", speed.tokens_per_second},
          {"weight_bytes", speed.weight_bytes},
          {"weight_gbps", speed.weight_gbps},
          {"memory", speed.copies ? "copying" : "reading"},
          {"memory_gbps", speed.memory_gbps},
          {"memory_share", speed.memory_share}};
}

}  // namespace flashmha::app
