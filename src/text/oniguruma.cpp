#include "text/oniguruma.h"

#include <dlfcn.h>

#include "core/check.h"

namespace flashmha::text {
namespace {

// An open shared library. Never closed: it serves the process to its end.
class Library {
 public:
  explicit Library(const char* name) : name_(name), handle_(dlopen(name, RTLD_NOW | RTLD_LOCAL)) {
    if (handle_ != nullptr) return;
    fail(ErrorCode::unsupported,
         "[Tokenizer] tokenizer.json needs the library Oniguruma (Debian: libonig5): {}",
         dlerror());
  }

  template <class Pointer>
  void find(const char* name, Pointer& pointer) const {
    void* const symbol = dlsym(handle_, name);
    if (symbol == nullptr) {
      fail(ErrorCode::unsupported, "[Tokenizer] the library {} has no {}", name_, name);
    }
    pointer = reinterpret_cast<Pointer>(symbol);
  }

 private:
  const char* name_;
  void* handle_;
};

}  // namespace

Oniguruma load_oniguruma(const char* name) {
  const Library library(name);
  Oniguruma functions{};
  library.find("OnigEncodingUTF8", functions.utf8);
  OnigSyntaxType** default_syntax = nullptr;
  library.find("OnigDefaultSyntax", default_syntax);
  functions.syntax = *default_syntax;
  library.find("onig_new", functions.compile);
  library.find("onig_free", functions.free);
  library.find("onig_region_new", functions.region_new);
  library.find("onig_region_free", functions.region_free);
  library.find("onig_new_match_param", functions.new_match_param);
  library.find("onig_free_match_param", functions.free_match_param);
  library.find("onig_initialize_match_param", functions.initialize_match_param);
  library.find("onig_set_retry_limit_in_match_of_match_param", functions.set_retry_limit_in_match);
  library.find("onig_set_retry_limit_in_search_of_match_param",
               functions.set_retry_limit_in_search);
  library.find("onig_search_with_param", functions.search);
  library.find("onig_error_code_to_str", functions.error_text);
  decltype(&onig_initialize) initialize = nullptr;
  library.find("onig_initialize", initialize);
  OnigEncoding encodings[] = {functions.utf8};
  const int status = initialize(encodings, 1);
  check(status == ONIG_NORMAL, "[Tokenizer] Oniguruma does not start: error {}", status);
  return functions;
}

const Oniguruma& oniguruma() {
  static const Oniguruma functions = load_oniguruma(FLASHMHA_ONIGURUMA);
  return functions;
}

}  // namespace flashmha::text
