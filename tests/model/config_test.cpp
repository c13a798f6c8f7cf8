// config.json: what published models say is understood, what is not computed is refused by name,
// and what is written describes the same model.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <utility>

#include "flashmha/checkpoint.h"
#include "model/config_json.h"
#include "tests/core/expect_error.h"
#include "tests/io/folder.h"
#include "tests/model/fixture.h"

namespace flashmha {
namespace {

using io::Json;
using model::ModelConfig;
using namespace test;

const std::vector<std::string>& checkpoints() {
  static const std::vector<std::string> names = {"llama2", "llama3", "llama_biases", "mistral",
                                                 "qwen2",  "qwen3",  "gemma2",       "gemma3"};
  return names;
}

Json file_of(const std::string& checkpoint, const std::string& name = "config.json") {
  const std::string path =
      std::string(FLASHMHA_TESTS_DIR) + "/truth/checkpoints/" + checkpoint + "/" + name;
  return io::read_json_file(path, "[test] " + path);
}

ModelConfig read(const Json& json) {
  return model::config_from_json(io::JsonObject(json, "[test] config.json"));
}

// Everything that a config says, in one form.
std::string said_by(const ModelConfig& config) {
  return config_to_json(config, *model::find_architecture(config.model_type)).dump(1);
}

// The windows of all layers.
std::vector<std::int64_t> windows_of(const ModelConfig& config) {
  std::vector<std::int64_t> windows;
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer)
    windows.push_back(config.attention_config(layer).sliding_window);
  return windows;
}

TEST(ConfigJson, both_manners_of_transformers_say_the_same) {
  for (const std::string& name : checkpoints()) {
    EXPECT_EQ(said_by(read(file_of(name))),
              said_by(read(file_of(name, "config.transformers4.json"))))
        << name;
  }
}

TEST(ConfigJson, written_configs_are_read_as_they_were) {
  const Folder folder;
  for (const std::string& name : checkpoints()) {
    ModelConfig config = read(file_of(name));
    config.bos_token_id = 7;
    config.eos_token_ids = {3, 5};
    model::write_config(config, folder.path());
    EXPECT_EQ(said_by(model::read_config(folder.path())), said_by(config)) << name;
    EXPECT_EQ(folder.names(), std::set<std::string>{"config.json"});
  }
}

// Files of the Hugging Face hub, as far as they matter.
TEST(ConfigJson, llama_3_2) {
  const ModelConfig config = read(Json::parse(R"({"architectures": ["LlamaForCausalLM"],
    "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu",
    "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
    "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0,
    "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3"}, "rope_theta": 500000.0, "tie_word_embeddings": true,
    "torch_dtype": "bfloat16", "transformers_version": "4.45.0.dev0", "use_cache": true,
    "vocab_size": 128256})"));
  EXPECT_EQ(config.dtype, DType::bfloat16);
  EXPECT_EQ(config.vocab_size, 128256);
  EXPECT_EQ(config.rms_norm, (ops::RMSNormOptions{.eps = 1e-5f}));
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_TRUE(config.layers.empty());
  EXPECT_FALSE(config.has_sliding_window());
  EXPECT_EQ(config.attention.num_kv_heads, 8);
  EXPECT_EQ(config.attention.rotary, (nn::RotaryConfig{.head_dim = 64,
                                                       .rope_theta = 500000.0,
                                                       .max_position_embeddings = 131072,
                                                       .scaling = nn::RotaryScaling::llama3,
                                                       .factor = 32.0,
                                                       .original_max_position_embeddings = 8192,
                                                       .low_freq_factor = 1.0,
                                                       .high_freq_factor = 4.0}));
  EXPECT_EQ(config.bos_token_id, 128000);
  EXPECT_EQ(config.eos_token_ids, (std::vector<std::int64_t>{128001, 128008, 128009}));
}

// The first Llama 2 files were silent about what had one value then.
TEST(ConfigJson, what_old_files_do_not_say) {
  const ModelConfig config = read(Json::parse(R"({"architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008, "model_type": "llama",
    "max_position_embeddings": 2048, "num_attention_heads": 32, "num_hidden_layers": 32,
    "rms_norm_eps": 1e-06, "vocab_size": 32000})"));
  EXPECT_EQ(config.dtype, DType::float32);
  EXPECT_EQ(config.attention.num_kv_heads, 32);
  EXPECT_EQ(config.attention.head_dim, 128);
  EXPECT_EQ(config.attention.rotary->rope_theta, 10000.0);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_FALSE(config.attention.qkv_bias || config.attention.out_bias || config.mlp_bias);
}

TEST(ConfigJson, windows_of_mistral_and_qwen) {
  Json mistral = file_of("mistral");
  EXPECT_EQ(read(mistral).attention.sliding_window, 5);
  mistral["sliding_window"] = nullptr;
  EXPECT_FALSE(read(mistral).has_sliding_window());
  mistral.erase("sliding_window");
  EXPECT_EQ(read(mistral).attention.sliding_window, 4096);

  Json qwen = file_of("qwen2");
  EXPECT_EQ(windows_of(read(qwen)), (std::vector<std::int64_t>{0, 6}));
  qwen.erase("layer_types");
  EXPECT_EQ(windows_of(read(qwen)), (std::vector<std::int64_t>{0, 6}));
  qwen["max_window_layers"] = 0;
  EXPECT_EQ(windows_of(read(qwen)), (std::vector<std::int64_t>{6, 6}));
  EXPECT_TRUE(read(qwen).layers.empty());  // all layers are equal
  qwen["use_sliding_window"] = false;      // what published ones say
  EXPECT_FALSE(read(qwen).has_sliding_window());
}

TEST(ConfigJson, gemma_2) {
  const ModelConfig config = read(Json::parse(R"({"architectures": ["Gemma2ForCausalLM"],
    "attention_bias": false, "attention_dropout": 0.0, "attn_logit_softcapping": 50.0,
    "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
    "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
    "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2",
    "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0,
    "query_pre_attn_scalar": 144, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
    "sliding_window": 4096, "torch_dtype": "float32", "use_cache": true, "vocab_size": 256000})"));
  EXPECT_EQ(config.rms_norm.weight_offset, 1.0f);
  EXPECT_TRUE(config.sublayer_output_norms && config.scale_embeddings);
  EXPECT_TRUE(config.tie_word_embeddings);  // by default
  EXPECT_EQ(config.activation, ops::Activation::gelu_tanh);
  EXPECT_EQ(config.logits_softcap, 30.0f);
  EXPECT_EQ(config.attention.softcap, 50.0f);
  EXPECT_EQ(config.attention.softmax_scale, 1.0f / 12.0f);
  const std::vector<std::int64_t> windows = windows_of(config);
  for (std::size_t layer = 0; layer < windows.size(); ++layer)
    EXPECT_EQ(windows[layer], layer % 2 == 0 ? 4096 : 0) << layer;
}

TEST(ConfigJson, gemma_3) {
  const ModelConfig config = read(Json::parse(R"({"architectures": ["Gemma3ForCausalLM"],
    "attention_bias": false, "attention_dropout": 0.0, "attn_logit_softcapping": null,
    "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
    "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152, "initializer_range": 0.02, "intermediate_size": 6912,
    "max_position_embeddings": 32768, "model_type": "gemma3_text", "num_attention_heads": 4,
    "num_hidden_layers": 26, "num_key_value_heads": 1, "pad_token_id": 0,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512,
    "sliding_window_pattern": 6, "torch_dtype": "bfloat16", "use_cache": true,
    "vocab_size": 262144})"));
  EXPECT_TRUE(config.attention.qk_norm);
  EXPECT_EQ(config.attention.qk_norm_options.weight_offset, 1.0f);
  EXPECT_EQ(config.attention.softcap, 0.0f);
  EXPECT_EQ(config.logits_softcap, 0.0f);
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    const nn::AttentionConfig own = config.attention_config(layer);
    const bool full = layer % 6 == 5;
    EXPECT_EQ(own.sliding_window, full ? 0 : 512) << layer;
    EXPECT_EQ(own.rotary->rope_theta, full ? 1e6 : 1e4) << layer;
  }
}

struct Refusal {
  std::string checkpoint;
  Json change;                      // merged into its config
  std::vector<std::string> pieces;  // of the message
};

TEST(ConfigJson, what_is_not_computed_is_refused_by_name) {
  const std::vector<Refusal> refusals = {
      {"llama2", {{"model_type", "mixtral"}}, {"model_type must be one of llama", "mixtral"}},
      {"llama2", {{"model_type", "gemma3"}}, {"model_type", "gemma3_text", "'\"gemma3\"'"}},
      {"llama2", {{"architectures", {"LlamaForTokenClassification"}}}, {"architectures must"}},
      {"llama2", {{"hidden_act", "relu2"}}, {"hidden_act must be silu", "relu2"}},
      {"gemma2", {{"hidden_activation", "gelu"}}, {"hidden_activation must be", "gelu"}},
      {"llama2", {{"pretraining_tp", 2}}, {"pretraining_tp must be 1", "'2'"}},
      {"llama2", {{"quantization_config", {{"bits", 4}}}}, {"quantization_config", "bits"}},
      {"llama2", {{"num_local_experts", 8}}, {"num_local_experts must be 0"}},
      {"llama2", {{"sliding_window", 512}}, {"sliding_window", "model_type llama", "512"}},
      {"mistral", {{"attention_bias", true}}, {"attention_bias must be false"}},
      {"mistral", {{"layer_types", {"full_attention"}}}, {"layer_types", "mistral"}},
      {"qwen2", {{"layer_types", {"full_attention", "linear_attention"}}}, {"layer_types"}},
      {"gemma2", {{"use_bidirectional_attention", true}}, {"use_bidirectional_attention"}},
      {"gemma3", {{"attn_logit_softcapping", 50.0}}, {"attn_logit_softcapping must be null"}},
      {"llama2", {{"partial_rotary_factor", 0.5}}, {"partial_rotary_factor must be 1"}},
      {"llama2",
       {{"rope_parameters", {{"rope_type", "longrope"}}}},
       {"rope_parameters.rope_type must be default, linear", "longrope"}},
      {"llama2",
       {{"rope_parameters", {{"short_factor", {1.0}}}}},
       {"rope_parameters.short_factor is not known"}},
      {"gemma3",
       {{"rope_parameters", {{"rope_theta", 5.0}}}},
       {"rope_parameters.rope_theta is not known"}},
      {"llama2", {{"dtype", "float64"}}, {"dtype must be float32", "float64"}},
      {"qwen3", {{"per_layer_config", {{"0", 1}}}}, {"per_layer_config"}},
  };
  for (const Refusal& refusal : refusals) {
    Json json = file_of(refusal.checkpoint);
    json.merge_patch(refusal.change);
    SCOPED_TRACE(refusal.checkpoint + " with " + refusal.change.dump());
    for (const std::string& piece : refusal.pieces)
      expect_error(ErrorCode::unsupported, {"[test] config.json: ", piece}, [&] { read(json); });
  }
}

TEST(ConfigJson, numbers_that_make_no_sense_are_refused_by_name) {
  const std::vector<std::pair<std::string, std::vector<Json>>> numbers = {
      {"vocab_size", {0, -1, std::int64_t{1} << 31, 1.5, "40", nullptr}},
      {"hidden_size", {0, -20, std::int64_t{1} << 40, true}},
      {"intermediate_size", {0, std::numeric_limits<std::int64_t>::min()}},
      {"num_hidden_layers", {0, -3, 1'000'000'000, Json::array()}},
      {"num_attention_heads", {0, -4, 3, std::int64_t{1} << 62}},
      {"num_key_value_heads", {0, 3, 8, -2}},
      {"head_dim", {0, 7, -8, 1 << 20}},
      {"rms_norm_eps", {0.0, -1e-6, 2.0}},
      {"max_position_embeddings", {0, -1, std::int64_t{1} << 60}},
      {"sliding_window", {0, -5, "5"}},
      {"query_pre_attn_scalar", {0, -256, 1e300}},
      {"attn_logit_softcapping", {0.0, -50.0, 1e30}},
      {"final_logit_softcapping", {0.0, -30.0}},
      {"attention_dropout", {-0.1, 1.0, 5}},
      {"initializer_range", {-0.02, 1e30}},
      {"tie_word_embeddings", {1, "true"}},
      {"layer_types", {Json::array({"full_attention"}), "full_attention", 3}},
      {"eos_token_id", {"</s>", Json::array({1, "2"}), 1.5}},
      {"rope_parameters",
       {1,
        Json::array(),
        {{"rope_theta", 1.0}},
        {{"rope_theta", -1e4}},
        {{"rope_type", 3}},
        {{"rope_type", "linear"}},
        {{"rope_type", "linear"}, {"factor", 0.5}},
        {{"rope_type", "llama3"}, {"factor", 8.0}},
        {{"rope_type", "llama3"},
         {"factor", 8.0},
         {"low_freq_factor", 4.0},
         {"high_freq_factor", 1.0}}}},
  };
  for (const auto& [field, values] : numbers) {
    for (const Json& value : values) {
      Json json = file_of("gemma2");
      json[field] = value;
      SCOPED_TRACE(json[field].dump());
      expect_error(ErrorCode::invalid_argument, {"[test] config.json: ", field},
                   [&] { read(json); });
    }
  }
}

TEST(ConfigJson, contradictions_are_refused) {
  const std::vector<Refusal> refusals = {
      {"llama3", {{"rope_theta", 500000.0}}, {"rope_theta contradicts"}},
      {"llama3",
       {{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}},
       {"rope_scaling contradicts rope_parameters"}},
      {"gemma3", {{"rope_local_base_freq", 7.0}}, {"rope_local_base_freq contradicts"}},
      {"gemma2", {{"sliding_window", nullptr}}, {"sliding_window"}},
      {"qwen2", {{"use_sliding_window", false}}, {"layer_types must not have sliding"}},
      {"llama2", {{"head_dim", nullptr}, {"hidden_size", 21}}, {"hidden_size must be a mult"}},
  };
  for (const Refusal& refusal : refusals) {
    Json json = file_of(refusal.checkpoint);
    for (const auto& [key, value] : refusal.change.items())
      json[key] = value;  // null stays
    SCOPED_TRACE(refusal.checkpoint + " with " + refusal.change.dump());
    if (refusal.checkpoint == "gemma2") json.erase("layer_types");
    if (refusal.checkpoint == "gemma2") {
      EXPECT_FALSE(read(json).has_sliding_window());  // null: no layer has a window
      json["layer_types"] = {"sliding_attention", "full_attention", "sliding_attention"};
    }
    expect_error(ErrorCode::invalid_argument, {"[test] config.json: ", refusal.pieces.front()},
                 [&] { read(json); });
  }
}

// Values that no file should have: at any place, some of them together.
TEST(ConfigJson, random_damage_gives_an_error_or_a_model_that_fits_together) {
  std::mt19937_64 random(test_seed());
  const auto below = [&](std::size_t bound) { return random() % bound; };
  const std::vector<Json> values = {
      0,
      1,
      2,
      -1,
      3,
      8,
      64,
      1 << 20,
      std::int64_t{1} << 31,
      std::int64_t{1} << 62,
      std::numeric_limits<std::int64_t>::min(),
      std::numeric_limits<std::uint64_t>::max(),
      0.5,
      -0.0,
      1e-300,
      1e300,
      nullptr,
      true,
      false,
      "",
      "full_attention",
      "yarn",
      "llama3",
      Json::array(),
      Json::object(),
      Json::array({1, 2, 3}),
      Json::array({"sliding_attention", "full_attention"}),
      {{"rope_type", "yarn"}, {"factor", 4}},
      {{"full_attention", {{"rope_type", "dynamic"}, {"factor", 2}}}}};
  int num_read = 0;
  for (int round = 0; round < 4000; ++round) {
    Json json = file_of(checkpoints()[below(8)],
                        below(2) == 0 ? "config.json" : "config.transformers4.json");
    for (std::size_t change = 0; change < 1 + below(3); ++change) {
      auto key = json.begin();
      std::advance(key, static_cast<std::ptrdiff_t>(below(json.size())));
      Json* target = &*key;
      if (target->is_object() && !target->empty() && below(2) == 0) {
        auto inner = target->begin();
        std::advance(inner, static_cast<std::ptrdiff_t>(below(target->size())));
        target = &*inner;
      }
      *target = values[below(values.size())];
    }
    try {
      const ModelConfig config = read(json);
      for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
        const nn::AttentionConfig own = config.attention_config(layer).resolved();
        nn::RotaryEmbedding rotary(*own.rotary);  // checks its config
      }
      ++num_read;
    } catch (const Error& error) {
      const std::string message = error.what();
      ASSERT_TRUE(message.starts_with("[test] config.json: ")) << message << "\n" << json.dump(1);
    }
  }
  EXPECT_GT(num_read, 100);
}

TEST(ConfigJson, files_that_are_no_config) {
  const Folder folder;
  expect_error(ErrorCode::io, {folder / "config.json"}, [&] { model::read_config(folder.path()); });
  for (const char* text :
       {"", "{", "[]", "null", "{\"model_type\": 3}", "{\"model_type\": null}"}) {
    folder.write("config.json", text);
    expect_error(ErrorCode::invalid_argument, {"[read_config] ", folder / "config.json"},
                 [&] { model::read_config(folder.path()); });
  }
}

// A config that was made by hand is written as the first architecture that computes it.
TEST(ConfigJson, the_first_architecture_that_fits) {
  const Folder folder;
  const auto written_as = [&](const std::function<void(ModelConfig&)>& change) {
    ModelConfig config = tiny_config();
    change(config);
    model::write_config(config, folder.path());
    ModelConfig read = model::read_config(folder.path());
    const std::string model_type = std::exchange(read.model_type, config.model_type);
    EXPECT_EQ(windows_of(read), windows_of(config));
    return model_type;
  };
  EXPECT_EQ(written_as([](ModelConfig&) {}), "llama");
  EXPECT_EQ(written_as([](ModelConfig& config) { config.attention.sliding_window = 7; }),
            "mistral");
  EXPECT_EQ(written_as([](ModelConfig& config) { config.attention.qkv_bias = true; }), "qwen2");
  EXPECT_EQ(written_as([](ModelConfig& config) { config.attention.qk_norm = true; }), "qwen3");
  EXPECT_EQ(written_as([](ModelConfig& config) { config.model_type = "mistral"; }), "mistral");
  EXPECT_EQ(written_as([](ModelConfig& config) {
              config.layers = {{.sliding_window = 3, .rotary = config.attention.rotary},
                               {.rotary = config.attention.rotary}};
              config.attention.qkv_bias = true;
            }),
            "qwen2");
}

TEST(ConfigJson, every_rotary_scaling_is_written) {
  const Folder folder;
  using enum nn::RotaryScaling;
  const std::vector<nn::RotaryConfig> rotaries = {
      {.rope_theta = 7777.5, .max_position_embeddings = 99},
      {.scaling = linear, .factor = 2.5},
      {.scaling = dynamic_ntk, .factor = 3.0},
      {.scaling = yarn, .factor = 4.0, .original_max_position_embeddings = 512},
      {.scaling = yarn,
       .factor = 4.0,
       .attention_factor = 0.75,
       .beta_fast = 16.0,
       .beta_slow = 2.0,
       .mscale = 0.8,
       .mscale_all_dim = 1.2,
       .truncate = false},
      {.scaling = llama3,
       .factor = 8.0,
       .original_max_position_embeddings = 64,
       .low_freq_factor = 2.0,
       .high_freq_factor = 3.0}};
  for (nn::RotaryConfig rotary : rotaries) {
    ModelConfig config = tiny_config();
    config.attention.rotary = rotary;
    model::write_config(config, folder.path());
    rotary.head_dim = config.attention.head_dim;
    EXPECT_EQ(model::read_config(folder.path()).attention.rotary, rotary)
        << folder.read("config.json");

    config = read(file_of("gemma3"));  // an own one for layers with a window
    rotary.max_position_embeddings = config.layers[1].rotary->max_position_embeddings;
    config.layers[0].rotary = config.layers[2].rotary = rotary;
    model::write_config(config, folder.path());
    EXPECT_EQ(model::read_config(folder.path()).layers, config.layers)
        << folder.read("config.json");
  }
}

TEST(ConfigJson, what_no_architecture_says_is_not_written) {
  const Folder folder;
  folder.write("config.json", "before");
  const auto expect_refused = [&](const std::string& reason, auto change) {
    ModelConfig config = tiny_config();
    change(config);
    expect_error(ErrorCode::unsupported, {"[write_config]", reason},
                 [&] { model::write_config(config, folder.path()); });
    EXPECT_EQ(folder.read("config.json"), "before");
  };
  expect_refused("llama (attention.sinks)", [](auto& config) { config.attention.sinks = true; });
  expect_refused("attention.causal", [](auto& config) { config.attention.causal = false; });
  expect_refused("attention.rotary", [](auto& config) { config.attention.rotary.reset(); });
  expect_refused("attention.rotary",
                 [](auto& config) { config.attention.rotary->interleaved = true; });
  expect_refused("llama (attention.softmax_scale)",
                 [](auto& config) { config.attention.softmax_scale = 0.2f; });
  expect_refused("qwen3 (attention.qk_norm)", [](auto& config) { config.model_type = "qwen3"; });
  expect_refused("model_type bert is not known", [](auto& config) { config.model_type = "bert"; });
  expect_refused("layers", [](auto& config) {  // two windows
    config.layers = {{.sliding_window = 3, .rotary = config.attention.rotary},
                     {.sliding_window = 4, .rotary = config.attention.rotary}};
  });
}

}  // namespace
}  // namespace flashmha
