#include "text/normalizer.h"

#include "text/unicode.h"

namespace flashmha::text {
namespace {

std::string run(const Normalizer::Nfc& /*step*/, const std::string& text, Before /*before*/) {
  return to_nfc(text);
}

std::string run(const Normalizer::Prepend& step, const std::string& text, Before before) {
  return text.empty() || before == Before::raw_bytes ? text : step.prefix + text;
}

std::string run(const Replace& step, const std::string& text, Before /*before*/) {
  return step.apply(text);
}

}  // namespace

std::string Normalizer::normalize(const Piece& piece) const {
  std::string result(piece.text);
  for (const Step& step : steps_) {
    result = std::visit([&](const auto& kind) { return run(kind, result, piece.before); }, step);
  }
  return result;
}

}  // namespace flashmha::text
