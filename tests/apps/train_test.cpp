// `flashmha train` from outside: killed and resumed, on bad input, on a full disk.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>
#include <vector>

#include "shell.h"
#include "tests/seed.h"
#include "tests/train/fixture.h"

namespace flashmha::app {
namespace {

namespace fs = std::filesystem;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// Text that looks a little like language: words of a small vocabulary.
void write_words(const std::string& path, int num_words, std::uint64_t seed) {
  constexpr const char* kWords[] = {"the ",  "work ",    "may ", "be ",
                                    "used ", "copied, ", "and ", "changed.\n"};
  std::mt19937_64 random(seed);
  std::ofstream file(path);
  for (int i = 0; i < num_words; ++i)
    file << kWords[random() % 8];
}

class Train : public Scratch {
 protected:
  void SetUp() override {
    fs::create_directories(path("data"));
    for (int i = 0; i < 5; ++i)
      write_words(path("data/" + std::to_string(i) + ".txt"), 300, static_cast<std::uint64_t>(i));
  }

  std::string arguments(const std::string& output, const std::string& more) const {
    return "train --data " + path("data") + " --output " + path(output) +
           " --layers 1 --hidden 16 --heads 2 --seq-length 32 --batch-size 4 " + more;
  }

  Outcome train(const std::string& output, const std::string& more) const {
    return shell(std::string(FLASHMHA_PROGRAM) + " " + arguments(output, more));
  }

  // A command line whose signals reach the program, not the shell.
  std::string command(const std::string& output, const std::string& more) const {
    return "exec " + std::string(FLASHMHA_PROGRAM) + " " + arguments(output, more);
  }

  // Starts the command, kills it after a while, and says whether it was still running.
  bool train_and_kill(const std::string& output, const std::string& more,
                      std::chrono::microseconds after) const {
    Process training(command(output, more));
    const auto end = std::chrono::steady_clock::now() + after;
    while (std::chrono::steady_clock::now() < end) {
      if (!training.is_running()) return false;
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
    training.signal(SIGKILL);
    return training.wait().exit_code == -1;
  }

  // The same as soon as it writes a checkpoint. Says whether the kill came before the end of that.
  bool train_and_kill_while_it_writes(const std::string& output, const std::string& more) const {
    Process training(command(output, more));
    // First it removes what the last kill left.
    while (training.is_running() && num_unfinished_checkpoints(output) > 0) {
    }
    while (training.is_running() && num_unfinished_checkpoints(output) == 0) {
    }
    training.signal(SIGKILL);
    return training.wait().exit_code == -1 && num_unfinished_checkpoints(output) > 0;
  }

  int num_unfinished_checkpoints(const std::string& output) const {
    std::error_code absent;
    int count = 0;
    for (const fs::directory_entry& entry : fs::directory_iterator(path(output), absent))
      count += entry.path().filename().string().starts_with(".checkpoint-") ? 1 : 0;
    return count;
  }

  // Whatever a kill leaves under the name of a checkpoint is one.
  void expect_checkpoints_are_whole(const std::string& output) const {
    if (!fs::exists(path(output))) return;  // killed before it began
    for (const fs::directory_entry& entry : fs::directory_iterator(path(output))) {
      if (!entry.path().filename().string().starts_with("checkpoint-")) continue;
      EXPECT_TRUE(fs::exists(entry.path() / "training_state.json"));
      EXPECT_TRUE(fs::exists(entry.path() / "model.safetensors"));
    }
  }

  void expect_ended_as(const std::string& whole, const std::string& output, int last_step) const {
    for (const char* file : {"model.safetensors", "training_state.safetensors",
                             "training_state.json", "config.json"}) {
      const std::string name = "/checkpoint-" + std::to_string(last_step) + "/" + file;
      EXPECT_TRUE(read_text(path(output + name)) == read_text(path(whole + name))) << file;
    }
    EXPECT_EQ(log_without_times(output), log_without_times(whole));
    for (const fs::directory_entry& entry : fs::directory_iterator(path(output)))
      EXPECT_FALSE(entry.path().filename().string().starts_with(".")) << entry.path();
  }

  std::vector<std::string> log_without_times(const std::string& output) const {
    return test::log_without_times(path(output));
  }
};

constexpr const char* kKilledRun = "--steps 24 --save-every 1 --eval-every 5 --dtype bfloat16 ";

// FLASHMHA_TEST_KILLS repeats it for longer.
TEST_F(Train, killed_at_any_moment_resumes_to_the_same_bits) {
  const char* wanted = std::getenv("FLASHMHA_TEST_KILLS");
  const int num_kills = wanted ? std::atoi(wanted) : 6;
  std::mt19937_64 random(test::test_seed());

  const std::string flags = kKilledRun;
  const auto start = std::chrono::steady_clock::now();
  const Outcome whole = train("whole", flags);
  ASSERT_EQ(whole.exit_code, 0) << whole.output;
  const std::chrono::duration<double, std::micro> duration =
      std::chrono::steady_clock::now() - start;
  auto limit_us = static_cast<std::uint64_t>(duration.count()) + 1;

  int num_killed = 0;
  while (num_killed < num_kills) {
    // Killed again and again until it is through. The time that it is given follows the machine's
    // speed: longer after each kill, so that it gets through, shorter after each end.
    while (train_and_kill("killed", flags + "--resume",
                          std::chrono::microseconds(random() % limit_us))) {
      limit_us += limit_us / 8;
      ++num_killed;
      expect_checkpoints_are_whole("killed");
    }
    limit_us = std::max<std::uint64_t>(limit_us / 2, 50'000);
    const Outcome last = train("killed", flags + "--resume");
    ASSERT_EQ(last.exit_code, 0) << last.output;
    expect_ended_as("whole", "killed", 24);
    fs::remove_all(path("killed"));
  }
}

TEST_F(Train, killed_while_it_writes_a_checkpoint_resumes_to_the_same_bits) {
  const std::string flags = kKilledRun;
  ASSERT_EQ(train("whole", flags).exit_code, 0);
  constexpr int kWanted = 3;
  int num_hits = 0;
  // A kill may come too late for one checkpoint, or the last. It hardly ever does.
  for (int attempts = 0; num_hits < kWanted && attempts < 100; ++attempts) {
    if (fs::exists(path("killed/checkpoint-24"))) fs::remove_all(path("killed"));
    num_hits += train_and_kill_while_it_writes("killed", flags + "--resume") ? 1 : 0;
    expect_checkpoints_are_whole("killed");
  }
  EXPECT_EQ(num_hits, kWanted);
  const Outcome last = train("killed", flags + "--resume");
  ASSERT_EQ(last.exit_code, 0) << last.output;
  expect_ended_as("whole", "killed", 24);
}

TEST_F(Train, finishes_the_step_and_saves_when_it_is_interrupted) {
  Process training(command("run", "--steps 1000000"));
  // The first line of the log is the evaluation before the first step.
  const auto num_lines = [&] { return std::ranges::count(read_text(path("run/log.jsonl")), '\n'); };
  while (training.is_running() && num_lines() < 2)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  training.signal(SIGINT);
  const Outcome outcome = training.wait();
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_TRUE(contains(outcome.output, "flashmha: stopped at step ")) << outcome.output;
  EXPECT_TRUE(contains(outcome.output, "run/checkpoint-")) << outcome.output;
}

TEST_F(Train, goes_on_from_a_model_directory_and_reports) {
  ASSERT_EQ(train("first", "--steps 3").exit_code, 0);
  const std::string checkpoint = path("first/checkpoint-3");
  const Outcome second =
      shell(FLASHMHA_PROGRAM " train --steps 2 --data " + path("data") + " --model " + checkpoint +
            " --seq-length 16 --output " + path("second") + " --json " + path("report.json"));
  ASSERT_EQ(second.exit_code, 0) << second.output;
  const auto report = nlohmann::json::parse(read_text(path("report.json")));
  EXPECT_EQ(report.at("end"), "finished");
  EXPECT_EQ(report.at("step"), 2);
  EXPECT_GT(report.at("peak_bytes"), 0);
  // The loss begins where the first run ended.
  const auto first = nlohmann::json::parse(log_without_times("first").back());
  const auto start = nlohmann::json::parse(log_without_times("second").front());
  EXPECT_NEAR(first.at("eval_loss").get<double>(), start.at("eval_loss").get<double>(), 0.3);
  EXPECT_TRUE(fs::exists(path("second/loss.svg")));
}

TEST_F(Train, refuses_bad_input_with_2) {
  std::ofstream(path("empty.txt")) << "";
  std::ofstream(path("binary")) << "text" << '\0' << "more";
  std::ofstream(path("lines.jsonl")) << "{\"text\": \"good\"}\n{\"txt\": \"bad\"}\n";
  std::ofstream(path("broken.jsonl")) << "{\"text\": \"good\"\n";
  fs::create_directories(path("nothing"));
  const auto refuses = [&](const std::string& more, const std::string& piece,
                           const std::string& output = "run") {
    const Outcome outcome = shell(FLASHMHA_PROGRAM " train --output " + path(output) + " " + more);
    EXPECT_EQ(outcome.exit_code, 2) << more << "\n" << outcome.output;
    EXPECT_TRUE(contains(outcome.output, piece)) << more << "\n" << outcome.output;
  };
  const std::string data = "--data " + path("data") + " ";
  refuses("", "--data is required");
  refuses("--data /absent", "[read_corpus] cannot read '/absent': No such file or directory");
  refuses("--data " + path("empty.txt"), "there is no text: 1 files, 1 of them empty");
  refuses("--data " + path("nothing"), "there is no text");
  refuses("--data " + path("binary"), "is no text: byte 4 is NUL");
  refuses("--data " + path("lines.jsonl"), "line 2");
  refuses("--data " + path("broken.jsonl"), "line 1");
  refuses(data + "--steps 0", "--steps");
  refuses(data + "--steps 3 --epochs 2", "excludes");
  refuses(data + "--batch-size 0", "--batch-size");
  refuses(data + "--model /absent", "/absent");
  refuses(data + "--model " + path("nothing"), "config.json");
  refuses(data + "--model " + path("nothing") + " --layers 2", "excludes");
  refuses(data + "--heads 3", "hidden_size");
  refuses(data + "--steps 3 --warmup-steps 4", "warmup_steps (4)");
  refuses(data + "--beta1 1", "beta1 (1)");
  refuses(data, "Not a directory", "empty.txt/run");
  EXPECT_FALSE(fs::exists(path("run/log.jsonl")));
}

TEST_F(Train, refuses_a_directory_with_another_run_and_changed_settings) {
  ASSERT_EQ(train("run", "--steps 2").exit_code, 0);
  const Outcome again = train("run", "--steps 2");
  EXPECT_EQ(again.exit_code, 2);
  EXPECT_TRUE(contains(again.output, "holds a run already")) << again.output;
  const Outcome changed = train("run", "--steps 3 --resume");
  EXPECT_EQ(changed.exit_code, 2);
  EXPECT_TRUE(contains(changed.output, "steps was 2 and is 3")) << changed.output;
  const Outcome same = train("run", "--steps 2 --resume");
  EXPECT_EQ(same.exit_code, 0) << same.output;
}

// A limit on the size of files stands for a full disk: the checkpoint's tensors do not fit.
TEST_F(Train, loses_nothing_on_a_full_disk) {
  const std::string flags = "--steps 4 --save-every 2 ";
  ASSERT_EQ(train("whole", flags).exit_code, 0);
  ASSERT_EQ(train("run", flags).exit_code, 0);
  fs::remove_all(path("run/checkpoint-4"));
  const std::string before = read_text(path("run/checkpoint-2/training_state.safetensors"));
  const Outcome full = shell("trap '' XFSZ; ulimit -f 20; " FLASHMHA_PROGRAM " " +
                             arguments("run", flags + "--resume"));
  EXPECT_EQ(full.exit_code, 2) << full.output;
  EXPECT_TRUE(contains(full.output, "the checkpoint of step 4 was not written, earlier ones stay"))
      << full.output;
  EXPECT_TRUE(read_text(path("run/checkpoint-2/training_state.safetensors")) == before);
  EXPECT_FALSE(fs::exists(path("run/checkpoint-4")));
  EXPECT_FALSE(fs::exists(path("run/.checkpoint-4.tmp")));

  ASSERT_EQ(train("run", flags + "--resume").exit_code, 0);
  EXPECT_TRUE(read_text(path("run/checkpoint-4/model.safetensors")) ==
              read_text(path("whole/checkpoint-4/model.safetensors")));
  EXPECT_EQ(log_without_times("run"), log_without_times("whole"));
}

TEST_F(Train, ends_with_1_where_the_loss_is_no_number) {
  const Outcome outcome =
      train("run", "--steps 50 --save-every 1 --clip 0 --learning-rate 1e30 --warmup-steps 0");
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_TRUE(contains(outcome.output, "flashmha: step ")) << outcome.output;
  EXPECT_TRUE(contains(outcome.output, "not finite: ")) << outcome.output;
  EXPECT_TRUE(fs::exists(path("run/checkpoint-1/model.safetensors")));
}

}  // namespace
}  // namespace flashmha::app
