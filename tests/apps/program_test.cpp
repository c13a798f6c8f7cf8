// The program from outside: exit codes, messages, files.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "flashmha/flashmha.h"
#include "shell.h"

namespace flashmha::app {
namespace {

Outcome flashmha(const std::string& arguments) {
  return shell(std::string(FLASHMHA_PROGRAM) + " " + arguments);
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Program, tells_its_version) {
  const Outcome outcome = flashmha("--version");
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(outcome.output, "flashmha " + std::string(kVersion) + "\n");
}

TEST(Program, helps_with_an_example_for_every_subcommand) {
  const Outcome all = flashmha("--help");
  EXPECT_EQ(all.exit_code, 0);
  for (const std::string name :
       {"benchmark", "benchmark attention", "generate", "info", "sanity-check", "train"}) {
    EXPECT_TRUE(contains(all.output, "\n  " + name.substr(0, name.find(' ')))) << all.output;
    const Outcome one = flashmha(name + " --help");
    EXPECT_EQ(one.exit_code, 0);
    EXPECT_TRUE(contains(one.output, "Example: flashmha " + name)) << one.output;
    EXPECT_TRUE(contains(one.output, "--json FILE")) << one.output;
    EXPECT_TRUE(contains(one.output, "--threads N")) << one.output;
  }
}

TEST(Program, exits_with_2_on_bad_usage) {
  for (const std::string arguments :
       {"", "unheard-of", "info --unheard-of", "info --threads -1", "info --threads x",
        "benchmark --batch-size 0", "benchmark --seq-length x", "benchmark --dtype int32",
        "benchmark --device tpu", "sanity-check extra"}) {
    const Outcome outcome = flashmha(arguments);
    EXPECT_EQ(outcome.exit_code, 2) << "flashmha " << arguments << "\n" << outcome.output;
    EXPECT_NE(outcome.output, "") << "flashmha " << arguments;
  }
}

TEST(Program, refuses_a_device_that_is_not_there) {
  const Outcome outcome = flashmha("benchmark --device cuda:63 --batch-size 1 --seq-length 16");
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_TRUE(contains(outcome.output, "cuda:63 is not available")) << outcome.output;
}

TEST(Program, reports_an_unwritable_file_before_the_work) {
  for (const std::string command : {"info", "benchmark", "sanity-check"}) {
    const Outcome outcome = flashmha(command + " --json /absent/report.json");
    EXPECT_EQ(outcome.exit_code, 2) << outcome.output;
    EXPECT_EQ(outcome.output,
              "flashmha: [--json] cannot write '/absent/report.json': "
              "No such file or directory\n");
  }
}

TEST(Program, names_a_forced_kernel_or_instruction_set_that_is_unknown) {
  const Outcome isa = shell("FLASHMHA_CPU_ISA=mmx " FLASHMHA_PROGRAM " info");
  EXPECT_EQ(isa.exit_code, 2);
  EXPECT_TRUE(contains(isa.output, "got \"mmx\"")) << isa.output;
}

class Info : public Scratch {};

TEST_F(Info, lists_every_kernel_with_its_answer) {
  const Outcome outcome = flashmha("info --threads 1 --json " + path("info.json"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  const auto report = nlohmann::json::parse(read_text(path("info.json")));
  EXPECT_EQ(report.at("version"), kVersion);
  EXPECT_EQ(report.at("threads"), 1);
  EXPECT_GT(report.at("memory_bytes").get<std::int64_t>(), 0);
  for (const auto& problem : report.at("problems")) {
    std::size_t num_serving = 0;
    ASSERT_EQ(problem.at("offers").size(), registry().size());
    for (const auto& offer : problem.at("offers")) {
      EXPECT_TRUE(contains(outcome.output, offer.at("kernel"))) << outcome.output;
      EXPECT_TRUE(contains(outcome.output, offer.at("refusal"))) << outcome.output;
      num_serving += offer.at("refusal") == "" ? 1u : 0u;
    }
    const bool on_cpu = !contains(problem.at("name"), "cuda");
    EXPECT_EQ(num_serving > 0, on_cpu) << problem;
  }
}

// The checker of the README's pasted outputs, on documents about `flashmha --version`.
class ReadmeCheck : public Scratch {
 protected:
  Outcome check(const std::string& block) {
    std::ofstream(path("doc.md")) << "# Title\n\n" << block;
    return shell(std::string(FLASHMHA_CHECK_README) + " " FLASHMHA_PROGRAM " " + path("doc.md"));
  }
};

TEST_F(ReadmeCheck, lets_numbers_differ) {
  const Outcome outcome =
      check("<!-- output of: flashmha --version -->\n```text\nflashmha 9.99.9\n```\n");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
}

TEST_F(ReadmeCheck, finds_changed_words_missing_lines_and_failing_commands) {
  const Outcome word = check("<!-- output of: flashmha --version -->\n```\nflashMHA 0.1.0\n```\n");
  EXPECT_EQ(word.exit_code, 1);
  EXPECT_TRUE(contains(word.output, "the document shows: flashMHA #")) << word.output;

  const Outcome lines = check("<!-- output of: flashmha --version -->\n```\n```\n");
  EXPECT_EQ(lines.exit_code, 1);
  EXPECT_TRUE(contains(lines.output, "the document lacks: flashmha #")) << lines.output;

  const Outcome more = check("<!-- output of: flashmha --version -->\n```\nflashmha 1\nx\n```\n");
  EXPECT_EQ(more.exit_code, 1);
  EXPECT_TRUE(contains(more.output, "nothing more")) << more.output;

  EXPECT_EQ(check("<!-- output of: flashmha --unheard-of -->\n```\nx\n```\n").exit_code, 1);
  EXPECT_EQ(check("no output at all\n").exit_code, 1);
}

TEST_F(ReadmeCheck, lets_dots_stand_for_lines) {
  const Outcome outcome =
      check("<!-- output of: flashmha info --help -->\n```\n...\nOptions:\n...\n```\n");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
}

// The checker of the C++ that documents show.
class SnippetCheck : public Scratch {
 protected:
  Outcome check(const std::string& text) {
    std::ofstream(path("doc.md")) << text;
    return shell(FLASHMHA_CHECK_SNIPPETS " " + path("doc.md"));
  }
};

TEST_F(SnippetCheck, compiles_blocks_with_and_without_includes) {
  const Outcome outcome = check(
      "```cpp\n#include \"flashmha/tensor.h\"\nusing namespace flashmha;\n"
      "const Tensor x = Tensor::zeros({2}, DType::float32);\n```\n"
      "```cpp\nstd::cout << kVersion;\n```\n```\nno C++\n```\n");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_TRUE(contains(outcome.output, "2 blocks compile")) << outcome.output;
}

TEST_F(SnippetCheck, finds_what_does_not_compile_and_where) {
  const Outcome outcome = check("# Title\n\n```cpp\nint one = 1;\nTensr x;\n```\n");
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_TRUE(contains(outcome.output, "doc.md:5:")) << outcome.output;
  EXPECT_NE(check("no C++ at all\n").exit_code, 0);
}

}  // namespace
}  // namespace flashmha::app
