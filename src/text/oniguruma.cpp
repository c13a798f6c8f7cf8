#include "text/oniguruma.h"

#include <dlfcn.h>

#include "core/check.h"

namespace flashmha::text {
namespace {

void* open_library() {
  void* library = dlopen(FLASHMHA_ONIGURUMA, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    fail(ErrorCode::unsupported,
         "[Tokenizer] tokenizer.json needs the library Oniguruma (Debian: libonig5): {}",
         dlerror());
  }
  return library;
}

template <class Pointer>
void find(void* library, const char* name, Pointer& pointer) {
  void* const symbol = dlsym(library, name);
  check(symbol != nullptr, "[Tokenizer] {} has no {}", FLASHMHA_ONIGURUMA, name);
  pointer = reinterpret_cast<Pointer>(symbol);
}

Oniguruma load() {
  void* const library = open_library();
  Oniguruma functions{};
  find(library, "OnigEncodingUTF8", functions.utf8);
  OnigSyntaxType** default_syntax = nullptr;
  find(library, "OnigDefaultSyntax", default_syntax);
  functions.syntax = *default_syntax;
  find(library, "onig_new", functions.compile);
  find(library, "onig_free", functions.free);
  find(library, "onig_region_new", functions.region_new);
  find(library, "onig_region_free", functions.region_free);
  find(library, "onig_new_match_param", functions.new_match_param);
  find(library, "onig_free_match_param", functions.free_match_param);
  find(library, "onig_initialize_match_param", functions.initialize_match_param);
  find(library, "onig_set_retry_limit_in_match_of_match_param", functions.set_retry_limit_in_match);
  find(library, "onig_set_retry_limit_in_search_of_match_param",
       functions.set_retry_limit_in_search);
  find(library, "onig_search_with_param", functions.search);
  find(library, "onig_error_code_to_str", functions.error_text);
  decltype(&onig_initialize) initialize = nullptr;
  find(library, "onig_initialize", initialize);
  OnigEncoding encodings[] = {functions.utf8};
  const int status = initialize(encodings, 1);
  check(status == ONIG_NORMAL, "[Tokenizer] Oniguruma does not start: error {}", status);
  return functions;
}

}  // namespace

const Oniguruma& oniguruma() {
  static const Oniguruma functions = load();
  return functions;
}

}  // namespace flashmha::text
