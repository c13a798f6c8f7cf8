#include "flashmha/error.h"

#include "core/check.h"

namespace flashmha {

const char* error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::invalid_argument: return "invalid_argument";
    case ErrorCode::unsupported: return "unsupported";
    case ErrorCode::out_of_memory: return "out_of_memory";
    case ErrorCode::device: return "device";
    case ErrorCode::io: return "io";
  }
  return "unknown";
}

void fail(ErrorCode code, const std::string& message) {
  throw Error(code, message);
}

}  // namespace flashmha
