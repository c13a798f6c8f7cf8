#include "progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace flashmha::app {

using std::chrono::duration;
using std::chrono::milliseconds;

Progress::Progress(std::string task, std::int64_t total_steps, milliseconds log_interval)
    : task_(std::move(task)),
      total_steps_(total_steps),
      is_terminal_(::isatty(STDERR_FILENO) == 1),
      interval_(is_terminal_ ? milliseconds(100) : log_interval) {}

Progress::~Progress() {
  constexpr const char* kEraseLine = "\r\x1b[K";
  if (is_terminal_) std::fputs(kEraseLine, stderr);
}

void Progress::step(const std::string& what) {
  ++started_steps_;
  const Clock::time_point now = Clock::now();
  if (now - last_print_ < interval_ && !(is_terminal_ && started_steps_ == 1)) return;
  last_print_ = now;
  const std::string line = fmt::format("{} {}/{}: {} ({:.0f} s)", task_, started_steps_,
                                       total_steps_, what, duration<double>(now - start_).count());
  if (is_terminal_) {
    fmt::print(stderr, "\r\x1b[K{}", line);
    std::fflush(stderr);
  } else {
    fmt::print(stderr, "{}\n", line);
  }
}

}  // namespace flashmha::app
