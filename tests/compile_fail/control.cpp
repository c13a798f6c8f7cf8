// compiles
// The same lines as in the other snippets, in their right form: proves that those fail for their
// own reason and not for a wrong include path.
#include <flashmha/flashmha.h>

#include <array>

flashmha::Tensor move_tensor(flashmha::Tensor tensor) {
  flashmha::Tensor copy = clone(tensor);
  return copy.defined() ? std::move(tensor) : std::move(copy);
}

flashmha::AttentionResult attend(const flashmha::Tensor& q) {
  return flash_attn_func(q, q, q, {.causal = true, .window_left = 128});
}

std::array<float, 4> numbers{1.0f, 2.0f, 3.0f, 4.0f};
const flashmha::TensorView view = flashmha::view_of(numbers.data(), {2, 2});
const flashmha::Tensor tensor = flashmha::Tensor::from<float>({1.0f, 2.0f}, {2});
const flashmha::BFloat16 narrow{1.5f};
