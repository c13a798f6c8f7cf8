// An environment variable for as long as a test needs it.
#pragma once

#include <stdlib.h>

#include <optional>
#include <string>

namespace flashmha::test {

class EnvironmentVariable {
 public:
  // nullptr: not set.
  EnvironmentVariable(const char* name, const char* value) : name_(name) {
    if (const char* found = getenv(name)) before_ = found;
    set(value);
  }
  EnvironmentVariable(const EnvironmentVariable&) = delete;
  EnvironmentVariable& operator=(const EnvironmentVariable&) = delete;
  ~EnvironmentVariable() { set(before_ ? before_->c_str() : nullptr); }

  void set(const char* value) const {
    value ? setenv(name_, value, /*overwrite=*/1) : unsetenv(name_);
  }

 private:
  const char* name_;
  std::optional<std::string> before_;
};

}  // namespace flashmha::test
