// Normalizer, pre_tokenizer, post_processor and decoder of tokenizer.json.
#include <algorithm>
#include <utility>

#include "core/check.h"
#include "text/tokenizer_json.h"

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

Split read_split(const JsonObject& object, const std::string& where) {
  expect_fields(object, {"type", "pattern", "behavior", "invert"});
  const JsonObject pattern = object.object("pattern");
  expect_fields(pattern, {"Regex", "String"});
  const bool is_regex = pattern.has("Regex");
  if (is_regex == pattern.has("String"))
    object.refuse("pattern", "must be one Regex or one String");
  std::string text = pattern.text(is_regex ? "Regex" : "String");
  if (text.empty()) object.refuse("pattern", "must not be empty");
  const Behavior behavior = read_behavior(object);
  const bool invert = object.boolean("invert", false);
  if (is_regex) return {Regex(std::move(text), where + ".pattern"), behavior, invert};
  return {std::move(text), behavior, invert};
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
  for_each_component(json, where, "normalizers", [&](const JsonObject& object, const std::string&) {
    expect_fields(object, {"type"});
    if (object.text("type") != "NFC") refuse_unsupported(object, "type", "NFC, Sequence");
    result.add(Normalizer::Nfc{});
  });
  return result;
}

PreTokenizer read_pre_tokenizer(const Json& json, const std::string& where) {
  PreTokenizer result;
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
        } else {
          refuse_unsupported(object, "type", "ByteLevel, Digits, Sequence, Split");
        }
      });
  if (!has_byte_level) {
    fail(ErrorCode::unsupported, "{}: a tokenizer without ByteLevel is not supported; got {}",
         where, io::quote(json.dump(-1, ' ', false, Json::error_handler_t::replace)));
  }
  return result;
}

void expect_byte_level_decoder(const Json& json, const std::string& where) {
  bool has_byte_level = false;
  for_each_component(json, where, "decoders", [&](const JsonObject& object, const std::string&) {
    expect_fields(object, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
    if (has_byte_level || object.text("type") != "ByteLevel") {
      refuse_unsupported(object, "type", "ByteLevel, once");
    }
    has_byte_level = true;
  });
  if (!has_byte_level) {
    fail(ErrorCode::unsupported, "{}: null is not supported (ByteLevel)", where);
  }
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
