#include "flashmha/tokenizer.h"

#include <filesystem>
#include <utility>

#include "core/check.h"
#include "io/json.h"
#include "text/piece_decoder.h"
#include "text/pipeline.h"
#include "text/tokenizer_json.h"

namespace flashmha::text {
namespace {

// The id of the token that tokenizer_config.json names: "token" or {"content": "token"}.
std::optional<std::int64_t> read_end(const io::JsonObject& config, const std::string& key,
                                     const Pipeline& pipeline) {
  if (!config.has(key)) return std::nullopt;
  const bool is_object = config.at(key).is_object();
  const std::string token = is_object ? config.object(key).text("content") : config.text(key);
  const std::optional<std::uint32_t> id = pipeline.ids.find(token);
  if (!id) config.refuse(key, "must be a token of tokenizer.json");
  return id;
}

void read_ends(const std::string& path, Pipeline& pipeline) {
  const std::string where = "[Tokenizer::for_model] " + path;
  const io::Json json = io::read_json_file(path, where);
  const io::JsonObject config(json, where);
  pipeline.bos = read_end(config, "bos_token", pipeline);
  pipeline.eos = read_end(config, "eos_token", pipeline);
}

}  // namespace

Tokenizer::Tokenizer(std::shared_ptr<const Pipeline> pipeline) : pipeline_(std::move(pipeline)) {}

Tokenizer Tokenizer::bytes() {
  constexpr std::uint32_t kNumBytes = 256;
  auto pipeline = std::make_shared<Pipeline>();
  Symbols symbols(Unit::byte);
  for (std::uint32_t byte = 0; byte < kNumBytes; ++byte) {
    pipeline->tokens.push_back({std::string(1, static_cast<char>(byte)), false});
    pipeline->ids.add(pipeline->tokens.back().text, byte);
    symbols.add_byte(static_cast<std::uint8_t>(byte), byte);
  }
  const AddedToken end{.content = "<|endoftext|>", .id = kNumBytes, .special = true};
  pipeline->tokens.push_back({end.content, true});
  pipeline->model = Bpe(std::move(symbols), {});
  pipeline->ids.add(end.content, end.id);
  pipeline->added_tokens.add(end.content, end);
  pipeline->eos = end.id;
  return Tokenizer(std::move(pipeline));
}

Tokenizer Tokenizer::from_json(std::string_view json) {
  constexpr const char* kWhere = "[Tokenizer::from_json] tokenizer.json";
  return Tokenizer(std::make_shared<Pipeline>(read_pipeline(io::parse_json(json, kWhere), kWhere)));
}

Tokenizer Tokenizer::from_file(const std::string& path) {
  const std::string where = "[Tokenizer::from_file] " + path;
  return Tokenizer(
      std::make_shared<Pipeline>(read_pipeline(io::read_json_file(path, where), where)));
}

Tokenizer Tokenizer::for_model(const std::string& directory) {
  const std::filesystem::path folder(directory);
  const std::filesystem::path path = folder / "tokenizer.json";
  if (!std::filesystem::exists(path)) {
    for (const char* other : {"tokenizer.model", "vocab.json", "vocab.txt", "tiktoken.model"}) {
      if (std::filesystem::exists(folder / other)) {
        fail(ErrorCode::unsupported,
             "[Tokenizer::for_model] {} has a tokenizer in {}, which is not supported "
             "(tokenizer.json)",
             directory, other);
      }
    }
    return bytes();
  }
  const std::string where = "[Tokenizer::for_model] " + path.string();
  Pipeline pipeline = read_pipeline(io::read_json_file(path.string(), where), where);
  const std::filesystem::path config = folder / "tokenizer_config.json";
  if (std::filesystem::exists(config)) read_ends(config.string(), pipeline);
  return Tokenizer(std::make_shared<Pipeline>(std::move(pipeline)));
}

std::vector<std::int64_t> Tokenizer::encode(std::string_view text,
                                            const EncodeOptions& options) const {
  std::vector<std::int64_t> ids;
  if (options.add_special_tokens) ids = pipeline_->prefix;
  pipeline_->encode(text, options.match_special_tokens, ids);
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
  return pipeline_->ids.find(token);
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

void StreamDecoder::skip(std::span<const std::int64_t> ids) {
  std::string known;
  for (const std::int64_t id : ids)
    decoder_->push(id, known);
  decoder_->flush(known);
}

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
