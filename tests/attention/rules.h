// Calls that break one rule each.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "flashmha/error.h"
#include "tests/attention/api.h"

namespace flashmha::tests {

// The message of the Error(invalid_argument) that `act` throws; "" if it throws none.
inline std::string message_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::invalid_argument) << error.what();
    return error.what();
  }
  return "";
}

struct Broken {
  const char* rule;
  std::function<void(AttentionCall&, Memory&)> spoil;
  std::vector<const char*> words;  // of the message, besides the function's name
};

inline void expect_refusals(const Case& spec, const char* function,
                            const std::vector<Broken>& list) {
  for (const Broken& broken : list) {
    Instance instance(spec, test_seed());
    instance.call.name = function;
    ASSERT_NO_THROW(make_problem(instance.call));
    broken.spoil(instance.call, instance.inputs);
    const std::string message = message_of([&] { make_problem(instance.call); });
    EXPECT_NE(message, "") << broken.rule << ": accepted";
    EXPECT_EQ(message.find("[" + std::string(function) + "] "), 0u)
        << broken.rule << ": " << message;
    for (const char* word : broken.words) {
      EXPECT_NE(message.find(word), std::string::npos)
          << broken.rule << ": no '" << word << "' in: " << message;
    }
  }
}

inline Case dense_spec() {
  return {.batch = 2,
          .seqlen_q = 5,
          .seqlen_k = 7,
          .num_heads_q = 6,
          .num_heads_kv = 2,
          .head_dim = 16};
}

}  // namespace flashmha::tests
