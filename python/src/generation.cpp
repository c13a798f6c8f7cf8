#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bindings.h"
#include "flashmha/text_generation.h"
#include "model.h"

namespace nb = nanobind;
using namespace nb::literals;  // NOLINT(google-build-using-namespace): "model"_a

namespace flashmha::python {
namespace {

template <class Value>
Value choice(const std::map<std::string_view, Value>& values, const std::string& name,
             const char* message) {
  const auto found = values.find(name);
  if (found == values.end()) throw nb::value_error(message);
  return found->second;
}

std::optional<model::CacheKind> parse_cache(const std::string& name) {
  using Kind = model::CacheKind;
  static const std::map<std::string_view, std::optional<Kind>> kKinds = {
      {"dynamic", Kind::dynamic_cache},
      {"static", Kind::static_cache},
      {"sliding", Kind::sliding_cache},
      {"paged", Kind::paged_cache},
      {"none", std::nullopt}};
  return choice(kKinds, name, "[generate] cache must be dynamic, static, sliding, paged or none");
}

model::EarlyStopping parse_early_stopping(const std::string& name) {
  using Stopping = model::EarlyStopping;
  static const std::map<std::string_view, Stopping> kKinds = {{"heuristic", Stopping::heuristic},
                                                              {"when_found", Stopping::when_found},
                                                              {"never", Stopping::never}};
  return choice(kKinds, name, "[generate] early_stopping must be heuristic, when_found or never");
}

// Whether a row goes on: a callback that returns nothing does not end it.
bool goes_on(const nb::object& answer) {
  return answer.is_none() || nb::cast<bool>(answer);
}

struct Callbacks {
  nb::object on_text, on_token, on_step;

  void install(model::TextGenerationOptions& options) const {
    if (!on_text.is_none()) {
      options.on_text = [this](std::int64_t row, std::string_view text) {
        const nb::gil_scoped_acquire acquired;
        return goes_on(on_text(row, nb::str(text.data(), text.size())));
      };
    }
    if (!on_token.is_none()) {
      options.generation.on_token = [this](std::int64_t row, std::int64_t token) {
        const nb::gil_scoped_acquire acquired;
        return goes_on(on_token(row, token));
      };
    }
    options.generation.on_step = [this](std::int64_t step) {
      raise_if_interrupted();
      if (on_step.is_none()) return;
      const nb::gil_scoped_acquire acquired;
      on_step(step);
    };
  }
};

// Options by their names, of both kinds of generation.
model::TextGenerationOptions read_options(const nb::dict& given) {
  model::TextGenerationOptions options;
  model::GenerationOptions& generation = options.generation;
  model::SamplingOptions& sampling = generation.sampling;
  const auto read = [&](const char* name, auto& value) {
    if (given.contains(name)) value = nb::cast<std::decay_t<decltype(value)>>(given[name]);
  };
  read("max_new_tokens", generation.max_new_tokens);
  read("stop_token_ids", generation.stop_token_ids);
  read("num_return_sequences", generation.num_return_sequences);
  read("first_row", generation.first_row);
  read("num_beams", generation.num_beams);
  read("length_penalty", generation.length_penalty);
  read("temperature", sampling.temperature);
  read("top_k", sampling.top_k);
  read("top_p", sampling.top_p);
  read("min_p", sampling.min_p);
  read("repetition_penalty", sampling.repetition_penalty);
  read("seed", sampling.seed);
  read("stop_strings", options.stop_strings);
  std::string name;
  if (read("cache", name); !name.empty()) generation.cache = parse_cache(name);
  name.clear();
  if (read("early_stopping", name); !name.empty())
    generation.early_stopping = parse_early_stopping(name);
  return options;
}

nb::tuple result_of(const model::Generated& generated, nb::object text) {
  const std::string_view reason = model::finish_reason_name(generated.finish_reason);
  return nb::make_tuple(text, generated.tokens, nb::str(reason.data(), reason.size()),
                        generated.prompt, generated.score);
}

nb::list generate_text(Model& self, const text::Tokenizer& tokenizer,
                       const std::vector<std::string>& prompts, const nb::dict& given,
                       nb::object on_text, nb::object on_step) {
  model::TextGenerationOptions options = read_options(given);
  const Callbacks callbacks{on_text, nb::none(), on_step};
  callbacks.install(options);
  const auto results = self.use([&](model::CausalLM& model) {
    return model::generate_text(model, tokenizer, prompts, options);
  });
  nb::list list;
  for (const model::GeneratedText& result : results)
    list.append(result_of(result, nb::str(result.text.data(), result.text.size())));
  return list;
}

nb::list generate_tokens(Model& self, const std::vector<std::vector<std::int64_t>>& prompts,
                         const nb::dict& given, nb::object on_token, nb::object on_step) {
  model::TextGenerationOptions options = read_options(given);
  const Callbacks callbacks{nb::none(), on_token, on_step};
  callbacks.install(options);
  const auto results = self.use(
      [&](model::CausalLM& model) { return model::generate(model, prompts, options.generation); });
  nb::list list;
  for (const model::Generated& result : results)
    list.append(result_of(result, nb::none()));
  return list;
}

}  // namespace

void bind_generation(nb::module_& module) {
  const auto none = nb::none();
  module.def("generate_text", &generate_text, "model"_a, "tokenizer"_a, "prompts"_a, "options"_a,
             "on_text"_a = none, "on_step"_a = none,
             "generate_text of flashmha/text_generation.h: [(text, tokens, finish_reason, prompt, "
             "score), ...]. options: the members of GenerationOptions and SamplingOptions by "
             "name, and stop_strings.");
  module.def("generate_tokens", &generate_tokens, "model"_a, "prompts"_a, "options"_a,
             "on_token"_a = none, "on_step"_a = none,
             "generate of flashmha/generation.h, with the same results but text, which is None.");
  module.def(
      "stop_token_ids",
      [](Model& self, const std::optional<std::string>& directory) {
        if (!directory) return self.config().eos_token_ids;
        return model::read_stop_token_ids(*directory, self.config());
      },
      "model"_a, "directory"_a.none(),
      "The tokens that end a sequence: of the directory's generation_config.json, else of the "
      "model's config.");
}

}  // namespace flashmha::python
