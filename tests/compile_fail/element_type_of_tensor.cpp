// error: unsupported_element_type
// Neither is an unsigned number.
#include <flashmha/flashmha.h>

const flashmha::Tensor tensor = flashmha::Tensor::from<unsigned>({1u, 2u}, {2});
