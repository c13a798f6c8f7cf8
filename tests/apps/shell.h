// Commands and files for the tests of the program.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>

#include "tests/io/folder.h"

namespace flashmha::app {

struct Outcome {
  int exit_code = -1;  // of a command that a signal ended: -1
  std::string output;  // stdout and stderr
};

// A command line that runs beside the test. It is killed if the test does not wait for it.
class Process {
 public:
  explicit Process(const std::string& command) {
    int ends[2];
    if (::pipe(ends) != 0) throw std::runtime_error("no pipe");
    child_ = ::fork();
    if (child_ == 0) {
      ::dup2(ends[1], STDOUT_FILENO);
      ::dup2(ends[1], STDERR_FILENO);
      ::close(ends[0]);
      ::close(ends[1]);
      ::execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
      ::_exit(127);
    }
    ::close(ends[1]);
    output_ = ::fdopen(ends[0], "r");
  }
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;
  ~Process() {
    if (is_running()) {
      signal(SIGKILL);
      ::waitpid(child_, &status_, 0);
    }
    std::fclose(output_);
  }

  bool is_running() {
    if (!ended_) ended_ = ::waitpid(child_, &status_, WNOHANG) == child_;
    return !ended_;
  }

  // To the shell, or to the command in its place: "exec command".
  void signal(int number) const {
    if (!ended_) ::kill(child_, number);
  }

  // Waits for the next character of the output; EOF at its end.
  int next_character() { return std::fgetc(output_); }

  // Reads the rest of the output and waits for the end.
  Outcome wait() {
    Outcome outcome;
    for (int c = next_character(); c != EOF; c = next_character())
      outcome.output += static_cast<char>(c);
    if (!ended_) ended_ = ::waitpid(child_, &status_, 0) == child_;
    if (WIFEXITED(status_)) outcome.exit_code = WEXITSTATUS(status_);
    return outcome;
  }

 private:
  pid_t child_ = -1;
  FILE* output_ = nullptr;
  bool ended_ = false;
  int status_ = 0;
};

// Runs a command line in the shell.
inline Outcome shell(const std::string& command) {
  return Process(command).wait();
}

inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// A test with a folder of its own.
class Scratch : public testing::Test {
 protected:
  std::string path(const std::string& name) const { return folder_ / name; }
  std::size_t num_files() const { return folder_.names().size(); }

 private:
  test::Folder folder_;
};

}  // namespace flashmha::app
