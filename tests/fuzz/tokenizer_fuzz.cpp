// A tokenizer.json, up to its last brace, and a text for it, the rest of the input.
#include "flashmha/tokenizer.h"

#include "tests/fuzz/fuzz.h"

namespace flashmha {
namespace {

void try_text(const text::Tokenizer& tokenizer, std::string_view text) {
  const std::vector<std::int64_t> ids = tokenizer.encode(text);
  for (const std::int64_t id : ids)
    fuzz::require(id >= 0 && id < tokenizer.vocab_size());
  text::StreamDecoder stream(tokenizer);
  std::string streamed;
  for (const std::int64_t id : ids)
    streamed += stream.push(id);
  streamed += stream.finish();
  fuzz::require(streamed == tokenizer.decode(ids));
}

}  // namespace
}  // namespace flashmha

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace flashmha;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::size_t end = bytes.rfind('}') + 1;  // 0 if there is none
  fuzz::accepts([&] {
    const auto tokenizer = text::Tokenizer::from_json(bytes.substr(0, end));
    try_text(tokenizer, bytes.substr(end));
    try_text(tokenizer,
             "It's 3 o'clock,\n\n  안녕 \xf0\x9f\x98\x80 e\xcc\x81 \xff\xe2\x82 <|endoftext|>");
  });
  return 0;
}
