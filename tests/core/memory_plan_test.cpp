#include "core/memory_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "core/allocator.h"
#include "flashmha/graph.h"
#include "flashmha/tensor.h"
#include "tests/core/expect_error.h"

namespace flashmha {
namespace {

using test::expect_error;

// The most bytes that are alive at a time, each rounded up to the alignment: no plan needs less.
std::size_t most_alive(std::span<const Lifetime> lifetimes) {
  std::size_t most = 0;
  for (const Lifetime& at : lifetimes) {
    std::size_t alive = 0;
    for (const Lifetime& other : lifetimes) {
      if (other.begin <= at.begin && at.begin < other.end)
        alive += (std::max<std::size_t>(other.bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
    }
    most = std::max(most, alive);
  }
  return most;
}

void expect_valid(const MemoryPlan& plan, std::span<const Lifetime> lifetimes) {
  ASSERT_EQ(plan.offsets.size(), lifetimes.size());
  for (std::size_t i = 0; i < lifetimes.size(); ++i) {
    EXPECT_EQ(plan.bytes[i], lifetimes[i].bytes);
    EXPECT_EQ(plan.offsets[i] % kAlignment, 0u);
    EXPECT_LE(plan.offsets[i] + lifetimes[i].bytes, plan.total_bytes);
    for (std::size_t j = 0; j < i; ++j) {
      const bool together =
          lifetimes[i].begin < lifetimes[j].end && lifetimes[j].begin < lifetimes[i].end;
      const bool apart = plan.offsets[i] + lifetimes[i].bytes <= plan.offsets[j] ||
                         plan.offsets[j] + lifetimes[j].bytes <= plan.offsets[i];
      EXPECT_TRUE(!together || apart) << i << " and " << j;
    }
  }
}

TEST(MemoryPlan, WhatIsNotAliveTogetherSharesItsPlace) {
  const std::vector<Lifetime> lifetimes = {{1000, 0, 2}, {640, 1, 5}, {1000, 3, 4}, {0, 6, 7}};
  const MemoryPlan plan = plan_memory(lifetimes);
  expect_valid(plan, lifetimes);
  EXPECT_EQ(plan.total_bytes, 1024u + 640u);
  EXPECT_EQ(plan_memory({}).total_bytes, 0u);
}

TEST(MemoryPlan, RandomLifetimesNeverOverlap) {
  std::mt19937 random(std::random_device{}());
  for (int round = 0; round < 50; ++round) {
    std::vector<Lifetime> lifetimes(random() % 60);
    for (Lifetime& lifetime : lifetimes) {
      lifetime.bytes = random() % 5000;
      lifetime.begin = random() % 100;
      lifetime.end = lifetime.begin + 1 + random() % 30;
    }
    expect_valid(plan_memory(lifetimes), lifetimes);
  }
}

// Layers that keep something until the backward comes back to them.
TEST(MemoryPlan, TheLifetimesOfTrainingNeedHardlyMoreThanIsAlive) {
  std::vector<Lifetime> lifetimes;
  constexpr std::int64_t kLayers = 16;
  for (std::int64_t layer = 0; layer < kLayers; ++layer) {
    const std::int64_t begin = 10 * layer;
    const std::int64_t end = 10 * (2 * kLayers - layer);
    for (const std::size_t bytes : {4096u, 4096u, 1024u, 16384u})
      lifetimes.push_back({bytes, begin, end});  // kept
    for (const std::int64_t pass : {begin, end - 10})
      lifetimes.push_back({16384u, pass + 2, pass + 6});  // needed for a moment
  }
  const MemoryPlan plan = plan_memory(lifetimes);
  expect_valid(plan, lifetimes);
  EXPECT_LE(plan.total_bytes, most_alive(lifetimes) * 105 / 100);
}

// Some work on tensors: one is kept for good in the first run.
struct Work {
  Tensor kept;
  float result = 0.0f;

  void operator()() {
    if (!kept.defined()) kept = Tensor::zeros({100}, DType::float32);
    const Tensor a = Tensor::zeros({64}, DType::float32);
    fill(a, 3.0);
    {
      const Tensor b = clone(a);
      result = b.as<float>()[63];
    }
    const Tensor c = Tensor::empty({32}, DType::float32);
    fill(c, 5.0);
    result += c.as<float>()[0] + a.as<float>()[0];
  }
};

MemoryPlan plan_of(Work& work) {
  const AllocationWatch watch(Device{});
  work();
  return plan_memory(watch.finish());
}

TEST(PlannedMemory, ServesTheSameWorkAgain) {
  Work work;
  const MemoryPlan plan = plan_of(work);
  EXPECT_EQ(plan.total_bytes, 256u + 256u);  // b and c take turns
  const Tensor block = Tensor::empty({static_cast<std::int64_t>(plan.total_bytes)}, DType::boolean);
  const std::size_t before = memory_stats().current_bytes;
  for (int run = 0; run < 3; ++run) {
    reset_peak_memory();
    PlannedMemory memory(Device{}, plan, block.view().data);
    work();
    memory.require_complete();
    EXPECT_EQ(work.result, 11.0f);
    EXPECT_EQ(memory_stats().peak_bytes, before);
  }
}

TEST(PlannedMemory, OtherWorkIsRefused) {
  Work work;
  const MemoryPlan plan = plan_of(work);
  const Tensor block = Tensor::empty({static_cast<std::int64_t>(plan.total_bytes)}, DType::boolean);
  const auto run = [&](const std::function<void()>& other) {
    PlannedMemory memory(Device{}, plan, block.view().data);
    other();
    memory.require_complete();
  };
  expect_error(ErrorCode::invalid_argument, {"[Graph]", "allocation 0 has 400 bytes", "256 bytes"},
               [&] { run([] { Tensor::empty({100}, DType::float32); }); });
  expect_error(ErrorCode::invalid_argument, {"[Graph]", "0 allocations", "made 3"},
               [&] { run([] {}); });
  expect_error(ErrorCode::invalid_argument, {"[Graph]", "allocation 3", "had none"}, [&] {
    run([&] {
      work();
      Tensor::empty({1}, DType::float32);
    });
  });
  Tensor held;
  expect_error(ErrorCode::invalid_argument, {"[Graph]", "must be free again", "1 allocations"},
               [&] {
                 run([&] {
                   held = Tensor::empty({64}, DType::float32);
                   Tensor::empty({64}, DType::float32);
                   Tensor::empty({32}, DType::float32);
                 });
               });
}

TEST(PlannedMemory, HooksDoNotNest) {
  const AllocationWatch watch(Device{});
  expect_error(ErrorCode::invalid_argument, {"[Graph]", "cannot record other work"},
               [] { const AllocationWatch inner(Device{}); });
}

TEST(Graph, OnACpuWorkJustRuns) {
  Graph graph;
  int runs = 0;
  for (int i = 0; i < 3; ++i)
    graph.run([&] { ++runs; });
  EXPECT_EQ(runs, 3);
  EXPECT_FALSE(graph.is_recorded());
}

TEST(CurrentStream, IsTheThreadsWhileItLives) {
  EXPECT_EQ(current_stream().handle, nullptr);
  int streams[2] = {};
  {
    const CurrentStream outer({&streams[0]});
    EXPECT_EQ(current_stream().handle, &streams[0]);
    {
      const CurrentStream inner({&streams[1]});
      EXPECT_EQ(current_stream().handle, &streams[1]);
    }
    EXPECT_EQ(current_stream().handle, &streams[0]);
  }
  EXPECT_EQ(current_stream().handle, nullptr);
}

}  // namespace
}  // namespace flashmha
