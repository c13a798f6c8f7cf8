// Errors of the library: one exception type, a code to branch on, a sentence to read.
#pragma once

#include <stdexcept>
#include <string>

namespace flashmha {

enum class ErrorCode {
  invalid_argument,  // the caller broke a rule; the message names the function, the rule and the
                     // values
  unsupported,       // legal, but no backend serves it; the message lists every backend's reason
  out_of_memory,     // an allocation failed; nothing was leaked and the process can go on
  device,            // a device is absent or failed
  io,                // a file could not be read or written
};

// "invalid_argument", "unsupported", ...
const char* error_code_name(ErrorCode code);

// The only exception that the library throws on purpose. It leaves tensors that were passed in
// unchanged unless the documentation of the function says otherwise.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace flashmha
