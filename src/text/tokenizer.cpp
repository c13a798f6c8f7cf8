#include "flashmha/tokenizer.h"

#include <filesystem>
#include <utility>

#include "core/check.h"
#include "text/piece_decoder.h"
#include "text/pipeline.h"

namespace flashmha::text {

Tokenizer::Tokenizer(std::shared_ptr<const Pipeline> pipeline) : pipeline_(std::move(pipeline)) {}

Tokenizer Tokenizer::bytes() {
  constexpr std::uint32_t kNumBytes = 256;
  auto pipeline = std::make_shared<Pipeline>();
  for (std::uint32_t byte = 0; byte < kNumBytes; ++byte) {
    pipeline->tokens.push_back({std::string(1, static_cast<char>(byte)), false});
    pipeline->ids.emplace(pipeline->tokens.back().text, byte);
  }
  const AddedToken end{.content = "<|endoftext|>", .id = kNumBytes, .special = true};
  pipeline->tokens.push_back({end.content, true});
  pipeline->model = Bpe(pipeline->ids, {}, false, -1);
  pipeline->ids.emplace(end.content, end.id);
  pipeline->added_tokens.add(end.content, end);
  pipeline->eos = end.id;
  return Tokenizer(std::move(pipeline));
}

Tokenizer Tokenizer::for_model(const std::string& directory) {
  const std::filesystem::path path = std::filesystem::path(directory) / "tokenizer.json";
  return std::filesystem::exists(path) ? from_file(path.string()) : bytes();
}

Tokenizer Tokenizer::from_file(const std::string& path) {
  fail(ErrorCode::unsupported, "[Tokenizer::from_file] not offered yet; got {}", path);
}

Tokenizer Tokenizer::from_json(std::string_view json) {
  fail(ErrorCode::unsupported, "[Tokenizer::from_json] not offered yet; got {} bytes", json.size());
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view text,
                                            const EncodeOptions& options) const {
  std::vector<std::int64_t> ids;
  PieceCache cache(text.size());
  if (options.add_special_tokens) ids = pipeline_->prefix;
  for (const Span& span : pipeline_->added_tokens.split(text, options.match_special_tokens)) {
    if (span.id) {
      ids.push_back(*span.id);
    } else {
      pipeline_->model.encode(span.text, cache, ids);
    }
  }
  if (options.add_special_tokens) {
    ids.insert(ids.end(), pipeline_->suffix.begin(), pipeline_->suffix.end());
  }
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int64_t> ids, bool skip_special_tokens) const {
  std::string text;
  PieceDecoder decoder(pipeline_, skip_special_tokens);
  for (const std::int64_t id : ids)
    decoder.push(id, text);
  decoder.finish(text);
  return text;
}

std::int64_t Tokenizer::vocab_size() const {
  return static_cast<std::int64_t>(pipeline_->tokens.size());
}

std::optional<std::int64_t> Tokenizer::token_id(std::string_view token) const {
  const auto found = pipeline_->ids.find(std::string(token));
  if (found == pipeline_->ids.end()) return std::nullopt;
  return found->second;
}

std::optional<std::int64_t> Tokenizer::bos_token_id() const {
  return pipeline_->bos;
}

std::optional<std::int64_t> Tokenizer::eos_token_id() const {
  return pipeline_->eos;
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens)
    : decoder_(std::make_unique<PieceDecoder>(tokenizer.pipeline_, skip_special_tokens)) {}

StreamDecoder::StreamDecoder(StreamDecoder&& other) noexcept = default;
StreamDecoder& StreamDecoder::operator=(StreamDecoder&& other) noexcept = default;
StreamDecoder::~StreamDecoder() = default;

std::string StreamDecoder::push(std::int64_t id) {
  std::string text;
  decoder_->push(id, text);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  decoder_->finish(text);
  return text;
}

}  // namespace flashmha::text
