// Oniguruma's functions, loaded when the first pattern is compiled.
//
// It is not linked: libonig also exports regcomp and regexec, with other structures than those of
// the C library, and would put them in the place of these in every program that links FlashMHA.
#pragma once

#include <oniguruma.h>

namespace flashmha::text {

struct Oniguruma {
  OnigEncoding utf8;
  OnigSyntaxType* syntax;
  decltype(&onig_new) compile;
  decltype(&onig_free) free;
  decltype(&onig_region_new) region_new;
  decltype(&onig_region_free) region_free;
  decltype(&onig_new_match_param) new_match_param;
  decltype(&onig_free_match_param) free_match_param;
  decltype(&onig_initialize_match_param) initialize_match_param;
  decltype(&onig_set_retry_limit_in_match_of_match_param) set_retry_limit_in_match;
  decltype(&onig_set_retry_limit_in_search_of_match_param) set_retry_limit_in_search;
  decltype(&onig_search_with_param) search;
  decltype(&onig_error_code_to_str) error_text;
};

// Throws unsupported where the library is not installed.
const Oniguruma& oniguruma();

// The functions of a shared library of that name.
Oniguruma load_oniguruma(const char* library);

}  // namespace flashmha::text
