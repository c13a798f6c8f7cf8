// error: use of deleted function 'flashmha::Tensor::Tensor(const flashmha::Tensor&)'
// Copies cost bytes, so they are spelled clone().
#include <flashmha/flashmha.h>

flashmha::Tensor copy_tensor(const flashmha::Tensor& tensor) {
  return tensor;
}
