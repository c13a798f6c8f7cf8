// A file of its own: oniguruma.h and the C library's regex.h, which GoogleTest includes, define the
// same names.
#include "text/oniguruma.h"

namespace flashmha::text {

void load_library(const char* name) {
  load_oniguruma(name);
}

}  // namespace flashmha::text
