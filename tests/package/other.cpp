#include <flashmha/flashmha.h>

#include <string_view>

// Errors cross the border of the library as its own type, with the values found.
bool refuses_bad_input() {
  const auto q = flashmha::Tensor::zeros({1, 2, 3, 8}, flashmha::DType::float32);
  const auto k = flashmha::Tensor::zeros({1, 2, 2, 8}, flashmha::DType::float32);
  try {
    flashmha::flash_attn_func(q, k, k);
  } catch (const flashmha::Error& error) {
    return error.code() == flashmha::ErrorCode::invalid_argument &&
           std::string_view(error.what()).find("num_heads_q (3)") != std::string_view::npos;
  }
  return false;
}

bool tokenizes() {
  const auto tokenizer = flashmha::text::Tokenizer::bytes();
  return tokenizer.decode(tokenizer.encode("FlashMHA")) == "FlashMHA";
}
