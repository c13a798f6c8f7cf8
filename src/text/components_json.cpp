// Normalizer, pre_tokenizer, post_processor and decoder of tokenizer.json.
#include <algorithm>
#include <utility>

#include "core/check.h"
#include "text/tokenizer_json.h"
#include "text/utf8.h"

namespace flashmha::text {
namespace {

using io::Json;
using io::JsonObject;

// GPT-2's pattern, which ByteLevel has built in: contractions, then letters, digits or other
// characters with at most one space before them, then white space.
constexpr const char* kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Calls visit(component, where) for a component, or for each in a Sequence of them; null is none.
template <class Visit>
void for_each_component(const Json& json, const std::string& where, const std::string& list,
                        Visit&& visit) {
  if (json.is_null()) return;
  const JsonObject object(json, where);
  if (object.text("type") != "Sequence") return visit(object, where);
  expect_fields(object, {"type", list});
  const Json& items = object.array(list);
  for (std::size_t i = 0; i < items.size(); ++i) {
    for_each_component(items[i], fmt::format("{}.{}[{}]", where, list, i), list, visit);
  }
}

Behavior read_behavior(const JsonObject& object) {
  const std::string name = object.text("behavior");
  if (name == "Removed") return Behavior::removed;
  if (name == "Isolated") return Behavior::isolated;
  if (name == "MergedWithPrevious") return Behavior::merged_with_previous;
  if (name == "MergedWithNext") return Behavior::merged_with_next;
  if (name == "Contiguous") return Behavior::contiguous;
  refuse_unsupported(object, "behavior",
                     "Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous");
}

// How many bytes the steps of a normalizer, or of a decoder, may make of one: files exist to be
// written whose texts would fill any memory.
constexpr std::size_t kMaxGrowth = 1024;

// Counts a step that puts object[key] into a text.
void limit_growth(const JsonObject& object, const std::string& key, std::size_t& growth) {
  growth *= object.text(key).size() + 1;
  if (growth > kMaxGrowth) {
    object.refuse(key, fmt::format("must not make a text, with the steps before it, more than {} "
                                   "times as long",
                                   kMaxGrowth));
  }
}

// {"Regex": "..."} or {"String": "..."}.
Pattern read_pattern(const JsonObject& object, const std::string& where) {
  const JsonObject pattern = object.object("pattern");
  expect_fields(pattern, {"Regex", "String"});
  const bool is_regex = pattern.has("Regex");
  if (is_regex == pattern.has("String"))
    object.refuse("pattern", "must be one Regex or one String");
  std::string text = pattern.text(is_regex ? "Regex" : "String");
  if (text.empty()) object.refuse("pattern", "must not be empty");
  if (is_regex) return Regex(std::move(text), where + ".pattern");
  return text;
}

Split read_split(const JsonObject& object, const std::string& where) {
  expect_fields(object, {"type", "pattern", "behavior", "invert"});
  return {read_pattern(object, where), read_behavior(object), object.boolean("invert", false)};
}

Replace read_replace(const JsonObject& object, const std::string& where, std::size_t& growth) {
  expect_fields(object, {"type", "pattern", "content"});
  limit_growth(object, "content", growth);
  return {read_pattern(object, where), object.text("content")};
}

std::string read_character(const JsonObject& object, const std::string& key) {
  std::string text = object.text(key);
  if (text.empty() || first_char(text).length != text.size()) {
    object.refuse(key, "must be one character");
  }
  return text;
}

// Of the pre-tokenizer and of the decoder, which may be the same. Older files write
// add_prefix_space instead of prepend_scheme, and the mark again as str_rep.
Metaspace read_metaspace(const JsonObject& object) {
  expect_fields(object,
                {"type", "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"});
  Metaspace result{.mark = read_character(object, "replacement"),
                   .split = object.boolean("split", true)};
  const std::string scheme = object.text("prepend_scheme", "always");
  if (scheme == "first") {
    result.prepend = Metaspace::Prepend::first;
  } else if (scheme == "never") {
    result.prepend = Metaspace::Prepend::never;
  } else if (scheme != "always") {
    refuse_unsupported(object, "prepend_scheme", "always, first, never");
  }
  if (!object.boolean("add_prefix_space", true) && scheme != "never") {
    object.refuse("add_prefix_space", "must be true unless prepend_scheme is never");
  }
  return result;
}

Decoder::Strip read_strip(const JsonObject& object, bool of_text) {
  expect_fields(object, {"type", "content", "start", "stop"});
  if (object.integer("stop", 0) != 0) refuse_unsupported(object, "stop", "0");
  const std::int64_t start = object.integer("start", 0);
  if (start < 0) object.refuse("start", "must not be negative");
  return {read_character(object, "content"), static_cast<std::size_t>(start), of_text};
}

void read_byte_level(const JsonObject& object, const std::string& where, PreTokenizer& result) {
  expect_fields(object, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
  if (object.boolean("add_prefix_space", true)) result.add(PrefixSpace{});
  if (object.boolean("use_regex", true)) {
    result.add(Split{Regex(kByteLevelPattern, where), Behavior::isolated, false});
  }
}

// Ids of one piece of a template, {"SpecialToken": {"id": name}}, from the table of its tokens.
std::vector<std::int64_t> read_special_token(const JsonObject& table, const std::string& name,
                                             const Pipeline& pipeline) {
  const JsonObject entry = table.object(name);
  std::vector<std::int64_t> result;
  for (const Json& id : entry.array("ids")) {
    check(id.is_number_unsigned() && id.get<std::uint64_t>() < pipeline.tokens.size(),
          "{}: {}.ids must be ids of tokens; got {}", table.where(), table.field(name), id.dump());
    result.push_back(id.get<std::int64_t>());
  }
  return result;
}

void read_template(const JsonObject& object, const std::string& where, Pipeline& pipeline) {
  expect_fields(object, {"type", "single", "pair", "special_tokens"});
  const Json& pieces = object.array("single");
  bool is_after_text = false;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const JsonObject piece(pieces[i], fmt::format("{}.single[{}]", where, i));
    expect_fields(piece, {"SpecialToken", "Sequence"});
    if (piece.has("Sequence")) {
      if (is_after_text || piece.object("Sequence").text("id") != "A") {
        refuse_unsupported(object, "single", "sequence A once");
      }
      is_after_text = true;
      continue;
    }
    const std::string name = piece.object("SpecialToken").text("id");
    const std::vector<std::int64_t> ids =
        read_special_token(object.object("special_tokens"), name, pipeline);
    std::vector<std::int64_t>& side = is_after_text ? pipeline.suffix : pipeline.prefix;
    side.insert(side.end(), ids.begin(), ids.end());
  }
  if (!is_after_text) refuse_unsupported(object, "single", "sequence A once");
}

}  // namespace

void refuse_unsupported(const JsonObject& object, const std::string& key,
                        const std::string& supported) {
  const std::string value = object.at(key).dump(-1, ' ', false, Json::error_handler_t::replace);
  fail(ErrorCode::unsupported, "{}: {} {} is not supported ({})", object.where(), object.field(key),
       io::quote(value), supported);
}

void expect_fields(const JsonObject& object, std::initializer_list<std::string_view> known) {
  for (const auto& [key, value] : object.value().items()) {
    const bool is_known = std::find(known.begin(), known.end(), key) != known.end();
    if (!is_known && !value.is_null()) {
      refuse_unsupported(object, key, fmt::format("fields: {}", fmt::join(known, ", ")));
    }
  }
}

Normalizer read_normalizer(const Json& json, const std::string& where) {
  Normalizer result;
  std::size_t growth = 1;
  for_each_component(json, where, "normalizers",
                     [&](const JsonObject& object, const std::string& here) {
                       const std::string type = object.text("type");
                       if (type == "NFC") {
                         expect_fields(object, {"type"});
                         result.add(Normalizer::Nfc{});
                       } else if (type == "Prepend") {
                         expect_fields(object, {"type", "prepend"});
                         limit_growth(object, "prepend", growth);
                         result.add(Normalizer::Prepend{object.text("prepend")});
                       } else if (type == "Replace") {
                         result.add(read_replace(object, here, growth));
                       } else {
                         refuse_unsupported(object, "type", "NFC, Prepend, Replace, Sequence");
                       }
                     });
  return result;
}

void read_pre_tokenizer(const Json& json, const std::string& where, Pipeline& pipeline) {
  PreTokenizer& result = pipeline.pre_tokenizer;
  bool has_byte_level = false;
  for_each_component(
      json, where, "pretokenizers", [&](const JsonObject& object, const std::string& here) {
        // What comes after it would see bytes in its alphabet instead of text.
        if (has_byte_level) refuse_unsupported(object, "type", "ByteLevel as the last, once");
        const std::string type = object.text("type");
        if (type == "Split") {
          result.add(read_split(object, here));
        } else if (type == "Digits") {
          expect_fields(object, {"type", "individual_digits"});
          const Digits digits{object.boolean("individual_digits", false)};
          const bool individual = digits.individual;
          result.add(Split{digits, individual ? Behavior::isolated : Behavior::contiguous, false});
        } else if (type == "ByteLevel") {
          read_byte_level(object, here, result);
          has_byte_level = true;
        } else if (type == "Metaspace") {
          result.add(read_metaspace(object));
        } else {
          refuse_unsupported(object, "type", "ByteLevel, Digits, Metaspace, Sequence, Split");
        }
      });
  pipeline.unit = has_byte_level ? Unit::byte : Unit::character;
}

Decoder read_decoder(const Json& json, const std::string& where, Unit unit) {
  constexpr const char* kSteps = "ByteFallback, Fuse, Metaspace, Replace, Sequence, Strip";
  Decoder result;
  std::size_t growth = 1;
  bool has_steps = false;
  bool is_fused = false;
  for_each_component(
      json, where, "decoders", [&](const JsonObject& object, const std::string& here) {
        const std::string type = object.text("type");
        if (unit == Unit::byte) {
          if (has_steps || type != "ByteLevel") {
            refuse_unsupported(object, "type", "ByteLevel, once, as in pre_tokenizer");
          }
          expect_fields(object, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
        } else if (type == "Strip") {
          result.add(read_strip(object, is_fused));
        } else if (is_fused) {
          refuse_unsupported(object, "type", "after Fuse: Strip");
        } else if (type == "Fuse" || type == "ByteFallback") {
          expect_fields(object, {"type"});
          is_fused = type == "Fuse";
          if (!is_fused) result.add(Decoder::ByteFallback{});
        } else if (type == "Replace") {
          result.add(read_replace(object, here, growth));
        } else if (type == "Metaspace") {
          const Metaspace metaspace = read_metaspace(object);
          const bool drops_first = metaspace.prepend != Metaspace::Prepend::never;
          result.add(Decoder::Metaspace{metaspace.mark, drops_first});
        } else {
          refuse_unsupported(object, "type",
                             fmt::format("without ByteLevel in pre_tokenizer: {}", kSteps));
        }
        has_steps = true;
      });
  if (!has_steps) {
    fail(ErrorCode::unsupported,
         "{}: null is not supported (ByteLevel where pre_tokenizer has it, or {})", where, kSteps);
  }
  return result;
}

void read_post_processor(const Json& json, const std::string& where, Pipeline& pipeline) {
  bool has_template = false;
  for_each_component(
      json, where, "processors", [&](const JsonObject& object, const std::string& here) {
        const std::string type = object.text("type");
        if (type == "ByteLevel") {  // trims the offsets that it gives to tokens; we give none
          return expect_fields(object, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
        }
        if (type != "TemplateProcessing" || has_template) {
          refuse_unsupported(object, "type", "ByteLevel, Sequence, TemplateProcessing once");
        }
        has_template = true;
        read_template(object, here, pipeline);
      });
}

}  // namespace flashmha::text
