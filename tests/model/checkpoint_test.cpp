// Model directories: what is saved is loaded, whatever the dtype and however it is spread over
// files, and nothing that was there is lost before the new is complete.
#include "flashmha/checkpoint.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <thread>

#include "flashmha/random.h"
#include "flashmha/safetensors.h"
#include "tests/core/expect_error.h"
#include "tests/io/folder.h"
#include "tests/io/limited.h"
#include "tests/model/fixture.h"

namespace flashmha::model {
namespace {

using test::expect_error;
using test::Folder;
using test::tiny_config;

using Names = std::set<std::string>;
const Names kSingle = {"config.json", "model.safetensors"};

void expect_same_weights(CausalLM& found, CausalLM& expected) {
  const test::NamedTensors theirs = test::weights_of(expected);
  const test::NamedTensors ours = test::weights_of(found);
  ASSERT_EQ(ours.size(), theirs.size());
  for (const auto& [name, weight] : theirs) {
    const TensorView& own = ours.at(name);
    ASSERT_EQ(own.dtype, weight.dtype) << name;
    ASSERT_EQ(own.shape, weight.shape) << name;
    EXPECT_EQ(std::memcmp(own.data, weight.data, weight.bytes()), 0) << name;
  }
}

// All of its weights are that number.
void fill_weights(CausalLM& model, double value) {
  model.visit([&](const std::string&, nn::Parameter& parameter) { fill(parameter.value, value); });
}

// The number that all weights are; NaN if they differ.
double only_weight(CausalLM& model) {
  std::set<float> values;
  model.visit([&](const std::string&, nn::Parameter& parameter) {
    for (std::int64_t i = 0; i < parameter.value.numel(); ++i)
      values.insert(parameter.value.as<float>()[i]);
  });
  return values.size() == 1 ? *values.begin() : std::nan("");
}

TEST(C9, model_directories_round_trip) {
  const std::uint64_t seed = test::test_seed();
  for (const bool tied : {false, true}) {
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
      for (const std::int64_t max_shard_bytes : {std::int64_t{1} << 40, std::int64_t{4096}}) {
        SCOPED_TRACE(std::string(dtype_name(dtype)) + (tied ? " tied " : " untied ") +
                     std::to_string(max_shard_bytes));
        ModelConfig config = tiny_config();
        config.tie_word_embeddings = tied;
        config.dtype = dtype;
        CausalLM model(config);
        model.init_weights(seed);
        const Folder folder;
        save_pretrained(model, folder / "made/here", {.max_shard_bytes = max_shard_bytes});
        const std::unique_ptr<CausalLM> loaded = load_pretrained(folder / "made/here");
        EXPECT_EQ(loaded->config().tie_word_embeddings, tied);
        expect_same_weights(*loaded, model);
        const Tensor ids = test::random_ids(2, 7, config.vocab_size, seed);
        const Tensor x = model.forward({.input_ids = ids});
        const Tensor y = loaded->forward({.input_ids = ids});
        EXPECT_EQ(std::memcmp(x.view().data, y.view().data, x.view().bytes()), 0);
      }
    }
  }
}

// Flash attention on a GPU has no float32.
TEST(Checkpoint, DtypeFollowsWhatRuns) {
  const Device gpu{DeviceType::cuda};
  const auto dtype = [](const LoadOptions& options, DType configured) {
    return options.dtype_for(configured);
  };
  EXPECT_EQ(dtype({}, DType::float32), DType::float32);
  EXPECT_EQ(dtype({.device = gpu}, DType::float32), DType::bfloat16);
  EXPECT_EQ(dtype({.device = gpu}, DType::float16), DType::float16);
  EXPECT_EQ(dtype({.device = gpu, .attention_kind = AttentionKind::plain}, DType::float32),
            DType::float32);
  EXPECT_EQ(dtype({.dtype = DType::float32, .device = gpu}, DType::bfloat16), DType::float32);
}

TEST(Checkpoint, LoadsInAnotherDtypeAndKind) {
  CausalLM model(tiny_config());
  model.init_weights(test::test_seed());
  const Folder folder;
  save_pretrained(model, folder.path());
  const auto loaded = load_pretrained(
      folder.path(), {.dtype = DType::bfloat16, .attention_kind = AttentionKind::plain});
  EXPECT_EQ(loaded->config().attention_kind, AttentionKind::plain);
  ModelConfig config = tiny_config();
  config.dtype = DType::bfloat16;
  CausalLM expected(config);
  copy_weights(model, expected);
  expect_same_weights(*loaded, expected);
}

TEST(Checkpoint, LoadWeightsIntoAModelThatExists) {
  CausalLM model(tiny_config()), other(tiny_config());
  model.init_weights(test::test_seed());
  const Folder folder;
  save_pretrained(model, folder.path());
  load_weights(other, folder.path());
  expect_same_weights(other, model);
}

TEST(Checkpoint, ShardsAreWithinTheLimitAndListed) {
  CausalLM model(tiny_config());
  model.init_weights(test::test_seed());
  const Folder folder;
  save_pretrained(model, folder.path(), {.max_shard_bytes = 5000});
  const nlohmann::json index = nlohmann::json::parse(folder.read("model.safetensors.index.json"));
  std::map<std::string, std::size_t> bytes;
  std::size_t total = 0;
  for (const auto& [name, weight] : test::weights_of(model)) {
    const std::string shard = index.at("weight_map").at(name);
    const io::SafetensorsFile file(folder / shard);
    EXPECT_EQ(file.entry(name).data.size(), weight.bytes());
    EXPECT_EQ(file.metadata().at("format"), "pt");
    bytes[shard] += weight.bytes();
    total += weight.bytes();
  }
  EXPECT_GT(bytes.size(), 5u);
  for (const auto& [shard, count] : bytes) {
    const bool is_one_tensor = io::SafetensorsFile(folder / shard).entries().size() == 1;
    EXPECT_TRUE(count <= 5000 || is_one_tensor) << shard << " " << count;
    EXPECT_TRUE(shard.ends_with("-of-0000" + std::to_string(bytes.size()) + ".safetensors") ||
                shard.ends_with("-of-000" + std::to_string(bytes.size()) + ".safetensors"))
        << shard;
  }
  EXPECT_EQ(index.at("metadata").at("total_size"), total);
  EXPECT_EQ(index.at("metadata").at("total_parameters"), model.num_parameters());
}

// Files that the index lists.
std::size_t num_shards(const Folder& folder) {
  if (!folder.names().contains("model.safetensors.index.json")) return 0;
  const nlohmann::json index = nlohmann::json::parse(folder.read("model.safetensors.index.json"));
  Names shards;
  for (const auto& [name, shard] : index.at("weight_map").items())
    shards.insert(shard.get<std::string>());
  return shards.size();
}

TEST(Checkpoint, ASaveReplacesTheOneBefore) {
  CausalLM model(tiny_config());
  const Folder folder;
  folder.write("tokenizer.json", "kept");
  double value = 0.0;
  // Sharded over sharded, single over sharded, sharded over single, and so on.
  for (const std::int64_t max_shard_bytes : {5000, 5000, 5000, 1 << 30, 1 << 30, 9000, 5000}) {
    fill_weights(model, ++value);
    save_pretrained(model, folder.path(), {.max_shard_bytes = max_shard_bytes});
    EXPECT_EQ(only_weight(*load_pretrained(folder.path())), value);
    const Names names = folder.names();
    EXPECT_TRUE(names.contains("tokenizer.json"));
    const bool single = max_shard_bytes == 1 << 30;
    EXPECT_EQ(names.contains("model.safetensors"), single);
    EXPECT_EQ(names.size(), 3 + num_shards(folder)) << "tokenizer, config, weights or index";
  }
}

// Saves models of weights 2, 3, ... in turns sharded and not, for ever; a byte for each.
[[noreturn]] void save_for_ever(const std::string& directory, int pipe) {
  CausalLM model(tiny_config());
  for (int i = 2;; ++i) {
    fill_weights(model, i);
    save_pretrained(model, directory, {.max_shard_bytes = i % 3 == 0 ? 1 << 30 : 20'000});
    if (write(pipe, "", 1) != 1) _exit(1);
  }
}

// Killed at a random moment, a save leaves one of the models: no mixture, nothing missing.
TEST(Checkpoint, AKilledSaveLeavesOneModelOrTheOther) {
  std::mt19937_64 random(test::test_seed());
  CausalLM model(tiny_config());
  const Folder folder;
  fill_weights(model, 1.0);
  save_pretrained(model, folder.path());
  for (int round = 0; round < 20; ++round) {
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) save_for_ever(folder.path(), ends[1]);
    close(ends[1]);
    const int num_saves = 1 + round % 3;
    char byte = 0;
    for (int i = 0; i < num_saves; ++i)
      ASSERT_EQ(read(ends[0], &byte, 1), 1);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 30'000));
    kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the save failed by itself";
    close(ends[0]);
    const double value = only_weight(*load_pretrained(folder.path()));
    ASSERT_GE(value, 1 + num_saves) << "round " << round << " (NaN: a mixture of two saves)";
  }
  fill_weights(model, 0.5);
  save_pretrained(model, folder.path());
  EXPECT_EQ(only_weight(*load_pretrained(folder.path())), 0.5);
  EXPECT_EQ(folder.names(), kSingle);  // what the dead have left is gone
}

TEST(CheckpointDeathTest, AFullDiskLeavesTheOldModel) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  CausalLM model(tiny_config());
  fill_weights(model, 1.0);
  const Folder folder;
  save_pretrained(model, folder.path());
  // The shards of embedding and head (6400 bytes) are too large, then the only file.
  for (const std::int64_t max_shard_bytes : {5000, 1 << 30}) {
    EXPECT_EXIT(test::exit_after([&] {
                  fill_weights(model, 2.0);
                  test::limit_file_size(6300);
                  save_pretrained(model, folder.path(), {.max_shard_bytes = max_shard_bytes});
                }),
                test::exited_with(ErrorCode::io),
                (test::Says{"cannot write", "nothing was overwritten"}));
    EXPECT_EQ(only_weight(*load_pretrained(folder.path())), 1.0);
    EXPECT_EQ(folder.names(), kSingle);
  }
}

TEST(CheckpointDeathTest, ADirectoryWithoutPermissionIsRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  CausalLM model(tiny_config());
  const Folder folder;
  std::filesystem::permissions(folder.path(), std::filesystem::perms{0555});
  for (const char* name : {"", "new"}) {
    EXPECT_EXIT(test::exit_after([&] {
                  // Root may write everywhere; nobody may not.
                  if (geteuid() == 0 && seteuid(65534) != 0) abort();
                  save_pretrained(model, folder / name);
                }),
                test::exited_with(ErrorCode::io), (test::Says{"Permission denied"}));
  }
}

TEST(Checkpoint, SaveRefusesWhatIsNoDirectory) {
  CausalLM model(tiny_config());
  const Folder folder;
  const std::string path = folder.write("file", "precious");
  expect_error(ErrorCode::io, {"[save_pretrained]", path}, [&] { save_pretrained(model, path); });
  expect_error(ErrorCode::io, {"[save_pretrained]"}, [&] { save_pretrained(model, path + "/a"); });
  EXPECT_EQ(folder.read("file"), "precious");
  expect_error(ErrorCode::invalid_argument, {"max_shard_bytes must be positive; got 0"},
               [&] { save_pretrained(model, folder / "a", {.max_shard_bytes = 0}); });
}

}  // namespace
}  // namespace flashmha::model
