#include "core/allocator.h"

#include <gtest/gtest.h>

#include <cstring>
#include <thread>
#include <vector>

#include "flashmha/tensor.h"

namespace flashmha {
namespace {

TEST(Allocator, ABlockIsUsedAgain) {
  constexpr std::size_t kBytes = std::size_t{1} << 20;
  void* first = allocate(kBytes, {}).get();
  void* second = allocate(kBytes, {}).get();
  EXPECT_EQ(first, second);
}

TEST(Allocator, LiveBlocksNeverOverlap) {
  std::vector<std::shared_ptr<void>> blocks;
  for (int i = 0; i < 64; ++i) {
    blocks.push_back(allocate(std::size_t{1} << 16, {}));
    std::memset(blocks.back().get(), i, std::size_t{1} << 16);
  }
  for (int i = 0; i < 64; ++i) {
    const auto* bytes =
        static_cast<const unsigned char*>(blocks[static_cast<std::size_t>(i)].get());
    EXPECT_EQ(bytes[0], i);
    EXPECT_EQ(bytes[(std::size_t{1} << 16) - 1], i);
  }
}

TEST(Allocator, CountsAcrossThreads) {
  const std::size_t before = memory_stats().current_bytes;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      for (int repeat = 0; repeat < 200; ++repeat) {
        const auto block = allocate(static_cast<std::size_t>(1000 * (repeat + 1)), {});
        std::memset(block.get(), 1, 1000);
      }
    });
  }
  for (std::thread& thread : threads)
    thread.join();
  EXPECT_EQ(memory_stats().current_bytes, before);
}

}  // namespace
}  // namespace flashmha
