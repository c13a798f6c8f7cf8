// What long work shows, on a terminal and in a log.
#include "progress.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <thread>

#include "train.h"

namespace flashmha::app {
namespace {

using std::chrono::milliseconds;

constexpr const char* kErase = "\r\x1b[K";

// Stands in for standard error: a terminal, or a pipe as a log has it.
class StandardError {
 public:
  static StandardError terminal() {
    const int reader = ::posix_openpt(O_RDWR | O_NOCTTY);
    EXPECT_EQ(::grantpt(reader), 0);
    EXPECT_EQ(::unlockpt(reader), 0);
    const int writer = ::open(::ptsname(reader), O_RDWR | O_NOCTTY);
    termios settings{};
    ::tcgetattr(writer, &settings);
    ::cfmakeraw(&settings);  // characters come through as they are
    ::tcsetattr(writer, TCSANOW, &settings);
    return {reader, writer};
  }

  static StandardError log() {
    int ends[2];
    EXPECT_EQ(::pipe(ends), 0);
    return {ends[0], ends[1]};
  }

  StandardError(const StandardError&) = delete;
  StandardError& operator=(const StandardError&) = delete;
  ~StandardError() {
    restore();
    ::close(reader_);
  }

  // Gives standard error back; everything that was written.
  std::string text() {
    restore();
    std::string text;
    char buffer[1024];
    for (ssize_t n = 0; (n = ::read(reader_, buffer, sizeof(buffer))) > 0;)
      text.append(buffer, static_cast<std::size_t>(n));
    return text;
  }

 private:
  StandardError(int reader, int writer) : reader_(reader), saved_(::dup(STDERR_FILENO)) {
    ::dup2(writer, STDERR_FILENO);
    ::close(writer);
  }

  void restore() {
    if (saved_ < 0) return;
    std::fflush(stderr);
    ::dup2(saved_, STDERR_FILENO);
    ::close(saved_);
    saved_ = -1;
  }

  int reader_;
  int saved_;
};

TEST(Progress, rewrites_a_line_of_a_terminal_and_erases_it) {
  StandardError terminal = StandardError::terminal();
  {
    Progress progress("benchmark", 3);
    progress.step("plain, training");
    std::this_thread::sleep_for(milliseconds(110));
    progress.step("flash, training");
  }
  EXPECT_EQ(terminal.text(), std::string(kErase) + "benchmark 1/3: plain, training (0 s)" + kErase +
                                 "benchmark 2/3: flash, training (0 s)" + kErase);
}

TEST(Progress, writes_lines_into_a_log) {
  StandardError log = StandardError::log();
  {
    Progress progress("benchmark", 2, milliseconds(0));
    progress.step("plain, training");
    progress.step("flash, training");
  }
  EXPECT_EQ(log.text(),
            "benchmark 1/2: plain, training (0 s)\nbenchmark 2/2: flash, training (0 s)\n");
}

TEST(Progress, leaves_the_log_of_short_work_empty) {
  StandardError log = StandardError::log();
  {
    Progress progress("generate", 2);
    progress.step("tokens");
    progress.step("tokens");
  }
  EXPECT_EQ(log.text(), "");
}

// The evaluation before the first step, a step with another, the last.
const train::StepRecord kBefore{.step = 0, .eval_loss = 5.25};
const train::StepRecord kMiddle{
    .step = 20, .loss = 4.5, .tokens_per_second = 1234.4, .eval_loss = 4.75};
const train::StepRecord kLast{.step = 40, .loss = 3.0, .tokens_per_second = 2000.0};

TEST(TrainingProgress, draws_a_bar_on_a_terminal) {
  const auto bar = [](int filled) {
    std::string text;
    for (int cell = 0; cell < 20; ++cell)
      text += cell < filled ? "\u2588" : "\u2591";
    return text;
  };
  StandardError terminal = StandardError::terminal();
  {
    TrainingProgress progress(0, 40);
    for (const train::StepRecord& record : {kBefore, kMiddle, kLast})
      progress.show(record);
  }
  EXPECT_EQ(terminal.text(), std::string(kErase) + "step  0/40  " + bar(0) + "  held out 5.250" +
                                 kErase + "step 20/40  " + bar(10) +
                                 "  loss 4.500  held out 4.750  1234 tokens/s  0:00 left" + kErase +
                                 "step 40/40  " + bar(20) +
                                 "  loss 3.000  held out 4.750  2000 tokens/s" + kErase);
}

TEST(TrainingProgress, writes_evaluations_and_the_last_step_into_a_log) {
  StandardError log = StandardError::log();
  {
    TrainingProgress progress(0, 40);
    progress.show(kBefore);
    progress.show({.step = 1, .loss = 5.0});  // neither: a line every 10 seconds
    progress.show(kMiddle);
    progress.show(kLast);
  }
  EXPECT_EQ(log.text(),
            "step  0/40  held out 5.250\n"
            "step 20/40  loss 4.500  held out 4.750  1234 tokens/s  0:00 left\n"
            "step 40/40  loss 3.000  held out 4.750  2000 tokens/s\n");
}

}  // namespace
}  // namespace flashmha::app
