#include "core/parallel.h"

#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "flashmha/device.h"
#include "tests/core/expect_error.h"
#include "tests/environment.h"

namespace flashmha {
namespace {

struct WithThreads {
  explicit WithThreads(int count) { set_num_threads(count); }
  ~WithThreads() { set_num_threads(0); }
};

TEST(Parallel, EveryTaskRunsOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    const WithThreads scope(threads);
    for (const std::int64_t count : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(count));
      parallel_for(count, threads, [&](std::int64_t task, int worker) {
        EXPECT_GE(worker, 0);
        EXPECT_LT(worker, threads);
        ++runs[static_cast<std::size_t>(task)];
      });
      for (const auto& run : runs)
        EXPECT_EQ(run, 1);
    }
  }
}

TEST(Parallel, AWorkerIsOneThreadAtATime) {
  const WithThreads scope(4);
  std::vector<std::atomic<int>> inside(3);
  parallel_for(500, 3, [&](std::int64_t, int worker) {
    std::atomic<int>& count = inside[static_cast<std::size_t>(worker)];
    EXPECT_EQ(count.fetch_add(1), 0);
    std::this_thread::yield();
    count.fetch_sub(1);
  });
}

TEST(Parallel, ThreadsReallyTakePart) {
  const WithThreads scope(2);
  std::mutex mutex;
  std::set<std::thread::id> threads;
  // The second task can only finish once another thread has taken the first.
  std::atomic<int> arrived{0};
  parallel_for(2, 2, [&](std::int64_t, int) {
    ++arrived;
    while (arrived < 2)
      std::this_thread::yield();
    const std::lock_guard lock(mutex);
    threads.insert(std::this_thread::get_id());
  });
  EXPECT_EQ(threads.size(), 2u);
}

TEST(Parallel, NestedCallsRunInline) {
  const WithThreads scope(2);
  std::atomic<int> total{0};
  parallel_for(8, 2, [&](std::int64_t, int) {
    parallel_for(5, 2, [&](std::int64_t, int worker) {
      EXPECT_EQ(worker, 0);
      ++total;
    });
  });
  EXPECT_EQ(total, 40);
}

TEST(Parallel, ConcurrentCallersAllFinish) {
  const WithThreads scope(2);
  std::atomic<int> total{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      for (int repeat = 0; repeat < 50; ++repeat) {
        parallel_for(10, 2, [&](std::int64_t, int) { ++total; });
      }
    });
  }
  for (std::thread& caller : callers)
    caller.join();
  EXPECT_EQ(total, 2000);
}

TEST(Parallel, TheFirstExceptionReachesTheCallerAndThePoolLivesOn) {
  for (const int threads : {1, 2}) {
    const WithThreads scope(threads);
    EXPECT_THROW(parallel_for(100, threads,
                              [](std::int64_t task, int) {
                                if (task == 3) throw std::runtime_error("task 3");
                              }),
                 std::runtime_error);
    std::atomic<int> total{0};
    parallel_for(10, threads, [&](std::int64_t, int) { ++total; });
    EXPECT_EQ(total, 10);
  }
}

TEST(Parallel, ThreadCountIsCheckedAndRestored) {
  set_num_threads(5);
  EXPECT_EQ(num_threads(), 5);
  set_num_threads(0);
  EXPECT_GE(num_threads(), 1);
  test::expect_error(ErrorCode::invalid_argument, {"[set_num_threads]", "-1"},
                     [] { set_num_threads(-1); });
}

TEST(Parallel, TheEnvironmentNamesTheDefault) {
  const test::EnvironmentVariable variable("FLASHMHA_NUM_THREADS", "3");
  set_num_threads(0);
  EXPECT_EQ(num_threads(), 3);
  set_num_threads(2);
  EXPECT_EQ(num_threads(), 2) << "a call counts more";
  for (const char* wrong : {"", "0", "-2", "x", "3x", " 3", "2.5", "99999999999"}) {
    variable.set(wrong);
    set_num_threads(0);
    test::expect_error([] { num_threads(); },
                       {"[num_threads] FLASHMHA_NUM_THREADS must be a number from 1 on; got '" +
                        std::string(wrong) + "'"});
  }
  variable.set("4");
  EXPECT_EQ(num_threads(), 4) << "a wrong number is not remembered";
  set_num_threads(0);
}

}  // namespace
}  // namespace flashmha
