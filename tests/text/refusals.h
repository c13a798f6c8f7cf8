// Changes to a tokenizer.json that make it one that is not read.
#pragma once

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "flashmha/error.h"
#include "flashmha/tokenizer.h"

namespace flashmha::text {

struct Refusal {
  const char* path;  // of the value that is changed
  std::string value;
  ErrorCode code;
  std::vector<std::string> pieces;  // of the message
};

inline void expect_refusals(const nlohmann::json& accepted, std::span<const Refusal> refusals) {
  Tokenizer::from_json(accepted.dump());
  for (const Refusal& refusal : refusals) {
    SCOPED_TRACE(std::string(refusal.path) + " = " + refusal.value);
    nlohmann::json content = accepted;
    content[nlohmann::json::json_pointer(refusal.path)] = nlohmann::json::parse(refusal.value);
    try {
      Tokenizer::from_json(content.dump());
      ADD_FAILURE() << "was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), refusal.code) << error.what();
      for (const std::string& piece : refusal.pieces) {
        EXPECT_NE(std::string(error.what()).find(piece), std::string::npos)
            << "'" << piece << "' is not in: " << error.what();
      }
    }
  }
}

}  // namespace flashmha::text
