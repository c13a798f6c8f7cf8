// error: use of deleted function 'flashmha::Tensor& flashmha::Tensor::operator=
// Neither by assignment.
#include <flashmha/flashmha.h>

void assign(flashmha::Tensor& to, const flashmha::Tensor& from) {
  to = from;
}
