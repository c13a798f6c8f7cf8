#include "io/json.h"

#include <functional>
#include <limits>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/check.h"
#include "io/file.h"

namespace flashmha::io {
namespace {

constexpr std::size_t kMostQuoted = 120;

// Names a key of a text in which some object has one twice.
[[noreturn]] void refuse_repeated_key(std::string_view text, const std::string& where) {
  std::vector<std::unordered_set<std::string>> keys;  // of the objects that are open
  std::string repeated;
  const auto look = [&](int /*depth*/, Json::parse_event_t event, const Json& parsed) {
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key && repeated.empty()) {
      const std::string& name = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(name).second) repeated = name;
    }
    return true;
  };
  const Json again = Json::parse(text, look);
  fail(ErrorCode::invalid_argument, "{}: an object has the key {} twice", where, quote(repeated));
}

// Looks at every step of the parser: throws where a limit or a rule is broken.
class Guard {
 public:
  Guard(const std::string& where, const JsonLimits& limits) : where_(where), limits_(limits) {}

  using Event = Json::parse_event_t;

  bool operator()(int depth, Event event, const Json& parsed) {
    if (event == Event::object_start || event == Event::array_start) {
      check(depth < limits_.max_depth, "{}: nested more than {} levels deep", where_,
            limits_.max_depth);
    }
    if (event == Event::object_start) num_keys_.push_back(0);
    if (event == Event::key) ++num_keys_.back();
    if (event == Event::object_end) {
      has_repeated_key_ = has_repeated_key_ || parsed.size() != num_keys_.back();
      num_keys_.pop_back();
    }
    if (event == Event::object_start || event == Event::array_start || event == Event::value)
      ++num_values_;
    check(num_values_ <= limits_.max_values, "{}: more than {} values", where_, limits_.max_values);
    return true;
  }

  bool has_repeated_key() const { return has_repeated_key_; }

 private:
  const std::string& where_;
  const JsonLimits& limits_;
  std::vector<std::size_t> num_keys_;  // of the objects that are open
  std::size_t num_values_ = 0;
  bool has_repeated_key_ = false;
};

// The library's sentence without its "[json.exception.parse_error.101] ".
std::string reason(const Json::exception& error) {
  const std::string_view text = error.what();
  const std::size_t end = text.find("] ");
  return quote(end == std::string_view::npos ? text : text.substr(end + 2));
}

}  // namespace

Json parse_json(std::string_view text, const std::string& where, const JsonLimits& limits) {
  check(text.size() <= limits.max_bytes, "{}: at most {} bytes of JSON are read; got {}", where,
        limits.max_bytes, text.size());
  Guard guard(where, limits);
  try {
    Json result = Json::parse(text, std::ref(guard));
    if (guard.has_repeated_key()) refuse_repeated_key(text, where);
    return result;
  } catch (const Json::exception& error) {
    fail(ErrorCode::invalid_argument, "{}: not JSON: {}", where, reason(error));
  }
}

Json read_json_file(const std::string& path, const std::string& where, const JsonLimits& limits) {
  return parse_json(read_text_file(path, limits.max_bytes), where, limits);
}

std::string quote(std::string_view text) {
  std::string result = "'";
  for (const char c : text.substr(0, kMostQuoted)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      result += fmt::format("\\x{:02x}", byte);
    } else {
      result += c;
    }
  }
  return result + (text.size() > kMostQuoted ? "...'" : "'");
}

JsonObject::JsonObject(const Json& value, std::string where)
    : value_(&value), where_(std::move(where)) {
  check(value.is_object(), "{}: must be a JSON object; got {}", where_, value.type_name());
}

bool JsonObject::has(const std::string& key) const {
  const auto found = value_->find(key);
  return found != value_->end() && !found->is_null();
}

const Json& JsonObject::at(const std::string& key) const {
  check(has(key), "{}: {} is missing", where_, field(key));
  return *value_->find(key);
}

std::int64_t JsonObject::integer(const std::string& key) const {
  const Json& value = at(key);
  // Unsigned numbers beyond int64 would come out negative.
  const bool fits = !value.is_number_unsigned() ||
                    value.get<std::uint64_t>() <=
                        static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  if (!value.is_number_integer() || !fits) refuse(key, "must be an integer of 64 bits");
  return value.get<std::int64_t>();
}

double JsonObject::number(const std::string& key) const {
  if (!at(key).is_number()) refuse(key, "must be a number");
  return at(key).get<double>();
}

bool JsonObject::boolean(const std::string& key) const {
  if (!at(key).is_boolean()) refuse(key, "must be true or false");
  return at(key).get<bool>();
}

std::string JsonObject::text(const std::string& key) const {
  if (!at(key).is_string()) refuse(key, "must be a string");
  return at(key).get<std::string>();
}

const Json& JsonObject::array(const std::string& key) const {
  if (!at(key).is_array()) refuse(key, "must be an array");
  return at(key);
}

JsonObject JsonObject::object(const std::string& key) const {
  if (!at(key).is_object()) refuse(key, "must be an object");
  JsonObject inner(at(key), where_);
  inner.path_ = field(key) + ".";
  return inner;
}

std::int64_t JsonObject::integer(const std::string& key, std::int64_t otherwise) const {
  return has(key) ? integer(key) : otherwise;
}

double JsonObject::number(const std::string& key, double otherwise) const {
  return has(key) ? number(key) : otherwise;
}

bool JsonObject::boolean(const std::string& key, bool otherwise) const {
  return has(key) ? boolean(key) : otherwise;
}

std::string JsonObject::text(const std::string& key, const std::string& otherwise) const {
  return has(key) ? text(key) : otherwise;
}

void JsonObject::refuse(const std::string& key, std::string_view rule) const {
  fail(ErrorCode::invalid_argument, "{}: {} {}; got {}", where_, field(key), rule,
       quote(at(key).dump(-1, ' ', false, Json::error_handler_t::replace)));
}

}  // namespace flashmha::io
