// What long work says while it runs, on stderr, so that stdout stays the result.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace flashmha::app {

// On a terminal one line that rewrites itself and vanishes at the end; elsewhere (a log) a line at
// the first step that comes log_interval or more after the last.
class Progress {
 public:
  Progress(std::string task, std::int64_t total_steps,
           std::chrono::milliseconds log_interval = std::chrono::seconds(10));
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  ~Progress();

  // Call it before each step with what the step is: "flash, training".
  void step(const std::string& what);

 private:
  using Clock = std::chrono::steady_clock;

  std::string task_;
  std::int64_t total_steps_;
  std::int64_t started_steps_ = 0;
  bool is_terminal_;
  std::chrono::milliseconds interval_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point last_print_ = start_;
};

}  // namespace flashmha::app
