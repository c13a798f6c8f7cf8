// error: initialization of reference of type 'const flashmha::AttentionOptions&'
// Options are a struct: a bare bool says nothing to a reader.
#include <flashmha/flashmha.h>

flashmha::AttentionResult attend(const flashmha::Tensor& q) {
  return flash_attn_func(q, q, q, true);
}
