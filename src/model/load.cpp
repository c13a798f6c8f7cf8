// From a model directory to a model: names and shapes are checked first, then all bytes are
// converted in one pass.
#include <algorithm>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/check.h"
#include "flashmha/checkpoint.h"
#include "io/json.h"
#include "model/weight_files.h"

namespace flashmha::model {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";
constexpr std::size_t kPrefixLength = 6;  // of "model."
constexpr std::size_t kMostListed = 6;    // names in one message

// Tensors of old checkpoints that follow from the config.
bool is_ignored(std::string_view name) {
  return name.ends_with(".rotary_emb.inv_freq");
}

// "a, b and 7 more".
std::string list(const std::vector<std::string>& names) {
  const std::size_t num_listed = std::min(names.size(), kMostListed);
  std::string text;
  for (std::size_t i = 0; i < num_listed; ++i)
    text += (i > 0 ? ", " : "") + io::quote(names[i]);
  if (names.size() > num_listed) text += fmt::format(" and {} more", names.size() - num_listed);
  return text;
}

// The parameters' names against those of the files.
class Weights {
 public:
  Weights(const std::string& directory, const std::string& function)
      : files_(directory, function),
        is_bare_(!files_.contains(kEmbedding) &&
                 files_.contains(std::string(kEmbedding).substr(kPrefixLength))) {}

  // A parameter's name in the files.
  std::string name_in_files(const std::string& name) const {
    return is_bare_ && name.starts_with("model.") ? name.substr(kPrefixLength) : name;
  }

  // Refuses a tensor that is missing, of another shape or not floating.
  void check_tensor(const std::string& parameter, const std::vector<std::int64_t>& shape) const {
    const std::string name = name_in_files(parameter);
    check(files_.contains(name), "{}: the tensor {} is missing", files_.where(), io::quote(name));
    const io::SafetensorsEntry& entry = files_.entry(name);
    check(entry.shape == shape, "{}: {} has shape [{}] in {}; the config needs [{}]",
          files_.where(), io::quote(name), fmt::join(entry.shape, ","), files_.file(name).path(),
          fmt::join(shape, ","));
    if (!entry.nearest || !is_floating(*entry.nearest)) {
      fail(ErrorCode::unsupported, "{}: {} has elements of type {} in {}; weights are floating",
           files_.where(), io::quote(name), entry.dtype, files_.file(name).path());
    }
  }

  // All tensors that make a model large are in the files, in the shape that the config says: a
  // config that lies cannot make us allocate more than the files have.
  void check_size(const ModelConfig& config) const {
    const std::int64_t hidden = config.attention.hidden_size;
    const std::int64_t head_dim = config.attention.head_dim;
    const auto width = [&](std::int64_t num_heads) {
      std::int64_t result = 0;
      const bool overflows = __builtin_mul_overflow(num_heads, head_dim, &result);
      return overflows ? std::numeric_limits<std::int64_t>::max() : result;
    };
    check_tensor(kEmbedding, {config.vocab_size, hidden});
    for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
      const std::string prefix = fmt::format("model.layers.{}.", layer);
      check_tensor(prefix + "self_attn.q_proj.weight", {width(config.attention.num_heads), hidden});
      check_tensor(prefix + "self_attn.k_proj.weight",
                   {width(config.attention.num_kv_heads), hidden});
      check_tensor(prefix + "mlp.gate_proj.weight", {config.intermediate_size, hidden});
    }
  }

  // Checks everything, then reads everything.
  void read_into(CausalLM& model) const {
    check_names(model);
    model.visit([&](const std::string& name, nn::Parameter& parameter) {
      const Shape& shape = parameter.value.shape();
      check_tensor(name, {shape.begin(), shape.end()});
    });
    model.visit([&](const std::string& parameter, nn::Parameter& weight) {
      const std::string name = name_in_files(parameter);
      files_.file(name).read_into(name, weight.value);
    });
  }

 private:
  void check_names(CausalLM& model) const {
    std::vector<std::string> missing;
    std::map<std::string, std::size_t> unexpected = files_.names();
    model.visit([&](const std::string& parameter, nn::Parameter&) {
      const std::string name = name_in_files(parameter);
      if (unexpected.erase(name) == 0) missing.push_back(name);
    });
    check(missing.empty(), "{}: missing tensors: {}", files_.where(), list(missing));
    if (model.config().tie_word_embeddings && unexpected.erase(kHead) != 0) check_tied_head();
    std::vector<std::string> names;
    for (const auto& [name, file] : unexpected) {
      if (!is_ignored(name)) names.push_back(name);
    }
    check(names.empty(), "{}: tensors that the config has no place for: {}", files_.where(),
          list(names));
  }

  void check_tied_head() const {
    const io::SafetensorsEntry& head = files_.entry(kHead);
    const io::SafetensorsEntry& embedding = files_.entry(name_in_files(kEmbedding));
    check(head.dtype == embedding.dtype && head.shape == embedding.shape &&
              std::ranges::equal(head.data, embedding.data),
          "{}: the config ties {} to the embedding, but the files have one that differs",
          files_.where(), kHead);
  }

  WeightFiles files_;
  bool is_bare_;  // names lack "model."
};

}  // namespace

DType LoadOptions::dtype_for(DType configured) const {
  const bool needs_16_bits =
      device.type == DeviceType::cuda && attention_kind == AttentionKind::flash;
  if (needs_16_bits && configured == DType::float32) configured = DType::bfloat16;
  return dtype.value_or(configured);
}

std::unique_ptr<CausalLM> load_pretrained(const std::string& directory,
                                          const LoadOptions& options) {
  ModelConfig config = read_config(directory);
  config.dtype = options.dtype_for(config.dtype);
  config.device = options.device;
  config.attention_kind = options.attention_kind;
  const Weights weights(directory, "load_pretrained");
  weights.check_size(config);
  auto model = std::make_unique<CausalLM>(config);
  weights.read_into(*model);
  return model;
}

void load_weights(CausalLM& model, const std::string& directory) {
  Weights(directory, "load_weights").read_into(model);
}

}  // namespace flashmha::model
