#include "text/piece_decoder.h"

#include <utility>

#include "core/check.h"

namespace flashmha::text {

PieceDecoder::PieceDecoder(std::shared_ptr<const Pipeline> pipeline, bool skip_special_tokens)
    : pipeline_(std::move(pipeline)),
      skip_special_tokens_(skip_special_tokens),
      states_(pipeline_->decoder.start()) {}

void PieceDecoder::push(std::int64_t id, std::string& out) {
  check(id >= 0, "[Tokenizer::decode] ids must not be negative; got {}", id);
  if (static_cast<std::uint64_t>(id) >= pipeline_->tokens.size()) return;
  const Token& token = pipeline_->tokens[static_cast<std::size_t>(id)];
  if (token.text.empty() || (token.special && skip_special_tokens_)) return;
  std::string text;
  pipeline_->decoder.push(token.text, states_, text);
  repair_.push(text, out);
}

void PieceDecoder::flush(std::string& out) {
  std::string rest;
  pipeline_->decoder.flush(states_, rest);
  repair_.push(rest, out);
  repair_.finish(out);
}

void PieceDecoder::finish(std::string& out) {
  flush(out);
  states_ = pipeline_->decoder.start();
}

}  // namespace flashmha::text
