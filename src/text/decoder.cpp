#include "text/decoder.h"

#include "text/byte_alphabet.h"
#include "text/utf8.h"

namespace flashmha::text {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

using Tokens = std::vector<std::string>;  // at most a run of bytes and the token after it
using State = Decoder::State;

// What a step remembers as bytes, as a token; nothing if there are none.
Tokens text_of_bytes(State& state) {
  const std::string bytes = std::exchange(state.bytes, {});
  if (bytes.empty()) return {};
  if (valid_length(bytes) == bytes.size()) return {bytes};
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); ++i)
    text += kReplacement;
  return {text};
}

Tokens run(const Replace& step, const std::string& token, State& /*state*/) {
  return {step.apply(token)};
}

Tokens run(const Decoder::ByteFallback& /*step*/, std::string token, State& state) {
  if (const std::optional<std::uint8_t> byte = byte_of_token(token)) {
    state.bytes += static_cast<char>(*byte);
    return {};
  }
  Tokens tokens = text_of_bytes(state);
  tokens.push_back(std::move(token));
  return tokens;
}

Tokens run(const Decoder::Strip& step, const std::string& token, State& state) {
  if (!step.of_text) state = {};
  std::string_view text = token;
  while (!state.is_inside && state.num_taken < step.count && text.starts_with(step.character)) {
    text.remove_prefix(step.character.size());
    ++state.num_taken;
  }
  state.is_inside = state.is_inside || !text.empty();
  return {std::string(text)};
}

Tokens run(const Decoder::Metaspace& step, const std::string& token, State& state) {
  const bool drops = step.drops_first && !std::exchange(state.is_inside, true);
  return {Replace{.pattern = step.mark, .content = drops ? "" : " "}.apply(token)};
}

}  // namespace

void Decoder::push(std::size_t step, std::string token, States& states, std::string& out) const {
  if (step == steps_.size()) {
    out += token;
    return;
  }
  const auto run_step = [&](const auto& kind) { return run(kind, std::move(token), states[step]); };
  for (std::string& result : std::visit(run_step, steps_[step])) {
    push(step + 1, std::move(result), states, out);
  }
}

void Decoder::push(std::string token, States& states, std::string& out) const {
  push(0, std::move(token), states, out);
}

void Decoder::flush(States& states, std::string& out) const {
  for (std::size_t step = 0; step < steps_.size(); ++step) {
    for (std::string& rest : text_of_bytes(states[step])) {
      push(step + 1, std::move(rest), states, out);
    }
  }
}

}  // namespace flashmha::text
