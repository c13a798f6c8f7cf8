// What the CPU kernels promise beyond being right (tests/test_flash_attention.cpp covers that):
// bits that depend neither on threads nor on the rest of the batch, any workspace that holds a
// worker, and NaN that stays with the rows that see it. CTest runs both with every tier of
// instructions.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string_view>
#include <vector>

#include "attention/registry.h"
#include "flashmha/plan.h"
#include "tests/compare.h"

namespace flashmha {
namespace {

Tensor random_tensor(const Shape& shape, DType dtype, std::uint64_t seed) {
  Tensor values = Tensor::empty(shape, DType::float32);
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  for (std::int64_t i = 0; i < values.numel(); ++i)
    values.as<float>()[i] = normal(random);
  return cast(values, dtype);
}

Tensor poisoned(const Shape& shape, DType dtype) {
  Tensor tensor = Tensor::empty(shape, dtype);
  fill(tensor, std::numeric_limits<double>::quiet_NaN());
  return tensor;
}

const KernelEntry& entry(std::string_view name) {
  for (const KernelEntry& kernel : cpu_kernels()) {
    if (kernel.name == name) return kernel;
  }
  throw std::runtime_error("no such kernel");
}

// Runs one kernel of the CPU backend on a poisoned workspace, `bytes` long if given.
void launch(std::string_view name, const AttentionCall& call, std::size_t bytes = 0) {
  const Problem problem = make_problem(call);
  const KernelEntry& kernel = entry(name);
  ASSERT_EQ(kernel.refuse(problem), "");
  if (bytes == 0) bytes = kernel.workspace_bytes(problem);
  const Tensor workspace = poisoned({static_cast<std::int64_t>(bytes / 4 + 1)}, DType::float32);
  kernel.launch(problem, call, {static_cast<std::byte*>(workspace.view().data), bytes}, {});
}

// Inputs and outputs of forward and backward of one dense problem.
struct Dense {
  Tensor q, k, v, dout, out, lse, dq, dk, dv;
  AttentionOptions options;

  Dense(std::int64_t batch, std::int64_t seqlen_q, std::int64_t seqlen_k, DType dtype,
        std::uint64_t seed)
      : q(random_tensor({batch, seqlen_q, 4, 72}, dtype, seed)),
        k(random_tensor({batch, seqlen_k, 2, 72}, dtype, seed + 1)),
        v(random_tensor({batch, seqlen_k, 2, 72}, dtype, seed + 2)),
        dout(random_tensor({batch, seqlen_q, 4, 72}, dtype, seed + 3)),
        out(poisoned(q.shape(), dtype)),
        lse(poisoned({batch, 4, seqlen_q}, DType::float32)),
        dq(poisoned(q.shape(), dtype)),
        dk(poisoned(k.shape(), dtype)),
        dv(poisoned(v.shape(), dtype)) {}

  AttentionCall forward() const {
    AttentionCall call;
    call.q = q, call.k = k, call.v = v, call.out = out, call.lse = lse;
    call.options = options;
    return call;
  }
  AttentionCall backward() const {
    AttentionCall call = forward();
    call.dout = dout, call.dq = dq, call.dk = dk, call.dv = dv;
    return call;
  }
  void run() const {
    launch("cpu_forward", forward());
    launch("cpu_backward", backward());
  }
  std::vector<TensorView> results() const { return {out, lse, dq, dk, dv}; }
};

void expect_same_bits(const Dense& a, const Dense& b) {
  const char* names[] = {"out", "lse", "dq", "dk", "dv"};
  for (std::size_t i = 0; i < 5; ++i)
    EXPECT_TRUE(tests::same_bits(a.results()[i], b.results()[i])) << names[i];
}

struct Threads {
  explicit Threads(int count) { set_num_threads(count); }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;
  ~Threads() { set_num_threads(0); }
};

TEST(cpu_attention, bits_do_not_depend_on_threads) {
  const std::uint64_t seed = std::random_device{}();
  RecordProperty("seed", std::to_string(seed));
  for (const bool causal : {false, true}) {
    Dense one(1, 500, 500, DType::float32, seed), many(1, 500, 500, DType::float32, seed);
    one.options.causal = many.options.causal = causal;
    {
      const Threads threads(1);
      one.run();
    }
    for (const int count : {2, 3, 7}) {
      const Threads threads(count);
      many.run();
      expect_same_bits(one, many);
    }
  }
}

TEST(cpu_attention, backward_repeats_its_bits) {
  const std::uint64_t seed = std::random_device{}();
  const Threads threads(5);
  Dense first(2, 410, 777, DType::bfloat16, seed), again(2, 410, 777, DType::bfloat16, seed);
  first.run();
  for (int i = 0; i < 5; ++i) {
    again.run();
    expect_same_bits(first, again);
  }
}

// A sequence alone and as a part of a batch: forward, backward and decode.
TEST(cpu_attention, bits_do_not_depend_on_the_batch) {
  const std::uint64_t seed = std::random_device{}();
  for (const std::int64_t seqlen_q : {1, 5, 300}) {
    const Dense batch(3, seqlen_q, 700, DType::float32, seed);
    batch.run();
    for (std::int64_t b = 0; b < 3; ++b) {
      Dense alone(1, seqlen_q, 700, DType::float32, seed);
      copy(batch.q.view().slice(0, b, b + 1), alone.q);
      copy(batch.k.view().slice(0, b, b + 1), alone.k);
      copy(batch.v.view().slice(0, b, b + 1), alone.v);
      copy(batch.dout.view().slice(0, b, b + 1), alone.dout);
      alone.run();
      for (std::size_t i = 0; i < 5; ++i) {
        EXPECT_TRUE(tests::same_bits(alone.results()[i], batch.results()[i].slice(0, b, b + 1)))
            << "sequence " << b << ", seqlen_q " << seqlen_q << ", result " << i;
      }
    }
  }
}

// Fewer workers than planned for: the launch takes as many as the workspace holds.
TEST(cpu_attention, runs_in_the_workspace_of_one_thread) {
  const std::uint64_t seed = std::random_device{}();
  Dense full(1, 300, 300, DType::float16, seed), tight(1, 300, 300, DType::float16, seed);
  std::size_t forward_bytes = 0, backward_bytes = 0;
  {
    const Threads threads(1);
    forward_bytes = entry("cpu_forward").workspace_bytes(make_problem(full.forward()));
    backward_bytes = entry("cpu_backward").workspace_bytes(make_problem(full.backward()));
  }
  const Threads threads(4);
  full.run();
  launch("cpu_forward", tight.forward(), forward_bytes);
  launch("cpu_backward", tight.backward(), backward_bytes);
  expect_same_bits(full, tight);
}

// More heads than are packed at a time (forward.cpp, kWaveBytes): every wave gives its sequences
// what they get alone.
TEST(cpu_attention, waves_of_heads_do_not_know_each_other) {
  constexpr std::int64_t kBatch = 250;
  const std::uint64_t seed = std::random_device{}();
  const Dense batch(kBatch, 9, 300, DType::float32, seed);  // 18 rows a key head are not streamed
  const auto workspace_of = [&](std::int64_t sequences) {
    AttentionCall call = batch.forward();
    for (TensorView* tensor : {&call.q, &call.k, &call.v, &call.out, &call.lse})
      *tensor = tensor->slice(0, 0, sequences);
    return entry("cpu_forward").workspace_bytes(make_problem(call));
  };
  // With all heads packed at once, the second half would take half of this more.
  const std::size_t all_panels = kBatch * 2 * 300 * (72 + 72) * 4;
  EXPECT_LT(workspace_of(kBatch) - workspace_of(kBatch / 2), all_panels / 4);
  launch("cpu_forward", batch.forward());
  for (const std::int64_t b : {0, 1, 77, 124, 125, 200, 248, 249}) {
    const Dense alone(1, 9, 300, DType::float32, seed);
    copy(batch.q.view().slice(0, b, b + 1), alone.q);
    copy(batch.k.view().slice(0, b, b + 1), alone.k);
    copy(batch.v.view().slice(0, b, b + 1), alone.v);
    launch("cpu_forward", alone.forward());
    EXPECT_TRUE(tests::same_bits(alone.out, batch.out.view().slice(0, b, b + 1))) << b;
    EXPECT_TRUE(tests::same_bits(alone.lse, batch.lse.view().slice(0, b, b + 1))) << b;
  }
}

// Workspace grows with the sequence, not with its square.
TEST(cpu_attention, workspace_is_linear) {
  const auto bytes = [](std::int64_t seqlen) {
    const Dense dense(1, seqlen, seqlen, DType::bfloat16, 1);
    return static_cast<double>(
        entry("cpu_forward").workspace_bytes(make_problem(dense.forward())) +
        entry("cpu_backward").workspace_bytes(make_problem(dense.backward())));
  };
  EXPECT_LT(bytes(8192) - bytes(4096), 2.2 * (bytes(4096) - bytes(2048)));
}

// A NaN or infinity in key 100 reaches the rows that see it, in every gradient, and no others.
TEST(cpu_attention, nan_reaches_only_rows_that_see_it) {
  const std::uint64_t seed = std::random_device{}();
  for (const std::int64_t seqlen_q : {4, 200}) {
    for (const double bad : {std::nan(""), static_cast<double>(INFINITY)}) {
      Dense clean(1, seqlen_q, 200, DType::float32, seed);
      Dense dirty(1, seqlen_q, 200, DType::float32, seed);
      clean.options.causal = dirty.options.causal = true;
      fill(dirty.v.view().slice(1, 100, 101), bad);
      clean.run();
      dirty.run();
      const std::int64_t first_seeing = std::max<std::int64_t>(0, 100 - (200 - seqlen_q));
      EXPECT_TRUE(tests::same_bits(clean.out.view().slice(1, 0, first_seeing),
                                   dirty.out.view().slice(1, 0, first_seeing)));
      const TensorView seeing = dirty.out.view().slice(1, first_seeing, seqlen_q);
      const Tensor copied = clone(seeing);
      for (std::int64_t i = 0; i < copied.numel(); ++i)
        ASSERT_FALSE(std::isfinite(copied.as<float>()[i])) << i;
      EXPECT_TRUE(tests::same_bits(clean.dq.view().slice(1, 0, first_seeing),
                                   dirty.dq.view().slice(1, 0, first_seeing)));
    }
  }
}

TEST(cpu_attention, refuses_with_reasons) {
  Problem problem;
  problem.dtype = DType::float64;
  EXPECT_NE(entry("cpu_forward").refuse(problem).find("float64"), std::string::npos);
  problem.dtype = DType::float32;
  problem.device = {DeviceType::cuda, 0};
  EXPECT_NE(entry("cpu_forward").refuse(problem).find("cuda:0"), std::string::npos);
  problem.device = {};
  EXPECT_EQ(entry("cpu_forward").refuse(problem), "");
  EXPECT_NE(entry("cpu_decode").refuse(problem), "");
}

}  // namespace
}  // namespace flashmha
