#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "flashmha/tokenizer.h"
#include "flashmha/trainer.h"
#include "model.h"

namespace nb = nanobind;
using namespace nb::literals;  // NOLINT(google-build-using-namespace): "model"_a

namespace flashmha::python {
namespace {

using train::PackedDataset;
using DatasetPointer = std::unique_ptr<PackedDataset>;
// The second is null where nothing is held out.
using Datasets = std::pair<DatasetPointer, DatasetPointer>;

Datasets pack(train::Corpus corpus, std::int64_t seq_length, double eval_fraction) {
  train::CorpusSplit split = train::split_corpus(std::move(corpus), eval_fraction);
  Datasets result;
  result.first = std::make_unique<PackedDataset>(std::move(split.training), seq_length);
  if (split.evaluation.num_tokens() > 0) {
    result.second = std::make_unique<PackedDataset>(std::move(split.evaluation), seq_length);
  }
  return result;
}

Datasets from_files(const std::vector<std::string>& paths, const text::Tokenizer& tokenizer,
                    std::int64_t seq_length, double eval_fraction,
                    const std::string& document_separator) {
  const nb::gil_scoped_release released;
  train::CorpusOptions options;
  options.document_separator = document_separator;
  return pack(train::read_corpus(paths, tokenizer, options), seq_length, eval_fraction);
}

Datasets from_tokens(const std::vector<std::vector<std::int64_t>>& documents,
                     std::int64_t seq_length, double eval_fraction) {
  const nb::gil_scoped_release released;
  train::Corpus corpus;
  for (const auto& document : documents)
    corpus.add(document);
  return pack(std::move(corpus), seq_length, eval_fraction);
}

train::TrainerOptions read_options(const nb::dict& given) {
  train::TrainerOptions options;
  model::OptimizerOptions& optimizer = options.optimizer;
  const auto read = [&](const char* name, auto& value) {
    if (given.contains(name)) value = nb::cast<std::decay_t<decltype(value)>>(given[name]);
  };
  read("output", options.output);
  read("num_steps", options.num_steps);
  read("batch_size", options.batch_size);
  read("accumulate", options.accumulate);
  read("learning_rate", optimizer.learning_rate);
  read("beta1", optimizer.beta1);
  read("beta2", optimizer.beta2);
  read("eps", optimizer.eps);
  read("weight_decay", optimizer.weight_decay);
  read("max_gradient_norm", optimizer.max_gradient_norm);
  read("min_learning_rate", options.min_learning_rate);
  read("warmup_steps", options.warmup_steps);
  read("seed", options.seed);
  read("eval_every", options.eval_every);
  read("max_eval_sequences", options.max_eval_sequences);
  read("save_every", options.save_every);
  read("keep", options.keep);
  read("companions", options.companions);
  read("recompute", options.recompute);
  return options;
}

// Forwards what the C++ trainer reports to the Python functions of the current run.
class Trainer {
 public:
  Trainer(Model& model, const PackedDataset& training, const PackedDataset* evaluation,
          const nb::dict& options)
      : model_(model) {
    train::TrainerOptions read = read_options(options);
    model.use([&](model::CausalLM& m) {
      trainer_ =
          std::make_unique<train::Trainer>(m, training, evaluation, std::move(read), callbacks());
    });
  }

  std::int64_t resume() {
    return model_.use([&](model::CausalLM&) { return trainer_->resume(); });
  }

  // A signal ends the run after the step, with a checkpoint, and is raised then.
  nb::tuple run(nb::object on_step, nb::object on_checkpoint, nb::object should_stop) {
    const Running running(*this, {on_step, on_checkpoint, should_stop});
    const train::TrainingResult result =
        model_.use([&](model::CausalLM&) { return trainer_->run(); });
    // Not kept: it refers to the frames of its callers, and they to this object.
    if (auto interrupt = std::exchange(interrupt_, std::nullopt)) throw std::move(*interrupt);
    constexpr const char* kEnds[] = {"finished", "stopped", "diverged"};
    return nb::make_tuple(kEnds[static_cast<int>(result.end)], result.step, result.loss,
                          result.eval_loss, result.num_tokens, result.tokens_per_second,
                          result.peak_bytes, result.message);
  }

 private:
  struct Functions {
    nb::object on_step, on_checkpoint, should_stop;
  };

  // The functions of a run, for as long as it lasts.
  struct Running {
    Running(Trainer& trainer, Functions functions) : trainer_(trainer) {
      trainer_.functions_.emplace(std::move(functions));
      trainer_.interrupt_.reset();
    }
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;
    ~Running() { trainer_.functions_.reset(); }

   private:
    Trainer& trainer_;
  };

  train::TrainerCallbacks callbacks() {
    return {
        .on_step =
            [this](const train::StepRecord& r) {
              call(functions_->on_step, r.step, r.loss, r.learning_rate, r.gradient_norm,
                   r.num_tokens, r.tokens_per_second, r.eval_loss);
            },
        .on_checkpoint = [this](const std::string& path) { call(functions_->on_checkpoint, path); },
        .should_stop = [this] { return stops(); }};
  }

  template <class... Values>
  void call(const nb::object& function, const Values&... values) {
    if (function.is_none()) return;
    const nb::gil_scoped_acquire acquired;
    try {
      function(values...);
    } catch (nb::python_error& error) {  // a signal that came while the function ran
      if (!error.matches(PyExc_KeyboardInterrupt)) throw;
      interrupt_.emplace(std::move(error));
    }
  }

  bool stops() {
    if (interrupt_) return true;
    const nb::gil_scoped_acquire acquired;
    if (PyErr_CheckSignals() != 0) {
      interrupt_.emplace();
      return true;
    }
    return !functions_->should_stop.is_none() && nb::cast<bool>(functions_->should_stop());
  }

  Model& model_;
  std::optional<Functions> functions_;
  std::optional<nb::python_error> interrupt_;
  std::unique_ptr<train::Trainer> trainer_;
};

void bind_dataset(nb::module_& module) {
  nb::class_<PackedDataset>(module, "PackedDataset",
                            "Documents cut and packed into sequences of seq_length tokens. Every "
                            "token but a document's first is predicted once, and attention never "
                            "leaves a document.")
      .def_prop_ro("seq_length", &PackedDataset::seq_length)
      .def_prop_ro("num_sequences", [](const PackedDataset& self) { return self.num_sequences(); })
      .def_prop_ro(
          "num_targets", [](const PackedDataset& self) { return self.num_targets(); },
          "Tokens that are predicted.")
      .def_prop_ro("num_documents",
                   [](const PackedDataset& self) { return self.corpus().num_documents(); })
      .def_prop_ro("num_tokens",
                   [](const PackedDataset& self) { return self.corpus().num_tokens(); });
  module.def("dataset_from_files", &from_files, "paths"_a, "tokenizer"_a, "seq_length"_a,
             "eval_fraction"_a = 0.0, "document_separator"_a = "",
             "(training, evaluation or None): read_corpus, split_corpus and PackedDataset of "
             "flashmha/dataset.h.");
  module.def("dataset_from_tokens", &from_tokens, "documents"_a, "seq_length"_a,
             "eval_fraction"_a = 0.0, "The same from token ids, a list for each document.");
}

}  // namespace

void bind_training(nb::module_& module) {
  bind_dataset(module);
  const auto none = nb::none();
  nb::class_<Trainer>(module, "Trainer", "Trainer of flashmha/trainer.h; use flashmha.Trainer.")
      .def(nb::init<Model&, const PackedDataset&, const PackedDataset*, const nb::dict&>(),
           nb::keep_alive<1, 2>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(), "model"_a,
           "training"_a, "evaluation"_a.none(), "options"_a)
      .def("resume", &Trainer::resume)
      .def("run", &Trainer::run, "on_step"_a = none, "on_checkpoint"_a = none,
           "should_stop"_a = none);
}

}  // namespace flashmha::python
