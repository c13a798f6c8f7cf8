// The benchmark and the sanity check as a user runs them, and how they measure.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "flashmha/tensor.h"
#include "measure.h"
#include "shell.h"

namespace flashmha::app {
namespace {

using Json = nlohmann::json;

Outcome flashmha(const std::string& arguments) {
  return shell(std::string(FLASHMHA_PROGRAM) + " " + arguments);
}

// Small enough for a second, otherwise everything that `make run` does.
constexpr const char* kSmall =
    " --batch-size 2 --seq-length 24 --layers 2 --heads 4 --kv-heads 2 --head-dim 16 --hidden 64"
    " --intermediate 96 --vocab 128 --new-tokens 4 --repetitions 2";

class Report : public Scratch {
 protected:
  Json report_of(const std::string& arguments) {
    const Outcome outcome = flashmha(arguments + " --json " + path("report.json"));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    output_ = outcome.output;
    return Json::parse(read_text(path("report.json")));
  }

  std::string output_;
};

class A11 : public Report {};
class A12 : public Report {};

void expect_time(const Json& level, const std::string& name) {
  for (const std::string kind : {"plain", "flash"}) {
    const double median = level.at(name + "_" + kind + "_ms");
    EXPECT_GT(median, 0.0) << name;
    EXPECT_LE(level.at(name + "_" + kind + "_min_ms").get<double>(), median) << name;
    EXPECT_GE(level.at(name + "_" + kind + "_max_ms").get<double>(), median) << name;
  }
  EXPECT_GT(level.at(name + "_plain_over_flash_ratio").get<double>(), 0.0) << name;
}

void expect_memory(const Json& level, const std::string& name) {
  const double plain = level.at(name + "_plain_bytes");
  const double flash = level.at(name + "_flash_bytes");
  EXPECT_GT(flash, 0.0) << name;
  EXPECT_DOUBLE_EQ(level.at(name + "_plain_over_flash_ratio").get<double>(), plain / flash);
}

TEST_F(A11, benchmark_reports_three_levels_in_both_dtypes) {
  for (const std::string dtype : {"float32", "bfloat16"}) {
    const Json report = report_of("benchmark --dtype " + dtype + kSmall);
    EXPECT_EQ(report.at("batch_size"), 2);
    EXPECT_EQ(report.at("seq_length"), 24);
    EXPECT_EQ(report.at("dtype"), dtype);
    EXPECT_EQ(report.at("kv_heads"), 2);
    for (const std::string level : {"function", "layer"}) {
      for (const std::string name : {"forward", "backward", "training"}) {
        expect_time(report.at(level), name);
      }
      expect_memory(report.at(level), "training_memory");
    }
    for (const std::string name : {"training", "inference", "generation"}) {
      expect_time(report.at("model"), name);
    }
    expect_memory(report.at("model"), "training_memory");
    expect_memory(report.at("model"), "inference_memory");
    for (const char* row : {"training speed", "training memory", "inference speed",
                            "inference memory", "generation latency", "How to read it"}) {
      EXPECT_NE(output_.find(row), std::string::npos) << output_;
    }
  }
}

// The scores of 2 x 4 heads in float32 are what plain attention needs beyond flash.
TEST_F(A11, benchmark_shows_what_the_scores_take) {
  const std::string flags =
      "benchmark --level function --dtype float32 --batch-size 2 --heads 4 --head-dim 16"
      " --repetitions 1 --seq-length ";
  const auto extra_bytes = [&](const std::string& seq_length, const std::string& kind) {
    const Json report = report_of(flags + seq_length);
    EXPECT_FALSE(report.contains("model"));
    return report.at("function").at("training_memory_" + kind + "_bytes").get<double>();
  };
  const double plain_512 = extra_bytes("512", "plain");
  EXPECT_GT(plain_512, 2.0 * 4 * 512 * 512 * 4);
  EXPECT_GT(extra_bytes("1024", "plain") / plain_512, 3.5);
  EXPECT_LT(extra_bytes("1024", "flash") / extra_bytes("512", "flash"), 2.2);
}

TEST_F(A11, benchmark_attention_covers_its_grid) {
  const Json report = report_of(
      "benchmark attention --head-dim 16,32 --seq-length 24 --dtype float32,float16 --heads 4"
      " --kv-heads 2 --repetitions 2 --threads 2 --plain --cache-mib 1");
  std::set<std::string> cases;
  for (const Json& row : report.at("cases")) {
    const std::string pass = row.at("pass");
    const std::string unit = pass == "decode" ? "_gbps" : "_gflops";
    for (const std::string who : {"one_thread", "threads"}) {
      EXPECT_GT(row.at(who + unit).get<double>(), 0.0) << row;
      EXPECT_GT(row.at(who + "_peak_share").get<double>(), 0.0) << row;
    }
    EXPECT_GT(row.at("scaling_ratio").get<double>(), 0.0) << row;
    EXPECT_GT(row.at("plain_over_flash_ratio").get<double>(), 0.0) << row;
    EXPECT_GT(row.at("plain_extra_bytes").get<double>(), 0.0) << row;
    EXPECT_GT(row.at("flash_extra_bytes").get<double>(), 0.0) << row;
    cases.insert(pass + row.at("dtype").get<std::string>() + row.at("head_dim").dump() +
                 row.at("causal").dump());
  }
  EXPECT_EQ(cases.size(), 2u * 2 * (2 + 2 + 1));  // decode is the same with both masks
}

TEST_F(A11, benchmark_attention_prints_csv) {
  const Outcome outcome = flashmha(
      "benchmark attention --csv --pass forward --head-dim 16 --seq-length 24 --dtype float32"
      " --causal true --repetitions 1 --threads 1 2>/dev/null");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(outcome.output.find("pass,dtype,head_dim,seq_length,causal,"), 0u) << outcome.output;
  EXPECT_NE(outcome.output.find("\nforward,float32,16,24,true,1,8,8,"), std::string::npos)
      << outcome.output;
  EXPECT_EQ(std::ranges::count(outcome.output, '\n'), 2);
}

TEST_F(A11, benchmark_names_what_is_wrong_with_its_flags) {
  const std::pair<std::string, std::string> cases[] = {
      {"benchmark --heads 6 --kv-heads 4", "num_heads_kv (4)"},
      {"benchmark --batch-size 0", "--batch-size"},
      {"benchmark --level deep", "--level"},
      {"benchmark attention --pass sideways", "--pass"},
      {"benchmark attention --head-dim 300 --seq-length 8", "256"},
      {"benchmark --seq-length 8 attention", "--seq-length must come after the word attention"}};
  for (const auto& [arguments, message] : cases) {
    const Outcome outcome = flashmha(arguments);
    EXPECT_EQ(outcome.exit_code, 2) << arguments << "\n" << outcome.output;
    EXPECT_NE(outcome.output.find(message), std::string::npos) << outcome.output;
  }
}

TEST_F(A12, sanity_check_of_the_default_model_passes) {
  const Json report = report_of("sanity-check --seq-length 24 --new-tokens 4");
  EXPECT_EQ(report.at("num_failed"), 0) << output_;
  std::set<std::string> names;
  for (const Json& check : report.at("checks")) {
    EXPECT_LE(check.at("relative_error").get<double>(),
              check.at("relative_tolerance").get<double>())
        << check;
    names.insert(check.at("model").get<std::string>() + ": " + check.at("name").get<std::string>());
  }
  for (const std::string dtype : {"float32", "bfloat16"}) {
    for (const std::string name :
         {"logits", "loss", "gradients", "logits, left padding", "gradients, left padding",
          "logits, right padding", "gradients, right padding", "greedy tokens, no cache",
          "logits, dynamic cache", "greedy tokens, static cache", "logits, paged cache"}) {
      EXPECT_TRUE(names.contains(dtype + ": " + name)) << dtype << ": " << name;
    }
    EXPECT_TRUE(names.contains(dtype + ", window of 6: logits, sliding cache"));
  }
}

// Without any slack, 16 bits are worse than float32 by more than rounding.
TEST_F(A12, sanity_check_exits_with_1_on_a_mismatch) {
  const Outcome outcome = flashmha("sanity-check --seq-length 8 --new-tokens 1 --slack 0 --json " +
                                   path("report.json"));
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  const Json report = Json::parse(read_text(path("report.json")));
  EXPECT_GT(report.at("num_failed").get<int>(), 0);
  for (const Json& check : report.at("checks")) {
    const std::string verdict = check.at("passed").get<bool>() ? "  PASS  " : "  FAIL  ";
    EXPECT_NE(outcome.output.find(verdict + check.at("name").get<std::string>()), std::string::npos)
        << check;
  }
}

TEST(Measure, SpreadIsMedianAndExtremes) {
  const Spread odd = spread_of({3.0, 1.0, 9.0});
  EXPECT_EQ(odd.median, 3.0);
  EXPECT_EQ(odd.min, 1.0);
  EXPECT_EQ(odd.max, 9.0);
  EXPECT_EQ(spread_of({4.0, 1.0, 2.0, 9.0}).median, 3.0);
  EXPECT_EQ(spread_of({}).median, 0.0);
}

// A machine that slows down by half in between does not change the ratio of neighbours.
TEST(Measure, RatioIsOfNeighbours) {
  const std::vector<double> plain = {2.0, 2.0, 4.0, 4.0, 4.0};
  const std::vector<double> flash = {1.0, 1.0, 2.0, 2.0, 2.0};
  const Spread ratio = ratio_of(plain, flash);
  EXPECT_EQ(ratio.median, 2.0);
  EXPECT_EQ(ratio.min, 2.0);
  EXPECT_EQ(ratio.max, 2.0);
}

TEST(Measure, CandidatesTakeTurnsAfterAWarmUp) {
  std::string order;
  const std::vector<std::function<void()>> candidates = {[&] { order += 'a'; },
                                                         [&] { order += 'b'; }};
  const auto seconds = time_in_turn(candidates, {.repetitions = 3, .min_seconds = 0.0});
  EXPECT_EQ(order, "abababab");
  ASSERT_EQ(seconds.size(), 2u);
  EXPECT_EQ(seconds[0].size(), 3u);
  EXPECT_EQ(seconds[1].size(), 3u);
  // Work of no length is repeated, but not without end.
  EXPECT_EQ(time_in_turn(candidates, {.repetitions = 3, .min_seconds = 1e3})[0].size(), 60u);
}

TEST(Measure, TimesAreThoseOfTheWork) {
  const std::vector<std::function<void()>> candidates = {
      [] { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }};
  const auto seconds = time_in_turn(candidates, {.repetitions = 2, .min_seconds = 0.0});
  EXPECT_GE(*std::ranges::min_element(seconds[0]), 0.02);
}

TEST(Measure, ExtraMemoryIsThePeakOfTheWorkAlone) {
  const Tensor held = Tensor::empty({1 << 20}, DType::float32);
  EXPECT_EQ(extra_memory_bytes([] {
              { const Tensor first = Tensor::empty({1 << 12}, DType::float32); }
              const Tensor second = Tensor::empty({1 << 10}, DType::float32);
            }),
            std::size_t{4 << 12});
}

}  // namespace
}  // namespace flashmha::app
