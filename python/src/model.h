// A CausalLM for Python.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <mutex>
#include <utility>

#include "flashmha/model.h"
#include "flashmha/training.h"

namespace flashmha::python {

// Computes without the GIL, for one thread at a time: layers share tables that grow. A callback
// from inside a computation, which has taken the GIL again, may call the model.
class Model {
 public:
  explicit Model(std::unique_ptr<model::CausalLM> model)
      : model_(std::move(model)), gradients_(*model_) {}

  const model::ModelConfig& config() const { return model_->config(); }

  // function(CausalLM&)
  template <class Function>
  decltype(auto) use(Function&& function) {
    const nanobind::gil_scoped_release released;
    const std::scoped_lock lock(mutex_);
    return std::forward<Function>(function)(*model_);
  }

  // Only inside use().
  model::GradientPass& gradients() { return gradients_; }

 private:
  std::unique_ptr<model::CausalLM> model_;
  model::GradientPass gradients_;
  std::recursive_mutex mutex_;
};

// Throws what Python has to say to a signal (KeyboardInterrupt), if one has come. Takes the GIL.
inline void raise_if_interrupted() {
  const nanobind::gil_scoped_acquire acquired;
  if (PyErr_CheckSignals() != 0) throw nanobind::python_error();
}

}  // namespace flashmha::python
