#include "text/tokenizer_json.h"

#include <algorithm>
#include <utility>

#include "core/check.h"
#include "text/byte_alphabet.h"
#include "text/utf8.h"

namespace flashmha::text {
namespace {

using io::Json;
using io::JsonObject;

constexpr std::int64_t kMaxIds = std::int64_t{1} << 22;
constexpr std::size_t kMaxAddedBytes = 1024;  // of one added token

// What object[key] is, null if it is missing.
const Json& component(const JsonObject& object, const std::string& key) {
  static const Json null;
  return object.has(key) ? object.at(key) : null;
}

void add_token(const JsonObject& object, const std::string& name, std::int64_t id, Pipeline& result,
               std::vector<bool>& taken) {
  if (id < 0 || id >= kMaxIds) {
    fail(ErrorCode::invalid_argument, "{}: the id of {} must be in [0, {}); got {}", object.where(),
         io::quote(name), kMaxIds, id);
  }
  const auto index = static_cast<std::size_t>(id);
  if (index >= result.tokens.size()) {
    result.tokens.resize(index + 1);
    taken.resize(index + 1);
  }
  if (taken[index]) {
    fail(ErrorCode::invalid_argument, "{}: two tokens have the id {}; the second is {}",
         object.where(), id, io::quote(name));
  }
  taken[index] = true;
  result.tokens[index].text = result.text_of(name);
  result.ids.add(name, static_cast<std::uint32_t>(id));
}

std::vector<bool> read_vocabulary(const JsonObject& model, Pipeline& result) {
  std::vector<bool> taken;
  const JsonObject vocabulary = model.object("vocab");
  result.ids.reserve(vocabulary.value().size());
  result.tokens.reserve(vocabulary.value().size());
  for (const auto& [name, id] : vocabulary.value().get_ref<const Json::object_t&>()) {
    if (!id.is_number_unsigned()) vocabulary.refuse(name, "must be an integer from 0 on");
    add_token(model, name, id.get<std::int64_t>(), result, taken);
  }
  return taken;
}

// "a b" or ["a", "b"].
std::pair<std::string_view, std::string_view> sides_of(const JsonObject& model, const Json& merge,
                                                       std::size_t rank) {
  if (merge.is_string()) {
    const std::string_view text = merge.get_ref<const std::string&>();
    const std::size_t space = text.find(' ');
    if (space != std::string_view::npos && text.find(' ', space + 1) == std::string_view::npos) {
      return {text.substr(0, space), text.substr(space + 1)};
    }
  } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
             merge[1].is_string()) {
    return {merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>()};
  }
  fail(ErrorCode::invalid_argument,
       R"({}: {}[{}] must be "left right" or ["left", "right"]; got {})", model.where(),
       model.field("merges"), rank,
       io::quote(merge.dump(-1, ' ', false, Json::error_handler_t::replace)));
}

std::vector<Merge> read_merges(const JsonObject& model, const TokenTable& ids) {
  const Json& list = model.array("merges");
  std::vector<Merge> merges;
  merges.reserve(list.size());
  const auto id_of = [&](std::string_view token) {
    const std::optional<std::uint32_t> id = ids.find(token);
    if (!id) {
      fail(ErrorCode::invalid_argument, "{}: {}[{}] needs the token {}, which {} does not have",
           model.where(), model.field("merges"), merges.size(), io::quote(token),
           model.field("vocab"));
    }
    return *id;
  };
  std::string merged;
  for (const Json& item : list) {
    const bool is_header =
        item.is_string() && item.get_ref<const std::string&>().starts_with("#version");
    if (is_header) continue;  // the first line of a merges.txt
    const auto [left, right] = sides_of(model, item, merges.size());
    merged.assign(left).append(right);
    merges.push_back({id_of(left), id_of(right), id_of(merged)});
  }
  return merges;
}

void expect_empty(const JsonObject& model, const std::string& key) {
  if (!model.text(key, "").empty()) refuse_unsupported(model, key, "empty");
}

// The vocabulary by what its tokens stand for.
TokenTable read_texts(const JsonObject& vocabulary, Unit unit) {
  TokenTable texts;
  texts.reserve(vocabulary.value().size());
  for (const auto& [name, id] : vocabulary.value().get_ref<const Json::object_t&>()) {
    const std::optional<std::string> text = unit == Unit::byte ? bytes_of_token(name) : name;
    if (text) texts.add(*text, id.get<std::uint32_t>());
  }
  return texts;
}

Symbols read_symbols(const JsonObject& vocabulary, Unit unit, const Unknown& unknown) {
  Symbols symbols(unit, unknown);
  for (const auto& [name, value] : vocabulary.value().get_ref<const Json::object_t&>()) {
    const auto id = value.get<std::uint32_t>();
    if (unit == Unit::byte) {
      const std::optional<std::string> bytes = bytes_of_token(name);
      if (bytes && bytes->size() == 1) symbols.add_byte(static_cast<std::uint8_t>((*bytes)[0]), id);
    } else if (!name.empty() && first_char(name).length == name.size()) {
      symbols.add_character(first_char(name).code, id);
    }
  }
  return symbols;
}

void add_bytes(const TokenTable& ids, Symbols& symbols) {
  for (unsigned byte = 0; byte < 256; ++byte) {
    const auto value = static_cast<std::uint8_t>(byte);
    const std::optional<std::uint32_t> id = ids.find(token_of_byte(value));
    if (id) symbols.add_byte(value, *id);
  }
}

bool merges_stay_in_words(const std::vector<Merge>& merges, const Unknown& unknown,
                          const Pipeline& pipeline) {
  const auto text_of = [&](std::uint32_t id) -> const std::string& {
    return pipeline.tokens[id].text;
  };
  // Unknown characters must not look like a mark, nor a mark be one of them.
  if (!pipeline.ids.find(kWordMark) || (unknown.id && text_of(*unknown.id).ends_with(kWordMark))) {
    return false;
  }
  return std::none_of(merges.begin(), merges.end(),
                      [&](const Merge& merge) { return leaves_word(text_of(merge.merged)); });
}

std::vector<bool> read_model(const JsonObject& model, Pipeline& result) {
  expect_fields(model,
                {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                 "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
  if (model.text("type", "BPE") != "BPE") refuse_unsupported(model, "type", "BPE");
  if (model.number("dropout", 0.0) != 0.0) refuse_unsupported(model, "dropout", "null or 0");
  expect_empty(model, "continuing_subword_prefix");
  expect_empty(model, "end_of_word_suffix");
  const bool byte_fallback = model.boolean("byte_fallback", false);
  if (byte_fallback && result.unit == Unit::byte) {
    refuse_unsupported(model, "byte_fallback", "false with ByteLevel in pre_tokenizer");
  }

  std::vector<bool> taken = read_vocabulary(model, result);
  const std::vector<Merge> merges = read_merges(model, result.ids);
  Unknown unknown{.fuse = model.boolean("fuse_unk", false)};
  if (model.has("unk_token")) {
    unknown.id = result.ids.find(model.text("unk_token"));
    if (!unknown.id) model.refuse("unk_token", "must be a token of vocab");
  }
  const JsonObject vocabulary = model.object("vocab");
  Symbols symbols = read_symbols(vocabulary, result.unit, unknown);
  if (byte_fallback) add_bytes(result.ids, symbols);
  BpeOptions options;
  if (model.boolean("ignore_merges", false)) {
    options.whole_pieces = read_texts(vocabulary, result.unit);
  } else if (result.unit == Unit::character) {
    options.merges_stay_in_words = merges_stay_in_words(merges, unknown, result);
  }
  result.model = Bpe(std::move(symbols), merges, std::move(options));
  return taken;
}

AddedToken read_added_token(const JsonObject& object) {
  expect_fields(object,
                {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
  AddedToken token{.content = object.text("content"),
                   .special = object.boolean("special", false),
                   .single_word = object.boolean("single_word", false),
                   .lstrip = object.boolean("lstrip", false),
                   .rstrip = object.boolean("rstrip", false)};
  token.normalized = object.boolean("normalized", !token.special);
  const std::int64_t id = object.integer("id");
  if (id < 0 || id >= kMaxIds) object.refuse("id", fmt::format("must be in [0, {})", kMaxIds));
  token.id = static_cast<std::uint32_t>(id);
  check(token.content.size() <= kMaxAddedBytes, "{}: content has at most {} bytes; got {}",
        object.where(), kMaxAddedBytes, token.content.size());
  return token;
}

void read_added_tokens(const JsonObject& root, Pipeline& result, std::vector<bool>& taken) {
  if (!root.has("added_tokens")) return;
  const Json& list = root.array("added_tokens");
  std::vector<AddedToken> tokens;
  for (std::size_t i = 0; i < list.size(); ++i) {
    const JsonObject object(list[i], fmt::format("{}: added_tokens[{}]", root.where(), i));
    AddedToken token = read_added_token(object);
    const std::optional<std::uint32_t> known = result.ids.find(token.content);
    if (!known) {
      add_token(object, token.content, token.id, result, taken);
    } else if (*known != token.id) {
      object.refuse("id", fmt::format("must be {}, the id of the same token elsewhere", *known));
    }
    if (token.special) result.tokens[token.id].special = true;
    tokens.push_back(std::move(token));
  }
  // Of equal patterns the first counts, and special ones come first.
  for (const bool special : {true, false}) {
    for (const AddedToken& token : tokens) {
      if (token.special != special || token.content.empty()) continue;
      if (!token.normalized) {
        result.added_tokens.add(token.content, token);
        continue;
      }
      const std::string pattern = result.normalizer.normalize({token.content});
      if (pattern.empty()) continue;
      result.normalized_added_tokens.add(pattern, token);
      result.tokens[token.id].text = result.text_of(pattern);
    }
  }
}

}  // namespace

Pipeline read_pipeline(const Json& json, const std::string& where) {
  const JsonObject root(json, where);
  expect_fields(root, {"version", "added_tokens", "normalizer", "pre_tokenizer", "model",
                       "post_processor", "decoder"});
  if (root.text("version", "1.0") != "1.0") refuse_unsupported(root, "version", "1.0");
  Pipeline result;
  const auto named = [&](const char* key) { return where + ": " + key; };
  result.normalizer = read_normalizer(component(root, "normalizer"), named("normalizer"));
  read_pre_tokenizer(component(root, "pre_tokenizer"), named("pre_tokenizer"), result);
  result.decoder = read_decoder(component(root, "decoder"), named("decoder"), result.unit);
  std::vector<bool> taken = read_model(root.object("model"), result);
  read_added_tokens(root, result, taken);
  read_post_processor(component(root, "post_processor"), named("post_processor"), result);
  return result;
}

}  // namespace flashmha::text
