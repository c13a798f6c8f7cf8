// A safetensors file from its two parts, well-formed or not.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace flashmha::test {

// `length` is what the file says about the header; by default the truth.
inline std::string safetensors_bytes(std::string_view header, std::string_view data,
                                     std::uint64_t length) {
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof length);
  bytes += header;
  bytes += data;
  return bytes;
}
inline std::string safetensors_bytes(std::string_view header, std::string_view data) {
  return safetensors_bytes(header, data, header.size());
}

}  // namespace flashmha::test
