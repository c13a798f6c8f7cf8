// Shapes, tensors and devices as arguments of check() and fail(): formatted only if the message is
// needed.
#pragma once

#include <fmt/format.h>

#include <string>

#include "flashmha/tensor.h"

template <>
struct fmt::formatter<flashmha::Shape> : fmt::formatter<std::string> {
  template <class Context>
  auto format(const flashmha::Shape& shape, Context& context) const {
    return fmt::formatter<std::string>::format(flashmha::to_string(shape), context);
  }
};

template <>
struct fmt::formatter<flashmha::TensorView> : fmt::formatter<std::string> {
  template <class Context>
  auto format(const flashmha::TensorView& view, Context& context) const {
    return fmt::formatter<std::string>::format(flashmha::to_string(view), context);
  }
};

template <>
struct fmt::formatter<flashmha::Device> : fmt::formatter<std::string> {
  template <class Context>
  auto format(flashmha::Device device, Context& context) const {
    return fmt::formatter<std::string>::format(flashmha::device_name(device), context);
  }
};
