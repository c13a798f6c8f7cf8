// Fine-tune: a model directory as Hugging Face's goes on learning from text of one's own.
//
//   fine_tune MODEL_DIR DATA OUTPUT
//
// The newest OUTPUT/checkpoint-STEP is a model directory again. Started a second time after an
// interruption, it goes on where it was.
#include <cstdio>
#include <string>
#include <vector>

#include "flashmha/checkpoint.h"
#include "flashmha/error.h"
#include "flashmha/tokenizer.h"
#include "flashmha/trainer.h"

using namespace flashmha;

namespace {

void fine_tune(const std::string& directory, const std::string& data, const std::string& output) {
  const text::Tokenizer tokenizer = text::Tokenizer::for_model(directory);
  const auto model = model::load_pretrained(directory);
  train::CorpusSplit split =
      split_corpus(train::read_corpus({{data}}, tokenizer), /*evaluation_fraction=*/0.1);
  const train::PackedDataset training(std::move(split.training), /*seq_length=*/256);
  const train::PackedDataset evaluation(std::move(split.evaluation), /*seq_length=*/256);

  train::Trainer trainer(*model, training, &evaluation,
                         {.output = output,
                          .num_steps = 20,
                          .batch_size = 4,
                          .optimizer = {.learning_rate = 5e-5f, .weight_decay = 0.0f},
                          .eval_every = 10,
                          .save_every = 10},
                         {.on_step = [](const train::StepRecord& record) {
                           if (record.eval_loss) {
                             std::printf("step %d  held out %.4f\n", int(record.step),
                                         *record.eval_loss);
                           }
                         }});
  trainer.resume();
  const train::TrainingResult result = trainer.run();
  if (!result.message.empty()) std::printf("%s\n", result.message.c_str());
  std::printf("%s\n", train::latest_checkpoint(output).value_or("no checkpoint").c_str());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: fine_tune MODEL_DIR DATA OUTPUT\n");
    return 2;
  }
  try {
    fine_tune(argv[1], argv[2], argv[3]);
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
