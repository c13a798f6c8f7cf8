// flashmha generate and the example, from outside, with a small model of bytes.
#include <gtest/gtest.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "flashmha/checkpoint.h"
#include "flashmha/text_generation.h"
#include "shell.h"

namespace flashmha::app {
namespace {

using model::GeneratedText;
using model::TextGenerationOptions;

std::unique_ptr<model::CausalLM> byte_model() {
  model::ModelConfig config = model::default_config();
  config.vocab_size = 257;
  config.intermediate_size = 96;
  config.num_layers = 2;
  config.initializer_range = 0.3f;
  config.attention.hidden_size = 64;
  config.attention.num_heads = 4;
  config.attention.num_kv_heads = 2;
  config.attention.head_dim = 16;
  config.eos_token_ids = {256};
  auto model = std::make_unique<model::CausalLM>(config);
  model->init_weights(5);
  return model;
}

class Generate : public Scratch {
 protected:
  void SetUp() override {
    model_ = byte_model();
    save_pretrained(*model_, path("model"));
  }

  // Standard output alone; statistics and errors go to `errors`.
  Outcome run(const std::string& arguments, const std::string& input = "/dev/null") const {
    const std::string streams = " < " + input + " 2> " + path("errors");
    return shell(std::string("(") + FLASHMHA_PROGRAM + " generate --model " + path("model") + " " +
                 arguments + streams + ")");
  }

  std::string errors() const { return read_text(path("errors")); }

  std::vector<GeneratedText> expected(const std::vector<std::string>& prompts,
                                      TextGenerationOptions options) const {
    options.generation.stop_token_ids = {256};
    return generate_text(*model_, text::Tokenizer::bytes(), prompts, options);
  }

  std::unique_ptr<model::CausalLM> model_;
};

TEST_F(Generate, continues_a_prompt_and_says_how_fast) {
  const TextGenerationOptions options{.generation = {.max_new_tokens = 20}};
  const std::string text = expected({"Hello [a,b]"}, options)[0].text;
  const Outcome outcome = run("--prompt 'Hello [a,b]' --max-new-tokens 20");
  EXPECT_EQ(outcome.exit_code, 0) << errors();
  EXPECT_EQ(outcome.output, text + "\n");
  EXPECT_NE(errors().find("tokens/s"), std::string::npos) << errors();
  EXPECT_NE(errors().find("of reading memory"), std::string::npos) << errors();
  EXPECT_EQ(run("--prompt 'Hello [a,b]' --max-new-tokens 20 --no-stream").output, text + "\n");
  EXPECT_EQ(run("--prompt 'Hello [a,b]' --max-new-tokens 20 --echo").output,
            "Hello [a,b]" + text + "\n");
  for (const std::string cache : {"static", "paged", "none"}) {
    EXPECT_EQ(run("--prompt 'Hello [a,b]' --max-new-tokens 20 --cache " + cache).output,
              text + "\n")
        << cache;
  }
}

TEST_F(Generate, reads_a_file_or_standard_input) {
  std::ofstream(path("prompt")) << "From a file\n";
  const TextGenerationOptions options{.generation = {.max_new_tokens = 12}};
  const std::string text = expected({"From a file"}, options)[0].text;
  EXPECT_EQ(run("--max-new-tokens 12 --prompt-file " + path("prompt")).output, text + "\n");
  EXPECT_EQ(run("--max-new-tokens 12", path("prompt")).output, text + "\n");
}

// One character that the text has, and the text before it.
TEST_F(Generate, ends_before_a_stop_string) {
  const TextGenerationOptions options{.generation = {.max_new_tokens = 60}};
  const std::string text = expected({"Hello"}, options)[0].text;
  const std::size_t at =
      text.find_first_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", 5);
  ASSERT_NE(at, std::string::npos) << text;
  const std::string stop(1, text[at]);
  const std::string before = text.substr(0, text.find(stop));
  const std::string flags =
      "--prompt Hello --max-new-tokens 60 --stop 'never there' --stop " + stop;
  const Outcome outcome = run(flags + " --json " + path("report.json"));
  EXPECT_EQ(outcome.exit_code, 0) << errors();
  EXPECT_EQ(outcome.output, before + "\n");
  const auto report = nlohmann::json::parse(read_text(path("report.json")));
  EXPECT_EQ(report.at("results").at(0).at("finish_reason"), "stop_string");
  EXPECT_EQ(run(flags + " --no-stream").output, before + "\n");
}

// The first character arrives while the program still makes the others: at most three bytes each,
// fewer than an output buffer holds, and without a cache they take it long.
TEST_F(Generate, streams_the_text_as_it_comes) {
  Process generating("exec " FLASHMHA_PROGRAM " generate --model " + path("model") +
                     " --prompt Hello --max-new-tokens 1000 --cache none --ignore-eos 2> " +
                     path("errors"));
  EXPECT_NE(generating.next_character(), EOF) << errors();
  std::this_thread::sleep_for(std::chrono::milliseconds(100));  // would it end with that?
  EXPECT_TRUE(generating.is_running());
}

TEST_F(Generate, batches_write_one_after_another_and_as_json) {
  TextGenerationOptions options{.generation = {.max_new_tokens = 9}};
  options.generation.sampling = {.temperature = 0.9,
                                 .top_k = 40,
                                 .top_p = 0.9,
                                 .min_p = 0.01,
                                 .repetition_penalty = 1.1,
                                 .seed = 7};
  options.generation.num_return_sequences = 2;
  const std::vector<GeneratedText> texts = expected({"one", "a longer one"}, options);
  const Outcome outcome =
      run("--prompt one --prompt 'a longer one' --max-new-tokens 9 --temperature 0.9 --top-k 40 "
          "--top-p 0.9 --min-p 0.01 --repetition-penalty 1.1 --seed 7 --num-return-sequences 2 "
          "--json " +
          path("report.json"));
  ASSERT_EQ(outcome.exit_code, 0) << errors();
  EXPECT_EQ(outcome.output, "== prompt 1, sequence 1 ==\n" + texts[0].text +
                                "\n\n== prompt 1, sequence 2 ==\n" + texts[1].text +
                                "\n\n== prompt 2, sequence 1 ==\n" + texts[2].text +
                                "\n\n== prompt 2, sequence 2 ==\n" + texts[3].text + "\n");
  const auto report = nlohmann::json::parse(read_text(path("report.json")));
  ASSERT_EQ(report.at("results").size(), 4u);
  EXPECT_EQ(report.at("results").at(3).at("prompt"), "a longer one");
  EXPECT_EQ(report.at("results").at(3).at("text"), texts[3].text);
  EXPECT_EQ(report.at("results").at(3).at("tokens"), texts[3].tokens);
  EXPECT_EQ(report.at("results").at(0).at("finish_reason"),
            finish_reason_name(texts[0].finish_reason));
  const auto& speed = report.at("speed");
  EXPECT_GT(speed.at("memory_share").get<double>(), 0.0);
  EXPECT_EQ(speed.at("memory"), "reading");
  std::size_t num_tokens = 0;
  for (const GeneratedText& text : texts)
    num_tokens += text.tokens.size();
  EXPECT_EQ(speed.at("num_tokens"), num_tokens);
}

TEST_F(Generate, searches_with_beams) {
  TextGenerationOptions options{.generation = {.max_new_tokens = 8, .num_beams = 3}};
  options.generation.length_penalty = 0.5;
  options.generation.early_stopping = model::EarlyStopping::never;
  const std::string text = expected({"beams"}, options)[0].text;
  const Outcome outcome =
      run("--prompt beams --max-new-tokens 8 --num-beams 3 --length-penalty 0.5 --early-stopping "
          "never");
  EXPECT_EQ(outcome.output, text + "\n") << errors();
}

TEST_F(Generate, refuses_bad_input_with_2) {
  const auto refuse = [&](const std::string& arguments, const std::string& message) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.exit_code, 2) << arguments;
    EXPECT_EQ(outcome.output, "") << arguments;
    EXPECT_NE(errors().find(message), std::string::npos) << arguments << "\n" << errors();
  };
  refuse("--prompt ''", "prompt 0 must not be empty");
  refuse("--prompt x --temperature -1", "temperature must be finite and not negative; got -1");
  refuse("--prompt x --temperature nan", "temperature must be finite and not negative; got nan");
  refuse("--prompt x --temperature 0 --top-k 3", "need a --temperature above 0; got 0");
  refuse("--prompt x --top-k -3", "top_k must not be negative; got -3");
  refuse("--prompt x --top-p 1.5", "top_p must be in [0, 1]; got 1.5");
  refuse("--prompt x --max-new-tokens -2", "max_new_tokens must not be negative; got -2");
  refuse("--prompt x --num-beams 0", "num_beams (0)");
  refuse("--prompt x --num-beams 2 --temperature 1", "excludes a temperature above 0; got 1");
  refuse("--prompt x --num-beams 2 --stop y", "num_beams (2) excludes stop_strings");
  refuse("--prompt x --stop ''", "stop_strings must not be empty");
  refuse("--prompt x --cache sliding", "needs a model with a sliding_window");
  refuse("--prompt x --cache ring", "--cache");
  refuse("--prompt x --dtype int8", "--dtype");
  refuse("--prompt x --prompt-file y", "excludes");
  refuse("--prompt-file /absent/prompt", "cannot open --prompt-file '/absent/prompt'");
  refuse("--prompt x --model /absent", "--model");
  refuse("--prompt x --json /absent/report.json", "cannot write '/absent/report.json'");
  const Outcome absent = shell(FLASHMHA_PROGRAM " generate --model /absent --prompt x");
  EXPECT_EQ(absent.exit_code, 2);
  EXPECT_NE(absent.output.find("--model must be a directory; got '/absent'"), std::string::npos);
}

TEST_F(Generate, the_example_does_it_too) {
  const Outcome outcome = shell(FLASHMHA_EXAMPLE_GENERATE " " + path("model") + " 'A text'");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_NE(outcome.output.find(" tokens, ended by "), std::string::npos) << outcome.output;
  EXPECT_EQ(shell(FLASHMHA_EXAMPLE_GENERATE " /absent x").exit_code, 1);
}

}  // namespace
}  // namespace flashmha::app
