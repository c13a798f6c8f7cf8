// Train from zero: a small Llama that reads bytes learns to add, then continues sums.
#include <cstdio>
#include <string>
#include <vector>

#include "flashmha/generation.h"
#include "flashmha/tokenizer.h"
#include "flashmha/trainer.h"

using namespace flashmha;

namespace {

std::string question(int a, int b) {
  return std::to_string(a) + " + " + std::to_string(b) + " =";
}

model::ModelConfig small_config(const text::Tokenizer& tokenizer) {
  model::ModelConfig config = model::default_config();
  config.vocab_size = tokenizer.vocab_size();
  config.eos_token_ids = {*tokenizer.eos_token_id()};
  config.intermediate_size = 192;
  config.num_layers = 2;
  config.attention.hidden_size = 64;
  config.attention.num_heads = 4;
  config.attention.num_kv_heads = 2;
  config.attention.head_dim = 16;
  return config;
}

// Every sum is a document; none sees another, although many share a sequence.
train::PackedDataset sums(const text::Tokenizer& tokenizer) {
  train::Corpus corpus;
  for (int a = 0; a < 10; ++a) {
    for (int b = 0; b < 10; ++b) {
      std::vector<std::int64_t> document =
          tokenizer.encode(question(a, b) + " " + std::to_string(a + b));
      document.push_back(*tokenizer.eos_token_id());
      corpus.add(document);
    }
  }
  return {std::move(corpus), /*seq_length=*/128};
}

}  // namespace

int main() {
  const text::Tokenizer tokenizer = text::Tokenizer::bytes();
  const train::PackedDataset dataset = sums(tokenizer);
  model::CausalLM llama(small_config(tokenizer));
  llama.init_weights(/*seed=*/1);
  train::Trainer trainer(llama, dataset, /*evaluation=*/nullptr,
                         {.num_steps = 400, .batch_size = 4, .optimizer = {.learning_rate = 4e-3f}},
                         {.on_step = [](const train::StepRecord& record) {
                           if (record.step % 100 != 0) return;
                           std::printf("step %d  loss %.3f\n", int(record.step), *record.loss);
                         }});
  (void)trainer.run();

  std::vector<std::vector<std::int64_t>> prompts;
  prompts.reserve(10);
  for (int a = 0; a < 10; ++a)
    prompts.push_back(tokenizer.encode(question(a, 9 - a / 2)));
  const std::vector<model::Generated> answers = generate(
      llama, prompts, {.max_new_tokens = 8, .stop_token_ids = {*tokenizer.eos_token_id()}});
  int num_right = 0;
  for (int a = 0; a < 10; ++a) {
    const int b = 9 - a / 2;
    const std::string answer = tokenizer.decode(answers[static_cast<std::size_t>(a)].tokens);
    std::printf("%s%s\n", question(a, b).c_str(), answer.c_str());
    num_right += answer == " " + std::to_string(a + b) ? 1 : 0;
  }
  std::printf("%d of 10 sums right\n", num_right);
  return num_right >= 9 ? 0 : 1;
}
