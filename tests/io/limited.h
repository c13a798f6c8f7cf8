// What happens on a full disk and to a process that is killed, in a process of its own.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <initializer_list>
#include <ostream>
#include <string>
#include <vector>

#include "flashmha/error.h"

namespace flashmha::test {

// No file may grow beyond that many bytes: writing fails with EFBIG as it does with ENOSPC on a
// full disk.
inline void limit_file_size(rlim_t bytes) {
  signal(SIGXFSZ, SIG_IGN);
  const rlimit limit{bytes, bytes};
  if (setrlimit(RLIMIT_FSIZE, &limit) != 0) abort();
}

// Exits with 0, or prints the message of an Error and exits with 1 + its code.
template <class Function>
[[noreturn]] void exit_after(Function&& function) {
  try {
    function();
  } catch (const Error& error) {
    fprintf(stderr, "%s\n", error.what());
    _Exit(1 + static_cast<int>(error.code()));
  }
  _Exit(0);
}

inline testing::ExitedWithCode exited_with(ErrorCode code) {
  return testing::ExitedWithCode(1 + static_cast<int>(code));
}

// Matches what a process said if it holds every piece: messages hold file names, which are no
// regular expressions.
class Says {
 public:
  using is_gtest_matcher = void;

  Says(std::initializer_list<std::string> pieces) : pieces_(pieces) {}

  bool MatchAndExplain(const std::string& text, std::ostream*) const {  // NOLINT: GoogleTest's name
    for (const std::string& piece : pieces_) {
      if (text.find(piece) == std::string::npos) return false;
    }
    return true;
  }
  void DescribeTo(std::ostream* stream) const {  // NOLINT: GoogleTest's name
    *stream << "holds:";
    for (const std::string& piece : pieces_)
      *stream << " '" << piece << "'";
  }
  void DescribeNegationTo(std::ostream* stream) const {  // NOLINT: GoogleTest's name
    *stream << "not ";
    DescribeTo(stream);
  }

 private:
  std::vector<std::string> pieces_;
};

}  // namespace flashmha::test
