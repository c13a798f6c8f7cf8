#include "io/file.h"

#include <sys/stat.h>
#include <unistd.h>

#include <optional>

#include "tests/core/expect_error.h"
#include "tests/io/folder.h"
#include "tests/io/limited.h"

namespace flashmha::io {
namespace {

using test::expect_error;
using test::Folder;

std::string text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

TEST(MappedFile, HasTheBytesOfTheFile) {
  const Folder folder;
  EXPECT_EQ(text_of(MappedFile(folder.write("a", "some bytes"))), "some bytes");
  EXPECT_TRUE(MappedFile(folder.write("empty", "")).bytes().empty());
}

TEST(MappedFile, KeepsItsBytesWhenTheFileIsReplaced) {
  const Folder folder;
  const MappedFile file(folder.write("a", "before"));
  write_text_file(folder / "a", "afterwards");
  EXPECT_EQ(text_of(file), "before");
  EXPECT_EQ(folder.read("a"), "afterwards");
}

TEST(MappedFile, RefusesWhatIsNoRegularFile) {
  const Folder folder;
  expect_error(ErrorCode::io, {"[MappedFile]", "cannot open", "/none", "No such file"},
               [&] { MappedFile(folder / "none"); });
  expect_error(ErrorCode::io, {"not a regular file"}, [&] { MappedFile(folder.path()); });
  ASSERT_EQ(mkfifo((folder / "pipe").c_str(), 0600), 0);
  expect_error(ErrorCode::io, {"not a regular file"}, [&] { MappedFile(folder / "pipe"); });
}

TEST(ReadTextFile, ReadsWithinALimit) {
  const Folder folder;
  const std::string path = folder.write("a", "12345");
  EXPECT_EQ(read_text_file(path, 5), "12345");
  expect_error(ErrorCode::io, {"[read_text_file]", "at most 4 bytes; got 5"},
               [&] { read_text_file(path, 4); });
}

TEST(AtomicFile, AppearsWholeAndLeavesNothingElse) {
  const Folder folder;
  AtomicFile file(folder / "a");
  file.reserve(1000);
  file.write("one ");
  file.write("two");
  EXPECT_EQ(folder.names(), std::set<std::string>{".a.tmp"});
  file.publish();
  EXPECT_EQ(folder.read("a"), "one two");
  EXPECT_EQ(folder.names(), std::set<std::string>{"a"});
}

TEST(AtomicFile, LeavesTheOldFileUntilItIsPublished) {
  const Folder folder;
  folder.write("a", "old");
  {
    AtomicFile file(folder / "a");
    file.write("new");
    file.sync();
    EXPECT_EQ(folder.read("a"), "old");
  }
  EXPECT_EQ(folder.read("a"), "old");
  EXPECT_EQ(folder.names(), std::set<std::string>{"a"});
}

TEST(AtomicFile, UsesWhatADeadProcessLeft) {
  const Folder folder;
  folder.write(".a.tmp", "half of something that was longer");
  write_text_file(folder / "a", "new");
  EXPECT_EQ(folder.read("a"), "new");
  EXPECT_EQ(folder.names(), std::set<std::string>{"a"});
}

TEST(AtomicFile, OnlyWhatADeadProcessLeftIsRemoved) {
  const Folder folder;
  folder.write(".a.tmp", "left");
  remove_abandoned(folder / "a");
  EXPECT_TRUE(folder.names().empty());
  remove_abandoned(folder / "a");
  AtomicFile file(folder / "a");
  remove_abandoned(folder / "a");
  EXPECT_EQ(folder.names(), std::set<std::string>{".a.tmp"});
  file.publish();
}

TEST(AtomicFile, RefusesASecondWriter) {
  const Folder folder;
  std::optional<AtomicFile> first(folder / "a");
  expect_error(ErrorCode::io, {"[AtomicFile]", "/a", "another writer"},
               [&] { AtomicFile(folder / "a"); });
  first->write("first");
  first->publish();
  first.reset();
  write_text_file(folder / "a", "second");
  EXPECT_EQ(folder.read("a"), "second");
}

TEST(AtomicFile, DoesNotFollowALink) {
  const Folder folder;
  folder.write("precious", "precious");
  ASSERT_EQ(symlink((folder / "precious").c_str(), (folder / ".a.tmp").c_str()), 0);
  expect_error(ErrorCode::io, {"[AtomicFile] cannot write"}, [&] { AtomicFile(folder / "a"); });
  EXPECT_EQ(folder.read("precious"), "precious");
}

TEST(AtomicFile, FailsWhereNothingCanBeWritten) {
  const Folder folder;
  expect_error(ErrorCode::io, {"cannot write", "No such file"},
               [&] { AtomicFile(folder / "none/a"); });
  expect_error(ErrorCode::io, {"cannot write", "Not a directory"},
               [&] { AtomicFile(folder.write("file", "") + "/a"); });
  expect_error(ErrorCode::io, {"cannot replace", "nothing was overwritten"}, [&] {
    std::filesystem::create_directory(folder / "folder");
    write_text_file(folder / "folder", "text");
  });
}

TEST(AtomicFileDeathTest, AFullDiskOverwritesNothing) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const Folder folder;
  folder.write("a", "old");
  EXPECT_EXIT(test::exit_after([&] {
                test::limit_file_size(1000);
                AtomicFile file(folder / "a");
                file.write(std::string(2000, 'x'));
                file.publish();
              }),
              test::exited_with(ErrorCode::io),
              (test::Says{"cannot write", "/a: ", "nothing was overwritten"}));
  EXPECT_EQ(folder.read("a"), "old");
  EXPECT_EQ(folder.names(), std::set<std::string>{"a"});
}

TEST(AtomicFileDeathTest, AFolderWithoutPermissionIsRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const Folder folder;
  std::filesystem::permissions(folder.path(), std::filesystem::perms{0555});
  EXPECT_EXIT(test::exit_after([&] {
                // Root may write everywhere; nobody may not.
                if (geteuid() == 0 && seteuid(65534) != 0) abort();
                AtomicFile(folder / "a");
              }),
              test::exited_with(ErrorCode::io),
              (test::Says{"cannot write", "/a: Permission denied"}));
}

}  // namespace
}  // namespace flashmha::io
