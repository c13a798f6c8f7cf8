#include "text/regex.h"

#include <array>
#include <utility>

#include "core/check.h"
#include "io/json.h"
#include "text/oniguruma.h"
#include "text/utf8.h"

namespace flashmha::text {
namespace {

constexpr std::size_t kMaxPatternBytes = 16384;

// The steps back that one search may take: a pattern that is linear in the text needs a few for
// each byte.
unsigned long retry_limit(std::size_t text_bytes) {
  return 10'000 + 100 * text_bytes;
}

std::string message_of(int error, OnigErrorInfo* info) {
  std::array<OnigUChar, ONIG_MAX_ERROR_MESSAGE_LEN> text{};
  const auto error_text = oniguruma().error_text;
  const int length =
      info == nullptr ? error_text(text.data(), error) : error_text(text.data(), error, info);
  return {reinterpret_cast<const char*>(text.data()), static_cast<std::size_t>(length)};
}

const OnigUChar* begin_of(std::string_view text) {
  return reinterpret_cast<const OnigUChar*>(text.data());
}

struct Release {
  void operator()(OnigRegion* region) const { oniguruma().region_free(region, 1); }
  void operator()(OnigMatchParam* param) const { oniguruma().free_match_param(param); }
};
using Region = std::unique_ptr<OnigRegion, Release>;
using MatchParam = std::unique_ptr<OnigMatchParam, Release>;

}  // namespace

struct Regex::Compiled {
  Compiled(const std::string& pattern, const std::string& where) {
    const Oniguruma& onig = oniguruma();
    OnigErrorInfo info{};
    const int status = onig.compile(&regex, begin_of(pattern), begin_of(pattern) + pattern.size(),
                                    ONIG_OPTION_NONE, onig.utf8, onig.syntax, &info);
    check(status == ONIG_NORMAL, "{}: {} is no regular expression: {}", where, io::quote(pattern),
          message_of(status, &info));
  }
  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;
  ~Compiled() { oniguruma().free(regex); }

  regex_t* regex = nullptr;
};

Regex::Regex(std::string pattern, const std::string& where) : pattern_(std::move(pattern)) {
  check(pattern_.size() <= kMaxPatternBytes, "{}: a pattern has at most {} bytes; got {}", where,
        kMaxPatternBytes, pattern_.size());
  compiled_ = std::make_shared<Compiled>(pattern_, where);
}

std::vector<Range> Regex::find_all(std::string_view text) const {
  const Oniguruma& onig = oniguruma();
  const Region region(onig.region_new());
  const MatchParam param(onig.new_match_param());
  onig.initialize_match_param(param.get());
  const OnigUChar* begin = begin_of(text);
  const OnigUChar* end = begin + text.size();
  std::vector<Range> matches;
  std::size_t position = 0;
  while (position <= text.size()) {
    const unsigned long limit = retry_limit(text.size() - position);
    onig.set_retry_limit_in_match(param.get(), limit);
    onig.set_retry_limit_in_search(param.get(), limit);
    const int found = onig.search(compiled_->regex, begin, end, begin + position, end, region.get(),
                                  ONIG_OPTION_NONE, param.get());
    if (found == ONIG_MISMATCH) break;
    check(found >= 0, "[Tokenizer::encode] the pattern {} gives up after {} bytes: {}",
          io::quote(pattern_), position, message_of(found, nullptr));
    const auto match_begin = static_cast<std::size_t>(region->beg[0]);
    const auto match_end = static_cast<std::size_t>(region->end[0]);
    if (match_begin == match_end && !matches.empty() && matches.back().end == match_end) {
      if (position == text.size()) break;
      position += first_char(text.substr(position)).length;
      continue;
    }
    matches.push_back({match_begin, match_end});
    position = match_end;
  }
  return matches;
}

}  // namespace flashmha::text
