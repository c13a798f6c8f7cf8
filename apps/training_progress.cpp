// The progress of `flashmha train`.
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "train.h"

namespace flashmha::app {
namespace {

using std::chrono::duration;
using std::chrono::milliseconds;

std::string bar(double fraction) {
  constexpr int kCells = 20;
  const int filled = static_cast<int>(fraction * kCells);
  std::string text;
  for (int cell = 0; cell < kCells; ++cell)
    text += cell < filled ? "\u2588" : "\u2591";
  return text;
}

// "0:07", "12:34", "1:02:03".
std::string clock_time(double seconds) {
  const auto total = static_cast<std::int64_t>(seconds + 0.5);
  if (total < 3600) return fmt::format("{}:{:02}", total / 60, total % 60);
  return fmt::format("{}:{:02}:{:02}", total / 3600, total / 60 % 60, total % 60);
}

}  // namespace

TrainingProgress::TrainingProgress(std::int64_t first_step, std::int64_t num_steps)
    : first_step_(first_step), num_steps_(num_steps), is_terminal_(::isatty(STDERR_FILENO) == 1) {}

void TrainingProgress::clear() const {
  if (is_terminal_) std::fputs("\r\x1b[K", stderr);
}

void TrainingProgress::show(const train::StepRecord& record) {
  if (record.eval_loss) eval_loss_ = record.eval_loss;
  const Clock::time_point now = Clock::now();
  if (record.step == first_step_) start_ = now;  // the evaluation before the first step
  const bool is_last = record.step == num_steps_;
  const milliseconds interval = is_terminal_ ? milliseconds(100) : milliseconds(10'000);
  if (!record.eval_loss && !is_last && now - last_print_ < interval) return;
  last_print_ = now;

  const int width = static_cast<int>(std::to_string(num_steps_).size());
  std::string line = fmt::format("step {:>{}}/{}", record.step, width, num_steps_);
  const double fraction = static_cast<double>(record.step) / static_cast<double>(num_steps_);
  if (is_terminal_) line += "  " + bar(fraction);
  if (record.loss) line += fmt::format("  loss {:.3f}", *record.loss);
  if (eval_loss_) line += fmt::format("  held out {:.3f}", *eval_loss_);
  if (record.loss) {
    line += fmt::format("  {:.0f} tokens/s", record.tokens_per_second);
    const double seconds = duration<double>(now - start_).count();
    const double left = seconds / static_cast<double>(record.step - first_step_) *
                        static_cast<double>(num_steps_ - record.step);
    if (!is_last) line += fmt::format("  {} left", clock_time(left));
  }
  clear();
  fmt::print(stderr, "{}{}", line, is_terminal_ ? "" : "\n");
  std::fflush(stderr);
}

}  // namespace flashmha::app
