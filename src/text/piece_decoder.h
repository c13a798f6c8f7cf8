// Ids to text, one by one: what Tokenizer::decode and StreamDecoder share, so that they agree.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "text/pipeline.h"
#include "text/utf8.h"

namespace flashmha::text {

class PieceDecoder {
 public:
  PieceDecoder(std::shared_ptr<const Pipeline> pipeline, bool skip_special_tokens);

  // Append what is complete; what is held back; the same at the end of a text.
  void push(std::int64_t id, std::string& out);
  void flush(std::string& out);
  void finish(std::string& out);

 private:
  std::shared_ptr<const Pipeline> pipeline_;
  bool skip_special_tokens_;
  Decoder::States states_;  // of the pipeline's decoder
  Utf8Repair repair_;
};

}  // namespace flashmha::text
