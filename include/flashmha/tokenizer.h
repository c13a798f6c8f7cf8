// Text to token ids and back: BPE of bytes, as Llama 3, Qwen and GPT-2 ship it, and by
// SentencePiece, as Llama 2, Mistral and Gemma do, both in a tokenizer.json; and plain bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace flashmha::text {

struct Pipeline;
class PieceDecoder;

struct EncodeOptions {
  // What the tokenizer's post-processor adds around a text, such as <|begin_of_text|>.
  bool add_special_tokens = true;
  // Whether the text of a special token, found in the input, becomes that token. Set it to false
  // for text from strangers.
  bool match_special_tokens = true;
};

// Immutable, cheap to copy, safe to use from many threads at once.
class Tokenizer {
 public:
  // Ids 0..255 are bytes, 256 is <|endoftext|> (special; the end of a sequence).
  static Tokenizer bytes();

  // Reads a tokenizer.json. Throws io where the file cannot be read, invalid_argument where it
  // contradicts itself, and unsupported, with the name and value of the field, where it asks for
  // something that is not offered.
  static Tokenizer from_file(const std::string& path);

  // The same, from the text of the file.
  static Tokenizer from_json(std::string_view json);

  // The tokenizer of a model's folder: its tokenizer.json, with the first and last tokens named in
  // tokenizer_config.json if that is there; bytes() in a folder without tokenizer.json.
  static Tokenizer for_model(const std::string& directory);

  // Ids of a text. Invalid UTF-8 is not lost where the vocabulary has all bytes, as those named
  // above do: it is encoded as bytes.
  std::vector<std::int64_t> encode(std::string_view text, const EncodeOptions& options = {}) const;

  // Text of ids: always valid UTF-8, bytes that form none are U+FFFD. An id without a token (the
  // vocabulary of a model is often larger) has no text; a negative one is invalid_argument.
  std::string decode(std::span<const std::int64_t> ids, bool skip_special_tokens = true) const;

  // One more than the highest id.
  std::int64_t vocab_size() const;

  // Tokens are written as in tokenizer.json: in a byte-level vocabulary a space is U+0120,
  // by SentencePiece U+2581 and a byte <0x0A>. A token of bytes() is its one byte.
  std::optional<std::int64_t> token_id(std::string_view token) const;

  // The token that starts, and that ends, a sequence; empty where nothing names one.
  std::optional<std::int64_t> bos_token_id() const;
  std::optional<std::int64_t> eos_token_id() const;

 private:
  friend class StreamDecoder;
  explicit Tokenizer(std::shared_ptr<const Pipeline> pipeline);

  std::shared_ptr<const Pipeline> pipeline_;
};

// Decodes token by token: what push and finish return, joined, is what decode gives for all ids,
// and each part is valid UTF-8: bytes are held back until it is certain what they are.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens = true);
  StreamDecoder(StreamDecoder&& other) noexcept;
  StreamDecoder& operator=(StreamDecoder&& other) noexcept;
  ~StreamDecoder();

  // Passes over ids whose text is there already, such as a prompt's, so that what follows goes on
  // from them: vocabularies by SentencePiece take the space away that a text, as such, begins with.
  void skip(std::span<const std::int64_t> ids);

  // The text that this id completes; often empty.
  std::string push(std::int64_t id);

  // The rest, after the last id: U+FFFD for a character that remained incomplete. Then a new text
  // may start.
  std::string finish();

 private:
  std::unique_ptr<PieceDecoder> decoder_;
};

}  // namespace flashmha::text
