// The version of FlashMHA; the build reads it from here.
#pragma once

#include <string_view>

namespace flashmha {

inline constexpr std::string_view kVersion = "0.1.0";

}  // namespace flashmha
