#include "model.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "array.h"
#include "bindings.h"
#include "flashmha/checkpoint.h"
#include "flashmha/trainer.h"
#include "flashmha/training.h"
#include "results.h"

namespace nb = nanobind;
using namespace nb::literals;  // NOLINT(google-build-using-namespace): "directory"_a

namespace flashmha::python {
namespace {

DType parse_dtype(const std::string& name) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    if (name == dtype_name(dtype)) return dtype;
  }
  throw nb::value_error("[Model] dtype must be float32, bfloat16 or float16");
}

model::AttentionKind parse_attention(const std::string& name) {
  for (const auto kind : {model::AttentionKind::plain, model::AttentionKind::flash}) {
    if (name == model::attention_kind_name(kind)) return kind;
  }
  throw nb::value_error("[Model] attention must be plain or flash");
}

model::LoadOptions load_options(const std::optional<std::string>& dtype, const std::string& device,
                                const std::string& attention) {
  model::LoadOptions options{.device = parse_device(device),
                             .attention_kind = parse_attention(attention)};
  if (dtype) options.dtype = parse_dtype(*dtype);
  return options;
}

std::unique_ptr<Model> load(const std::string& directory, const std::optional<std::string>& dtype,
                            const std::string& device, const std::string& attention) {
  const model::LoadOptions options = load_options(dtype, device, attention);
  const nb::gil_scoped_release released;
  return std::make_unique<Model>(model::load_pretrained(directory, options));
}

std::unique_ptr<Model> make(const model::ModelConfig& config, std::uint64_t seed) {
  auto made = std::make_unique<model::CausalLM>(config);
  made->init_weights(seed);
  return std::make_unique<Model>(std::move(made));
}

std::unique_ptr<Model> from_config(const std::string& directory, std::uint64_t seed,
                                   const std::optional<std::string>& dtype,
                                   const std::string& device, const std::string& attention) {
  const model::LoadOptions options = load_options(dtype, device, attention);
  const nb::gil_scoped_release released;
  model::ModelConfig config = model::read_config(directory);
  config.dtype = options.dtype_for(config.dtype);
  config.device = options.device;
  config.attention_kind = options.attention_kind;
  return make(config, seed);
}

// The model of `flashmha train` without --model.
std::unique_ptr<Model> of_sizes(std::int64_t vocab_size, std::int64_t num_layers,
                                std::int64_t hidden_size, std::int64_t num_heads,
                                std::int64_t num_kv_heads, std::int64_t head_dim,
                                std::int64_t intermediate_size,
                                std::int64_t max_position_embeddings,
                                std::optional<std::int64_t> bos_token_id,
                                std::optional<std::int64_t> eos_token_id, std::uint64_t seed,
                                const std::optional<std::string>& dtype, const std::string& device,
                                const std::string& attention) {
  const model::LoadOptions options = load_options(dtype, device, attention);
  model::ModelConfig config = model::default_config();
  config.vocab_size = vocab_size;
  config.num_layers = num_layers;
  config.intermediate_size =
      intermediate_size > 0 ? intermediate_size : (hidden_size * 8 / 3 + 31) / 32 * 32;
  config.attention.hidden_size = hidden_size;
  config.attention.num_heads = num_heads;
  config.attention.num_kv_heads = num_kv_heads;
  config.attention.head_dim = head_dim;
  config.attention.rotary->max_position_embeddings = max_position_embeddings;
  config.bos_token_id = bos_token_id;
  if (eos_token_id) config.eos_token_ids = {*eos_token_id};
  config.dtype = options.dtype_for(DType::float32);
  config.device = options.device;
  config.attention_kind = options.attention_kind;
  const nb::gil_scoped_release released;
  return make(config, seed);
}

void save(Model& self, const std::string& directory, std::int64_t max_shard_bytes) {
  self.use([&](model::CausalLM& model) {
    model::save_pretrained(model, directory, {.max_shard_bytes = max_shard_bytes});
  });
}

model::ModelInputs read_inputs(CallArrays& arrays, nb::handle input_ids, nb::handle attention_mask,
                               nb::handle position_ids) {
  return {.input_ids = arrays.read(input_ids, "input_ids"),
          .attention_mask = arrays.read(attention_mask, "attention_mask"),
          .position_ids = arrays.read(position_ids, "position_ids")};
}

// Models work on the default stream: what another one has queued must be there before, and the
// results before the other one goes on.
void wait_for(const CallArrays& arrays, Device device) {
  if (arrays.stream().handle == nullptr || device.type == DeviceType::cpu) return;
  const nb::gil_scoped_release released;
  synchronize(device, arrays.stream());
}

Array forward(Model& self, nb::handle input_ids, nb::handle attention_mask, nb::handle position_ids,
              bool last_logits_only, bool numpy) {
  CallArrays arrays("Model.forward");
  model::ModelInputs inputs = read_inputs(arrays, input_ids, attention_mask, position_ids);
  inputs.last_logits_only = last_logits_only;
  const Device device = self.config().device;
  wait_for(arrays, device);
  return array_of(self.use([&](model::CausalLM& model) {
    Tensor logits = model.forward(inputs);
    if (numpy) return for_numpy(std::move(logits));
    if (arrays.stream().handle != nullptr) synchronize(device);
    return logits;
  }));
}

// (mean, number of tokens); adds gradients where `scale` is given.
std::pair<double, std::int64_t> loss(Model& self, nb::handle input_ids, nb::handle labels,
                                     nb::handle attention_mask, nb::handle position_ids,
                                     std::optional<float> scale) {
  CallArrays arrays("Model.loss");
  const model::ModelInputs inputs = read_inputs(arrays, input_ids, attention_mask, position_ids);
  const TensorView given_labels = arrays.read(labels, "labels");
  wait_for(arrays, self.config().device);
  const model::Loss loss = self.use([&](model::CausalLM& model) {
    const Tensor targets = model::shift_labels(given_labels);
    return scale ? self.gradients()(inputs, targets, *scale)
                 : model::compute_loss(model, inputs, targets);
  });
  return {loss.mean, loss.num_tokens};
}

// {name: (weight, gradient or None)}: the model's own memory.
nb::dict parameters(nb::handle self) {
  nb::dict result;
  model::CausalLM* model = nb::cast<Model&>(self).use([](model::CausalLM& m) { return &m; });
  model->visit([&](const std::string& name, nn::Parameter& parameter) {
    nb::object gradient = nb::none();
    if (parameter.gradient.defined()) gradient = nb::cast(array_of(parameter.gradient, self));
    result[name.c_str()] = nb::make_tuple(array_of(parameter.value, self), gradient);
  });
  return result;
}

// AdamW of one model, in its turn.
class Optimizer {
 public:
  Optimizer(Model& model, const model::OptimizerOptions& options)
      : model_(model),
        optimizer_(model.use([&](model::CausalLM& m) { return model::AdamW(m, options); })) {}

  double step() {
    return model_.use([&](model::CausalLM&) { return optimizer_.step(); });
  }
  void set_learning_rate(float rate) { optimizer_.set_learning_rate(rate); }
  std::int64_t num_steps() const { return optimizer_.num_steps(); }

 private:
  Model& model_;
  model::AdamW optimizer_;
};

void bind_optimizer(nb::module_& module) {
  nb::class_<Optimizer>(module, "AdamW", "AdamW of flashmha/training.h; use flashmha.AdamW.")
      .def(
          "__init__",
          [](Optimizer* self, Model& model, float learning_rate, float beta1, float beta2,
             float eps, float weight_decay, float max_gradient_norm) {
            new (self) Optimizer(
                model, {learning_rate, beta1, beta2, eps, weight_decay, max_gradient_norm});
          },
          nb::keep_alive<1, 2>(), "model"_a, "learning_rate"_a, "beta1"_a, "beta2"_a, "eps"_a,
          "weight_decay"_a, "max_gradient_norm"_a)
      .def("step", &Optimizer::step)
      .def("set_learning_rate", &Optimizer::set_learning_rate, "learning_rate"_a)
      .def_prop_ro("num_steps", &Optimizer::num_steps);
}

void bind_class(nb::module_& module) {
  const auto none = nb::none();
  nb::class_<Model>(module, "Model", "CausalLM of flashmha/model.h; use flashmha.Model.")
      .def_static("load", &load, "directory"_a, "dtype"_a = none, "device"_a = "cpu",
                  "attention"_a = "flash")
      .def_static("from_config", &from_config, "directory"_a, "seed"_a, "dtype"_a = none,
                  "device"_a = "cpu", "attention"_a = "flash")
      .def_static("of_sizes", &of_sizes, "vocab_size"_a, "num_layers"_a, "hidden_size"_a,
                  "num_heads"_a, "num_kv_heads"_a, "head_dim"_a, "intermediate_size"_a,
                  "max_position_embeddings"_a, "bos_token_id"_a = none, "eos_token_id"_a = none,
                  "seed"_a = 0, "dtype"_a = none, "device"_a = "cpu", "attention"_a = "flash")
      .def("save", &save, "directory"_a, "max_shard_bytes"_a = model::SaveOptions{}.max_shard_bytes)
      .def("forward", &forward, "input_ids"_a, "attention_mask"_a = none, "position_ids"_a = none,
           "last_logits_only"_a = false, "numpy"_a = false)
      .def("loss", &loss, "input_ids"_a, "labels"_a, "attention_mask"_a = none,
           "position_ids"_a = none, "scale"_a = none)
      .def("zero_gradients",
           [](Model& self) { self.use([](model::CausalLM& model) { model.zero_gradients(); }); })
      .def("parameters", [](nb::object self) { return parameters(self); })
      .def_prop_ro("num_parameters",
                   [](Model& self) {
                     return self.use([](model::CausalLM& model) { return model.num_parameters(); });
                   })
      .def_prop_ro("vocab_size", [](Model& self) { return self.config().vocab_size; })
      .def_prop_ro("num_layers", [](Model& self) { return self.config().num_layers; })
      .def_prop_ro("hidden_size", [](Model& self) { return self.config().attention.hidden_size; })
      .def_prop_ro("model_type", [](Model& self) { return self.config().model_type; })
      .def_prop_ro("dtype", [](Model& self) { return dtype_name(self.config().dtype); })
      .def_prop_ro("device", [](Model& self) { return device_name(self.config().device); });
}

}  // namespace

void bind_model(nb::module_& module) {
  bind_class(module);
  bind_optimizer(module);
  module.def("latest_checkpoint", &train::latest_checkpoint, "output"_a,
             "The complete checkpoint of the highest step in the output of a run, or None.");
}

}  // namespace flashmha::python
