// check(condition, "[function] rule (value); got ...", values...): the one way to report bad input.
#pragma once

#include <fmt/format.h>

#include <utility>

#include "flashmha/error.h"

namespace flashmha {

[[noreturn]] void fail(ErrorCode code, const std::string& message);

template <class... Args>
[[noreturn]] void fail(ErrorCode code, fmt::format_string<Args...> message, Args&&... args) {
  fail(code, fmt::format(message, std::forward<Args>(args)...));
}

// The message is formatted only when the condition is false.
template <class... Args>
void check(bool condition, fmt::format_string<Args...> message, Args&&... args) {
  if (!condition) [[unlikely]] {
    fail(ErrorCode::invalid_argument, fmt::format(message, std::forward<Args>(args)...));
  }
}

}  // namespace flashmha
