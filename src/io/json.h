// JSON of files that somebody else wrote: limits first, then fields by name and type, with errors
// that say which field of which file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace flashmha::io {

using Json = nlohmann::json;

// What bounds the memory of a parsed text, whatever it says.
struct JsonLimits {
  std::size_t max_bytes = std::size_t{100} << 20;  // of the file
  std::size_t max_values = 4'000'000;              // numbers, strings, objects, ...
  int max_depth = 32;                              // objects and arrays inside each other
};

// `where` begins the messages of all errors: "[function] file". All functions throw
// invalid_argument for what is not as it should be.

// Refuses invalid UTF-8, a key that an object has twice, and what is beyond the limits.
Json parse_json(std::string_view text, const std::string& where, const JsonLimits& limits = {});

// read_text_file and parse_json.
Json read_json_file(const std::string& path, const std::string& where,
                    const JsonLimits& limits = {});

// Text of a file in an error message: in quotes, cut short, without control characters.
std::string quote(std::string_view text);

// An object and its fields. Refers to the value, which must live longer. A field that is null
// counts as missing. Without `otherwise` a missing field is an error.
class JsonObject {
 public:
  JsonObject(const Json& value, std::string where);

  const Json& value() const { return *value_; }
  bool has(const std::string& key) const;
  const Json& at(const std::string& key) const;

  std::int64_t integer(const std::string& key) const;
  std::int64_t integer(const std::string& key, std::int64_t otherwise) const;
  double number(const std::string& key) const;
  double number(const std::string& key, double otherwise) const;
  bool boolean(const std::string& key) const;
  bool boolean(const std::string& key, bool otherwise) const;
  std::string text(const std::string& key) const;
  std::string text(const std::string& key, const std::string& otherwise) const;
  const Json& array(const std::string& key) const;
  JsonObject object(const std::string& key) const;

  // Throws invalid_argument: "WHERE: KEY RULE; got VALUE".
  [[noreturn]] void refuse(const std::string& key, std::string_view rule) const;
  // "outer.inner": how messages name a field.
  std::string field(const std::string& key) const { return path_ + key; }
  const std::string& where() const { return where_; }

 private:
  const Json* value_;
  std::string where_;
  std::string path_;  // "" or "outer."
};

}  // namespace flashmha::io
