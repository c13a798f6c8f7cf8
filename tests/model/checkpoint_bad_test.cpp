// Directories whose files are missing, lie or do not fit the config: refused by name, and a model
// that was to be filled keeps its weights.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "flashmha/checkpoint.h"
#include "flashmha/safetensors.h"
#include "tests/core/expect_error.h"
#include "tests/io/folder.h"
#include "tests/model/fixture.h"

namespace flashmha::model {
namespace {

using test::expect_error;
using test::Folder;
using test::tiny_config;

const std::string kNorm = "model.norm.weight";

// A saved model whose files a test then spoils. All weights are 1.
class Spoiled : public testing::Test {
 protected:
  Spoiled() : model_(config()) {
    model_.visit([](const std::string&, nn::Parameter& parameter) { fill(parameter.value, 1.0); });
    save_pretrained(model_, folder_.path());
    model_.visit([&](const std::string& name, nn::Parameter& parameter) {
      tensors_[name] = clone(parameter.value);
    });
  }
  static ModelConfig config() { return tiny_config(); }

  // Writes tensors_ into one file.
  void write(const std::string& name = "model.safetensors") const {
    std::vector<io::NamedTensor> tensors;
    for (const auto& [tensor_name, tensor] : tensors_)
      tensors.push_back({tensor_name, tensor});
    io::write_safetensors(folder_ / name, tensors);
  }
  void change_config(const std::function<void(nlohmann::json&)>& change) const {
    nlohmann::json json = nlohmann::json::parse(folder_.read("config.json"));
    change(json);
    folder_.write("config.json", json.dump());
  }
  void save_sharded() { save_pretrained(model_, folder_.path(), {.max_shard_bytes = 9000}); }
  std::string first_shard() const {
    const auto index = nlohmann::json::parse(folder_.read("model.safetensors.index.json"));
    return index.at("weight_map").at("model.embed_tokens.weight");
  }
  void change_index(const std::function<void(nlohmann::json&)>& change) const {
    const char* const name = "model.safetensors.index.json";
    nlohmann::json json = nlohmann::json::parse(folder_.read(name));
    change(json);
    folder_.write(name, json.dump());
  }

  void expect_refused(std::initializer_list<std::string> pieces,
                      ErrorCode code = ErrorCode::invalid_argument) {
    expect_error(code, pieces, [&] { load_pretrained(folder_.path()); });
    expect_error(code, {"[load_pretrained] " + folder_.path()},
                 [&] { load_pretrained(folder_.path()); });
  }
  // load_weights as well, and without any change of the model.
  void expect_weights_refused(std::initializer_list<std::string> pieces,
                              ErrorCode code = ErrorCode::invalid_argument) {
    expect_refused(pieces, code);
    model_.visit([](const std::string&, nn::Parameter& parameter) { fill(parameter.value, 2.0); });
    expect_error(code, pieces, [&] { load_weights(model_, folder_.path()); });
    model_.visit([](const std::string& name, nn::Parameter& parameter) {
      for (std::int64_t i = 0; i < parameter.value.numel(); ++i)
        ASSERT_EQ(parameter.value.as<float>()[i], 2.0f) << name << " was changed";
    });
  }

  Folder folder_;
  CausalLM model_;
  std::map<std::string, Tensor> tensors_;
};

TEST_F(Spoiled, NothingThere) {
  std::filesystem::remove(folder_ / "model.safetensors");
  expect_weights_refused({"neither model.safetensors nor model.safetensors.index.json"},
                         ErrorCode::io);
  folder_.write("pytorch_model.bin", "");
  expect_weights_refused({"only safetensors are read"}, ErrorCode::unsupported);
  expect_error(ErrorCode::io, {"/none"}, [&] { load_pretrained(folder_ / "none"); });
  std::filesystem::remove(folder_ / "config.json");
  expect_error(ErrorCode::io, {"config.json"}, [&] { load_pretrained(folder_.path()); });
}

TEST_F(Spoiled, TensorsThatAreMissing) {
  tensors_.erase(kNorm);
  write();
  expect_weights_refused({"missing tensors: 'model.norm.weight'"});
  for (const auto& [name, weight] : test::weights_of(model_))
    if (name.find("layernorm") != name.npos) tensors_.erase(name);
  write();
  expect_weights_refused({"missing tensors: 'model.layers.0.input_layernorm.weight', "});
}

TEST_F(Spoiled, TensorsThatHaveNoPlace) {
  for (int i = 10; i < 20; ++i)
    tensors_["extra." + std::to_string(i)] = Tensor::zeros({1}, DType::float32);
  write();
  expect_weights_refused({"no place for: 'extra.10', 'extra.11'", "and 4 more"});
}

TEST_F(Spoiled, TensorsOfAnotherShape) {
  tensors_[kNorm] = Tensor::zeros({31}, DType::float32);
  write();
  expect_weights_refused({"'model.norm.weight' has shape [31]", "the config needs [32]"});
  tensors_[kNorm] = Tensor::zeros({1, 32}, DType::float32);
  write();
  expect_weights_refused({"[1,32]", "needs [32]"});
}

TEST_F(Spoiled, TensorsOfIntegers) {
  tensors_[kNorm] = Tensor::zeros({32}, DType::int64);
  write();
  expect_weights_refused({"'model.norm.weight' has elements of type I64"}, ErrorCode::unsupported);
}

TEST_F(Spoiled, AFileThatIsCutOff) {
  const std::string bytes = folder_.read("model.safetensors");
  folder_.write("model.safetensors", bytes.substr(0, bytes.size() - 1));
  expect_error(ErrorCode::invalid_argument, {"model.safetensors", "cut off"},
               [&] { load_pretrained(folder_.path()); });
}

// A config that lies about sizes must not make us allocate them.
TEST_F(Spoiled, AConfigThatLies) {
  const auto lie = [&](const char* field, std::int64_t value, const std::string& piece) {
    const std::string truth = folder_.read("config.json");
    change_config([&](nlohmann::json& json) { json[field] = value; });
    expect_error(ErrorCode::invalid_argument, {piece}, [&] { load_pretrained(folder_.path()); });
    folder_.write("config.json", truth);
  };
  lie("vocab_size", std::int64_t{1} << 30, "'model.embed_tokens.weight' has shape [50,32]");
  lie("vocab_size", -1, "vocab_size");
  lie("intermediate_size", 1 << 20, "mlp.gate_proj.weight' has shape [48,32]");
  lie("num_hidden_layers", 5000, "'model.layers.2.self_attn.q_proj.weight' is missing");
  lie("num_attention_heads", 1 << 20, "self_attn.q_proj.weight' has shape [32,32]");
  lie("num_hidden_layers", 1, "no place for: 'model.layers.1.");
}

TEST_F(Spoiled, TiedHeadsMustBeTheEmbedding) {
  change_config([](nlohmann::json& json) { json["tie_word_embeddings"] = true; });
  EXPECT_NO_THROW(load_pretrained(folder_.path()));  // the head is there, and equal
  tensors_.at("lm_head.weight").as<float>()[3] = 0.0f;
  write();
  expect_refused({"ties lm_head.weight to the embedding", "differs"});
  tensors_.erase("lm_head.weight");
  write();
  EXPECT_NO_THROW(load_pretrained(folder_.path()));
  change_config([](nlohmann::json& json) { json["tie_word_embeddings"] = false; });
  expect_weights_refused({"missing tensors: 'lm_head.weight'"});
}

TEST_F(Spoiled, BareDecodersAndOldFrequenciesAreAccepted) {
  std::map<std::string, Tensor> bare;
  for (auto& [name, tensor] : tensors_)
    bare[name.starts_with("model.") ? name.substr(6) : name] = std::move(tensor);
  bare["layers.0.self_attn.rotary_emb.inv_freq"] = Tensor::zeros({4}, DType::float32);
  tensors_ = std::move(bare);
  write();
  model_.visit([](const std::string&, nn::Parameter& parameter) { fill(parameter.value, 0.0); });
  load_weights(model_, folder_.path());
  model_.visit([](const std::string& name, nn::Parameter& parameter) {
    EXPECT_EQ(parameter.value.as<float>()[0], 1.0f) << name;
  });
  tensors_.erase("norm.weight");
  write();
  expect_weights_refused({"missing tensors: 'norm.weight'"});
}

TEST_F(Spoiled, ASingleFileCountsBeforeAnIndex) {
  folder_.write("model.safetensors.index.json", "not even JSON");
  EXPECT_NO_THROW(load_pretrained(folder_.path()));
}

TEST_F(Spoiled, ShardsThatAreMissing) {
  save_sharded();
  std::filesystem::remove(folder_ / first_shard());
  expect_weights_refused({"index.json", "'" + first_shard() + "' is missing"}, ErrorCode::io);
}

TEST_F(Spoiled, AnIndexThatLies) {
  save_sharded();
  const std::string index = folder_.read("model.safetensors.index.json");
  const auto lie = [&](std::initializer_list<std::string> pieces,
                       const std::function<void(nlohmann::json&)>& change) {
    change_index(change);
    expect_weights_refused(pieces);
    folder_.write("model.safetensors.index.json", index);
  };
  lie({"has no tensor 'extra'"},
      [&](nlohmann::json& json) { json["weight_map"]["extra"] = first_shard(); });
  lie({"has no tensor 'model.norm.weight'"},
      [&](nlohmann::json& json) { json["weight_map"]["model.norm.weight"] = first_shard(); });
  lie({"does not say that 'model.norm.weight' is in"},
      [](nlohmann::json& json) { json["weight_map"].erase("model.norm.weight"); });
  lie({"weight_map is missing"}, [](nlohmann::json& json) { json.erase("weight_map"); });
  lie({"weight_map must be an object"}, [](nlohmann::json& json) { json["weight_map"] = 3; });
  lie({"weight_map.model.norm.weight must be a string"},
      [](nlohmann::json& json) { json["weight_map"]["model.norm.weight"] = 3; });
  for (const std::string name :
       {"../a.safetensors", "/etc/a.safetensors", "a/b.safetensors", "", ".", "config.json"}) {
    lie({"weight_map.model.norm.weight must be the name of a .safetensors file beside the index"},
        [&](nlohmann::json& json) { json["weight_map"]["model.norm.weight"] = name; });
  }
  lie({"'model.embed_tokens.weight'"},
      [](nlohmann::json& json) { json["weight_map"] = nlohmann::json::object(); });
}

TEST_F(Spoiled, AnIndexThatIsNoJson) {
  save_sharded();
  for (const std::string text : {"", "{", "[1]", "{\"weight_map\":{\"a\":\"b\",\"a\":\"c\"}}"}) {
    folder_.write("model.safetensors.index.json", text);
    expect_weights_refused({"index.json"});
  }
}

}  // namespace
}  // namespace flashmha::model
