// Problems, plans, runs and what kernels say about them.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "attention/registry.h"
#include "flashmha/error.h"
#include "tests/attention/allocations.h"
#include "tests/attention/api.h"
#include "tests/compare.h"

namespace flashmha::tests {
namespace {

Case small_spec() {
  return {.batch = 2,
          .seqlen_q = 5,
          .seqlen_k = 7,
          .num_heads_q = 2,
          .num_heads_kv = 2,
          .head_dim = 16};
}

// FLASHMHA_FORCE_KERNEL for the life of this object.
class ForcedKernel {
 public:
  explicit ForcedKernel(const char* name) { setenv("FLASHMHA_FORCE_KERNEL", name, 1); }
  ForcedKernel(const ForcedKernel&) = delete;
  ForcedKernel& operator=(const ForcedKernel&) = delete;
  ~ForcedKernel() { unsetenv("FLASHMHA_FORCE_KERNEL"); }
};

template <class Act>
std::string error_of(ErrorCode code, Act act) {
  try {
    act();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "no error";
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

Tensor workspace_of(const Plan& plan) {
  return Tensor::empty({static_cast<std::int64_t>(plan.workspace_bytes) + 64}, DType::boolean);
}
std::span<std::byte> bytes(const Tensor& tensor, std::size_t offset, std::size_t count) {
  return {static_cast<std::byte*>(tensor.view().data) + offset, count};
}

// A text that is made before its rule is broken costs more than all rules together.
TEST(plan, rules_that_hold_make_no_texts) {
  for (const Layout layout : {Layout::dense, Layout::ragged, Layout::cache, Layout::cache_paged}) {
    Case spec = small_spec();
    spec.layout = layout;
    const Instance instance(spec, test_seed());
    const std::int64_t before = num_allocations();
    make_problem(instance.call);
    const std::int64_t after = num_allocations();
    EXPECT_EQ(after, before) << describe(make_problem(instance.call));
  }
}

TEST(A1, a_plan_runs_many_times_without_allocating) {
  const Instance instance(small_spec(), test_seed());
  const Plan plan = make_plan(instance.call);
  const Tensor workspace = workspace_of(plan);
  const AttentionResult expected = forward(instance.call);
  for (int repeat = 0; repeat < 3; ++repeat) {
    fill(instance.call.out, NAN);
    reset_peak_memory();
    const std::size_t before = memory_stats().current_bytes;
    run(plan, instance.call, bytes(workspace, 0, plan.workspace_bytes));
    EXPECT_EQ(memory_stats().peak_bytes, before);
    EXPECT_TRUE(same_bits(instance.call.out, expected.out));
    EXPECT_TRUE(same_bits(instance.call.lse, expected.lse));
  }
}

TEST(A1, a_plan_serves_every_call_of_its_problem) {
  const Instance first(small_spec(), test_seed());
  const Instance second(small_spec(), test_seed() + 1);
  const Plan plan = make_plan(first.call);
  const Tensor workspace = workspace_of(plan);
  run(plan, second.call, bytes(workspace, 0, plan.workspace_bytes));
  EXPECT_TRUE(same_bits(second.call.out, forward(second.call).out));
}

TEST(plan, the_workspace_may_come_from_a_pool_of_the_caller) {
  const Instance instance(small_spec(), test_seed());
  const AttentionResult expected = forward(instance.call);
  const Plan plan = make_plan(instance.call);
  ASSERT_GT(plan.workspace_bytes, 0u);
  const Tensor pool = workspace_of(plan);
  int num_calls = 0;
  const auto allocate = [&](std::size_t count) {
    ++num_calls;
    EXPECT_EQ(count, plan.workspace_bytes);
    return bytes(pool, 0, count).data();
  };
  fill(instance.call.out, NAN);
  reset_peak_memory();
  const std::size_t before = memory_stats().current_bytes;
  run(instance.call, allocate);
  EXPECT_EQ(memory_stats().peak_bytes, before);
  EXPECT_EQ(num_calls, 1);
  EXPECT_TRUE(same_bits(instance.call.out, expected.out));
  EXPECT_TRUE(same_bits(instance.call.lse, expected.lse));
  const std::string crooked = error_of(ErrorCode::invalid_argument, [&] {
    run(instance.call, [&](std::size_t count) { return bytes(pool, 8, count).data(); });
  });
  EXPECT_TRUE(contains(crooked, "aligned to 64 bytes")) << crooked;
}

TEST(plan, refuses_another_problem) {
  const Instance instance(small_spec(), test_seed());
  const Plan plan = make_plan(instance.call);
  const Tensor workspace = workspace_of(plan);
  Case other = small_spec();
  other.causal = true;
  const Instance causal(other, test_seed());
  const std::string message = error_of(ErrorCode::invalid_argument, [&] {
    run(plan, causal.call, bytes(workspace, 0, plan.workspace_bytes));
  });
  EXPECT_TRUE(contains(message, "[run] the call does not fit the plan")) << message;
  EXPECT_TRUE(contains(message, "window [-1, 0]")) << message;
}

TEST(plan, refuses_a_wrong_workspace) {
  const ForcedKernel forced("reference");  // it always needs some
  const Instance instance(small_spec(), test_seed());
  const Plan plan = make_plan(instance.call);
  ASSERT_GT(plan.workspace_bytes, 0u);
  const Tensor workspace = workspace_of(plan);
  const std::string too_small = error_of(ErrorCode::invalid_argument, [&] {
    run(plan, instance.call, bytes(workspace, 0, plan.workspace_bytes - 1));
  });
  EXPECT_TRUE(contains(too_small, std::to_string(plan.workspace_bytes))) << too_small;
  EXPECT_TRUE(contains(too_small, std::to_string(plan.workspace_bytes - 1))) << too_small;
  const std::string crooked = error_of(ErrorCode::invalid_argument, [&] {
    run(plan, instance.call, bytes(workspace, 8, plan.workspace_bytes));
  });
  EXPECT_TRUE(contains(crooked, "aligned to 64 bytes")) << crooked;
}

TEST(plan, an_empty_plan_does_not_run) {
  const Instance instance(small_spec(), test_seed());
  const std::string message =
      error_of(ErrorCode::invalid_argument, [&] { run(Plan{}, instance.call, {}); });
  EXPECT_TRUE(contains(message, "[run] the plan is empty")) << message;
}

TEST(plan, a_forced_kernel_must_exist) {
  const ForcedKernel forced("cpu_forwards");
  const Instance instance(small_spec(), test_seed());
  const std::string message =
      error_of(ErrorCode::invalid_argument, [&] { make_plan(instance.call); });
  EXPECT_TRUE(contains(message, "FLASHMHA_FORCE_KERNEL is 'cpu_forwards'")) << message;
  EXPECT_TRUE(contains(message, "reference")) << message;
}

TEST(plan, a_forced_kernel_is_the_only_one) {
  const Instance instance(small_spec(), test_seed());
  {
    const ForcedKernel forced("reference");
    EXPECT_EQ(make_plan(instance.call).kernel->name, "reference");
  }
  const std::string name(cuda_kernels().front().name);  // of the backend or of its stand-in
  const ForcedKernel forced(name.c_str());
  const std::string message = error_of(ErrorCode::unsupported, [&] { make_plan(instance.call); });
  EXPECT_TRUE(contains(message, "[make_plan] no kernel serves: forward float32 on cpu")) << message;
  EXPECT_TRUE(contains(message, "\n  " + name + ": ")) << message;
  EXPECT_FALSE(contains(message, "reference:")) << message;
}

TEST(C5, query_gives_every_kernels_answer) {
  const Instance instance(small_spec(), test_seed());
  const Problem problem = make_problem(instance.call);
  const std::vector<Offer> offers = query(problem);
  ASSERT_EQ(offers.size(), registry().size());
  EXPECT_EQ(offers.back().kernel, "reference");
  EXPECT_EQ(offers.back().refusal, "");
  const Plan plan = make_plan(problem);
  for (const Offer& offer : offers) {
    if (offer.kernel == plan.kernel->name) break;
    EXPECT_NE(offer.refusal, "") << offer.kernel
                                 << " comes first and serves it, but was not chosen";
  }
}

TEST(C5, float64_is_refused_with_a_reason_by_all_but_the_reference) {
  Case spec = small_spec();
  spec.dtype = DType::float64;
  const Instance instance(spec, test_seed());
  for (const Offer& offer : query(make_problem(instance.call))) {
    if (offer.kernel == "reference") {
      EXPECT_EQ(offer.refusal, "");
    } else {
      EXPECT_FALSE(offer.refusal.empty()) << offer.kernel;
    }
  }
  EXPECT_EQ(make_plan(instance.call).kernel->name, "reference");
}

TEST(A9, float32_is_served_by_a_fast_kernel_on_the_cpu) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    Case spec = small_spec();
    spec.dtype = dtype;
    Instance instance(spec, test_seed());
    EXPECT_NE(make_plan(instance.call).kernel->name, "reference") << dtype_name(dtype);
    const AttentionCall call = instance.backward_call(instance.call.out, instance.call.lse);
    EXPECT_NE(make_plan(call).kernel->name, "reference") << dtype_name(dtype);
  }
}

TEST(A9, float32_on_a_gpu_says_what_to_do) {
  Instance instance(small_spec(), test_seed());
  for_each_tensor(instance.call, [](TensorView& tensor, bool) {
    tensor.device = {DeviceType::cuda, 0};
  });
  const std::string message =
      error_of(ErrorCode::invalid_argument, [&] { make_problem(instance.call); });
  EXPECT_TRUE(contains(message, "bfloat16 or float16")) << message;
  EXPECT_TRUE(contains(message, "Convert q, k and v, or keep them on the CPU")) << message;
}

TEST(A9, a_gpu_problem_is_refused_on_the_host_with_reasons) {
  Case spec = small_spec();
  spec.dtype = DType::bfloat16;
  Instance instance(spec, test_seed());
  for_each_tensor(instance.call, [](TensorView& tensor, bool) {
    tensor.device = {DeviceType::cuda, 0};
  });
  const Problem problem = make_problem(instance.call);
  const std::size_t num_cuda_kernels = cuda_kernels().size();  // they are the first
  const std::vector<Offer> offers = query(problem);
  for (std::size_t i = num_cuda_kernels; i < offers.size(); ++i) {
    EXPECT_FALSE(offers[i].refusal.empty()) << offers[i].kernel;
  }
}

TEST(plan, windows_that_hide_nothing_are_no_windows) {
  Case spec = small_spec();
  const Instance open(spec, test_seed());
  spec.window_left = spec.seqlen_k - 1;
  spec.window_right = spec.seqlen_q - 1;
  const Instance wide(spec, test_seed());
  EXPECT_EQ(make_problem(open.call), make_problem(wide.call));
  spec.window_left = spec.seqlen_k - 2;
  const Instance narrow(spec, test_seed());
  EXPECT_NE(make_problem(open.call), make_problem(narrow.call));
  EXPECT_FALSE(same_bits(forward(open.call).out, forward(narrow.call).out));
}

TEST(plan, describe_names_every_part) {
  Case spec{.layout = Layout::ragged,
            .seqlen_q = 9,
            .seqlen_k = 9,
            .head_dim = 24,
            .causal = true,
            .softcap = 5.0f,
            .dropout = 0.25f,
            .alibi = true,
            .bias = {true, kRow},
            .mask = {true, kColumn},
            .sinks = true,
            .seqused = true};
  const std::string text = describe(make_problem(Instance(spec, test_seed()).call));
  for (const char* part : {"forward float32 on cpu", "batch 2", "seqlen_q 9", "heads 4/4",
                           "head_dim 24/24", "window [-1, 0] bottom_right", "softcap 5",
                           "dropout 0.25", "alibi", "bias", "mask", "sinks", "ragged", "seqused"}) {
    EXPECT_TRUE(contains(text, part)) << part << " in: " << text;
  }
}

}  // namespace
}  // namespace flashmha::tests
