// A small Llama learns to copy: train it, then let it continue prompts through a KV cache.
#include <cstdio>

#include "flashmha/generation.h"
#include "flashmha/random.h"
#include "flashmha/training.h"

using namespace flashmha;

namespace {

constexpr std::int64_t kHalf = 6;  // a sequence is kHalf random tokens, then the same again

model::ModelConfig small_config() {
  model::ModelConfig config = model::default_config();
  config.vocab_size = 16;
  config.intermediate_size = 96;
  config.num_layers = 2;
  config.initializer_range = 0.1f;
  config.attention.hidden_size = 64;
  config.attention.num_heads = 4;
  config.attention.num_kv_heads = 2;
  config.attention.head_dim = 16;
  return config;
}

Tensor sequences(std::int64_t batch, std::uint64_t seed) {
  Tensor ids = Tensor::empty({batch, 2 * kHalf}, DType::int64);
  model::fill_integers(ids, seed, small_config().vocab_size);
  copy(ids.view().slice(1, 0, kHalf), ids.view().slice(1, kHalf, 2 * kHalf));
  return ids;
}

}  // namespace

int main() {
  model::CausalLM llama(small_config());
  llama.init_weights(/*seed=*/1);
  model::AdamW optimizer(llama, {.learning_rate = 3e-3f, .weight_decay = 0.01f});
  for (std::uint64_t step = 1; step <= 300; ++step) {
    const Tensor ids = sequences(16, step);
    const Tensor labels = clone(ids);  // only the second half can be known
    fill(labels.view().slice(1, 0, kHalf), static_cast<double>(model::kIgnoreIndex));
    const model::Loss loss = training_step(llama, optimizer, {.input_ids = ids}, labels);
    if (step % 100 == 0) std::printf("step %d  loss %.3f\n", int(step), loss.mean);
  }

  const Tensor ids = sequences(1, 0);
  const TensorView prompt = ids.view().slice(1, 0, kHalf + 1);
  nn::KVCaches caches = make_caches(llama.config(), model::CacheKind::dynamic_cache, 0);
  const Tensor tokens = generate(llama, prompt, {}, &caches, {.max_new_tokens = kHalf - 1});
  int num_right = 0;
  for (std::int64_t i = 0; i < tokens.numel(); ++i) {
    const std::int64_t token = tokens.as<std::int64_t>()[i];
    std::printf("%s%lld", i == kHalf ? " | " : " ", static_cast<long long>(token));
    num_right += token == ids.as<std::int64_t>()[i] ? 1 : 0;
  }
  std::printf("\n%d of %d tokens right\n", num_right, int(tokens.numel()));
  return num_right >= 11 ? 0 : 1;
}
