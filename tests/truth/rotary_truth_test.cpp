// Rotary tables against Transformers' (rotary.safetensors, made by make_rotary.py).
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "flashmha/nn.h"
#include "tests/truth/compare.h"
#include "tests/truth/rotary_config.h"
#include "tests/truth/safetensors.h"

namespace flashmha::truth {
namespace {

const File& file() {
  static const File truth(std::string(FLASHMHA_TESTS_DIR) + "/truth/rotary.safetensors");
  return truth;
}

void expect_frequencies(const std::vector<double>& found, const TensorView& truth) {
  ASSERT_EQ(static_cast<std::int64_t>(found.size()), truth.numel());
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double expected = truth.as<double>()[i];
    EXPECT_NEAR(found[i], expected, 1e-12 * expected) << "pair " << i;
  }
}

// Rows of a table against the truth's rows, which are those of `positions`.
void expect_rows(const TensorView& table, const std::vector<std::int64_t>& positions,
                 const TensorView& truth) {
  for (std::size_t i = 0; i < positions.size(); ++i) {
    SCOPED_TRACE("position " + std::to_string(positions[i]));
    expect_close(table.select(0, positions[i]), truth.select(0, static_cast<std::int64_t>(i)), 1e-7,
                 "table");
  }
}

TEST(RotaryTruth, frequencies_and_tables_of_every_scaling) {
  const std::vector<std::int64_t> positions = file().about().at("positions");
  for (const nlohmann::json& description : file().about().at("configs")) {
    const std::string name = description.at("name");
    SCOPED_TRACE(name);
    const nn::RotaryConfig config = rotary_config(description, description.at("parameters"));
    const std::int64_t seqlen = description.at("seqlen");
    expect_frequencies(nn::rotary_inverse_frequencies(config, seqlen),
                       file().get(name + ".inv_freq"));
    EXPECT_NEAR(nn::rotary_attention_scaling(config), description.at("attention_factor"), 1e-14);
    if (config.scaling == nn::RotaryScaling::dynamic_ntk) continue;  // tables follow the length
    nn::RotaryEmbedding rotary(config);
    const ops::RotaryTables tables = rotary.tables(positions.back() + 1);
    expect_rows(tables.cos, positions, file().get(name + ".cos"));
    expect_rows(tables.sin, positions, file().get(name + ".sin"));
  }
}

TEST(RotaryTruth, dynamic_tables_grow_and_come_back) {
  const nlohmann::json& description = file().about().at("dynamic_sequence");
  nn::RotaryEmbedding rotary(rotary_config(description, description.at("parameters")));
  const TensorView truth = file().get("dynamic_sequence.inv_freq");
  const std::vector<std::int64_t> lengths = description.at("lengths");
  for (std::size_t step = 0; step < lengths.size(); ++step) {
    SCOPED_TRACE("length " + std::to_string(lengths[step]));
    const ops::RotaryTables tables = rotary.tables(lengths[step]);
    for (std::int64_t i = 0; i < truth.size(1); ++i) {
      const double frequency =
          truth.as<double>()[static_cast<std::int64_t>(step) * truth.size(1) + i];
      EXPECT_NEAR(tables.sin.select(0, 5).as<float>()[i], std::sin(5.0 * frequency), 1e-7);
      EXPECT_NEAR(tables.cos.select(0, 5).as<float>()[i], std::cos(5.0 * frequency), 1e-7);
    }
  }
}

}  // namespace
}  // namespace flashmha::truth
