#include "command.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <thread>

#include "flashmha/device.h"
#include "flashmha/error.h"
#include "shell.h"

namespace flashmha::app {
namespace {

class JsonFile : public Scratch {};

TEST_F(JsonFile, is_written_whole_and_leaves_nothing_beside_it) {
  const CommonFlags flags{.json_path = path("report.json")};
  prepare(flags);
  EXPECT_EQ(num_files(), 0u) << "prepare() must not leave a file";
  write_json(flags, {{"b_ms", 1.5}, {"a_bytes", 2}});
  EXPECT_EQ(read_text(path("report.json")), "{\n  \"b_ms\": 1.5,\n  \"a_bytes\": 2\n}\n");
  EXPECT_EQ(num_files(), 1u);
}

TEST_F(JsonFile, replaces_an_older_report) {
  const CommonFlags flags{.json_path = path("report.json")};
  write_json(flags, {{"round", 1}, {"long", std::string(1000, 'x')}});
  write_json(flags, {{"round", 2}});
  EXPECT_EQ(read_text(path("report.json")), "{\n  \"round\": 2\n}\n");
}

TEST_F(JsonFile, goes_into_a_pipe_in_place) {
  const std::string pipe = path("pipe");
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  std::string received;
  std::thread reader([&] { received = read_text(pipe); });
  const CommonFlags flags{.json_path = pipe};
  prepare(flags);
  write_json(flags, {{"x", 1}});
  reader.join();
  EXPECT_EQ(received, "{\n  \"x\": 1\n}\n");
  EXPECT_TRUE(std::filesystem::is_fifo(pipe));
}

TEST_F(JsonFile, is_refused_before_the_work_when_it_cannot_be_written) {
  const auto refusal = [](const std::string& json_path) -> std::string {
    try {
      prepare({.json_path = json_path});
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::io);
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(
      refusal(path("absent/report.json")),
      "[--json] cannot write '" + path("absent/report.json") + "': No such file or directory");
  std::filesystem::create_directory(path("folder"));
  EXPECT_EQ(refusal(path("folder")),
            "[--json] cannot write '" + path("folder") + "': it is a directory");
}

TEST(Threads, follow_the_flag) {
  prepare({.threads = 3});
  EXPECT_EQ(num_threads(), 3);
  prepare({.threads = 0});
  EXPECT_EQ(num_threads(), 3) << "0 leaves what is set";
  set_num_threads(0);
}

}  // namespace
}  // namespace flashmha::app
