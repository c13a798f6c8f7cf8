// Expects an Error with a code and a message that holds every given piece.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "flashmha/error.h"

namespace flashmha::test {

template <class Function>
void expect_error(ErrorCode code, const std::vector<std::string>& pieces, Function&& function) {
  try {
    function();
    ADD_FAILURE() << "no error was thrown; expected " << error_code_name(code);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    const std::string message = error.what();
    for (const std::string& piece : pieces) {
      EXPECT_NE(message.find(piece), std::string::npos)
          << "'" << piece << "' is not in: " << message;
    }
  }
}

// A rule that the caller broke: most errors.
template <class Function>
void expect_error(Function&& function, const std::vector<std::string>& pieces) {
  expect_error(ErrorCode::invalid_argument, pieces, function);
}

}  // namespace flashmha::test
