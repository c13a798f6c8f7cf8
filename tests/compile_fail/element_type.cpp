// error: unsupported_element_type
// char is no element type of tensors.
#include <flashmha/flashmha.h>

char text[4] = {'a', 'b', 'c', 'd'};
const flashmha::TensorView view = flashmha::view_of(text, {4});
