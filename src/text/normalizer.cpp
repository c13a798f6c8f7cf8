#include "text/normalizer.h"

#include "text/unicode.h"

namespace flashmha::text {
namespace {

std::string run(const Normalizer::Nfc& /*step*/, std::string_view text) {
  return to_nfc(text);
}

}  // namespace

std::string Normalizer::normalize(std::string_view text) const {
  std::string result(text);
  for (const Step& step : steps_) {
    result = std::visit([&](const auto& kind) { return run(kind, result); }, step);
  }
  return result;
}

}  // namespace flashmha::text
