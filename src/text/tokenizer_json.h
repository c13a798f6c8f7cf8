// tokenizer.json to a Pipeline.
#pragma once

#include <string>

#include "io/json.h"
#include "text/pipeline.h"

namespace flashmha::text {

// `where` begins the messages of errors. Throws invalid_argument for what contradicts itself and
// unsupported for what is not offered.
Pipeline read_pipeline(const io::Json& json, const std::string& where);

// Parts of it, in components_json.cpp.
Normalizer read_normalizer(const io::Json& json, const std::string& where);
// Fills pre_tokenizer and unit.
void read_pre_tokenizer(const io::Json& json, const std::string& where, Pipeline& pipeline);
Decoder read_decoder(const io::Json& json, const std::string& where, Unit unit);
// Fills prefix and suffix.
void read_post_processor(const io::Json& json, const std::string& where, Pipeline& pipeline);

// Throws unsupported: "WHERE: KEY VALUE is not supported (WHAT IS)".
[[noreturn]] void refuse_unsupported(const io::JsonObject& object, const std::string& key,
                                     const std::string& supported);
// Refuses fields that are not listed, with a value other than null.
void expect_fields(const io::JsonObject& object, std::initializer_list<std::string_view> known);

}  // namespace flashmha::text
