// error: has no non-static data member named 'is_causal'
// Options that do not exist are not ignored.
#include <flashmha/flashmha.h>

const flashmha::AttentionOptions options{.is_causal = true};
