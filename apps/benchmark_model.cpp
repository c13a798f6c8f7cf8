// Level three of the benchmark: the seed's five rows on the whole model.
#include <memory>

#include "benchmark.h"
#include "flashmha/generation.h"
#include "flashmha/graph.h"
#include "flashmha/random.h"
#include "flashmha/training.h"

namespace flashmha::app {
namespace {

// A model with its optimiser and the work that is timed. On a GPU the work is recorded in graphs.
class Subject {
 public:
  Subject(const BenchmarkFlags& flags, model::AttentionKind kind)
      : flags_(flags), model_(model_config(flags, kind)), inference_(model_.config().device) {
    model_.init_weights(flags.seed);
    ids_ = Tensor::empty({flags.batch_size, flags.seq_length}, DType::int64);
    model::fill_integers(ids_, flags.seed, flags.vocab);
    device_ids_ = Tensor::empty(ids_.shape(), ids_.dtype(), model_.config().device);
    copy(ids_, device_ids_);
  }

  void train() {
    if (!optimizer_) optimizer_ = std::make_unique<model::AdamW>(model_);
    if (!step_) step_ = std::make_unique<model::TrainingStep>(model_, *optimizer_);
    (*step_)({.input_ids = ids_}, ids_);
  }

  void infer() {
    const model::ModelConfig& config = model_.config();
    if (!logits_.defined()) {
      logits_ = Tensor::empty({flags_.batch_size, flags_.seq_length, config.vocab_size},
                              config.dtype, config.device);
    }
    inference_.run([&] { model_.forward_into({.input_ids = device_ids_}, logits_); });
  }

  void generate() const {
    nn::KVCaches caches = model::make_caches(model_.config(), model::CacheKind::static_cache,
                                             flags_.seq_length + flags_.new_tokens);
    model::generate(model_, ids_, {}, &caches, {.max_new_tokens = flags_.new_tokens});
  }

 private:
  const BenchmarkFlags& flags_;
  model::CausalLM model_;
  std::unique_ptr<model::AdamW> optimizer_;
  std::unique_ptr<model::TrainingStep> step_;
  Graph inference_;
  Tensor ids_, device_ids_;
  Tensor logits_;
};

// Peak bytes of a process that holds one model: its weights and all that the work needs.
std::size_t peak_bytes(const BenchmarkFlags& flags, model::AttentionKind kind,
                       void (*work)(Subject&)) {
  const auto live = [&] {
    Subject subject(flags, kind);
    // The first step allocates gradients and optimiser state on its way, the second records.
    for (int step = 0; step < 3; ++step)
      work(subject);
  };
  return extra_memory_bytes(live, parse_device(flags.device));
}

Comparison compare_peaks(const BenchmarkFlags& flags, const std::string& name,
                         void (*work)(Subject&)) {
  return compare_memory("model", name, peak_bytes(flags, model::AttentionKind::plain, work),
                        peak_bytes(flags, model::AttentionKind::flash, work));
}

}  // namespace

Comparisons benchmark_model(const BenchmarkFlags& flags, Progress& progress) {
  Comparisons results;
  Subject plain(flags, model::AttentionKind::plain);
  Subject flash(flags, model::AttentionKind::flash);
  const auto compare = [&](const std::string& name, void (*work)(Subject&)) {
    progress.step("model, " + name);
    results.push_back(compare_times(
        "model", name, [&] { work(plain); }, [&] { work(flash); }, rounds_of(flags)));
  };
  const auto train = [](Subject& subject) { subject.train(); };
  const auto infer = [](Subject& subject) { subject.infer(); };

  compare("training", train);
  progress.step("model, training memory");
  results.push_back(compare_peaks(flags, "training_memory", train));
  compare("inference", infer);
  progress.step("model, inference memory");
  results.push_back(compare_peaks(flags, "inference_memory", infer));
  compare("generation", [](Subject& subject) { subject.generate(); });
  return results;
}

}  // namespace flashmha::app
