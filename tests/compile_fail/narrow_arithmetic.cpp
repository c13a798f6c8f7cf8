// error: no match for 'operator+'
// Arithmetic happens in float32: convert first.
#include <flashmha/flashmha.h>

auto add(flashmha::Float16 a, flashmha::Float16 b) {
  return a + b;
}
