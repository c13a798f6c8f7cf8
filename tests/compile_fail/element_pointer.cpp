// error: unsupported_element_type
#include <flashmha/flashmha.h>

short* elements(const flashmha::Tensor& tensor) {
  return tensor.as<short>();
}
