// Every case of attention.safetensors (made by make_attention.py with PyTorch) through the public
// functions, in every dtype: float64 shows that the specification means what PyTorch means, the
// others that the default backend computes it.
#include <nlohmann/json.hpp>
#include <vector>

#include "tests/truth/compare.h"
#include "tests/truth/safetensors.h"

namespace flashmha::truth {
namespace {

const File& file() {
  static const File truth(std::string(FLASHMHA_TESTS_DIR) + "/truth/attention.safetensors");
  return truth;
}

// One case in one dtype: tensors by name, and what the header of the file says about it.
class Case {
 public:
  Case(const nlohmann::json& description, DType dtype) : description_(description), dtype_(dtype) {
    const std::string prefix = name() + ".";
    for (const auto& [full_name, tensor] : file().tensors()) {
      if (!full_name.starts_with(prefix)) continue;
      const std::string short_name = full_name.substr(prefix.size());
      tensors_[short_name] = input(short_name, tensor);
    }
  }

  std::string name() const { return description_.at("name"); }
  std::string kind() const { return description_.at("kind"); }
  DType dtype() const { return dtype_; }
  TensorView operator[](const std::string& tensor) const {
    const auto found = tensors_.find(tensor);
    return found == tensors_.end() ? TensorView{} : found->second.view();
  }
  template <class T>
  T value(const char* key, T otherwise) const {
    return description_.value(key, otherwise);
  }

  AttentionOptions options() const {
    AttentionOptions options{
        .causal = value("causal", false),
        .window_left = value<std::int64_t>("window_left", -1),
        .window_right = value<std::int64_t>("window_right", -1),
        .align = value("top_left", false) ? MaskAlign::top_left : MaskAlign::bottom_right,
        .softcap = value("softcap", 0.0f),
        .alibi_slopes = (*this)["alibi_slopes"],
        .bias = (*this)["bias"],
        .mask = (*this)["mask"],
        .sinks = (*this)["sinks"],
    };
    if (description_.contains("softmax_scale"))
      options.softmax_scale = value("softmax_scale", 0.0f);
    return options;
  }

  // Expects a result to lie near the truth of that name.
  void expect(const std::string& result, const TensorView& found, double tolerance) const {
    expect_close(found, file().get(name() + "." + result), tolerance,
                 name() + " " + dtype_name(dtype_) + " " + result);
  }

 private:
  // Data in the dtype under test; statistics in float32 or float64; the rest as it is.
  Tensor input(const std::string& short_name, const TensorView& tensor) const {
    if (short_name == "dlse") {
      return cast(tensor, dtype_ == DType::float64 ? DType::float64 : DType::float32);
    }
    if (tensor.dtype == DType::bfloat16) return cast(tensor, dtype_);
    return clone(tensor);
  }

  nlohmann::json description_;
  DType dtype_;
  std::map<std::string, Tensor> tensors_;
};

// Accepted distances (compare.h), a few times the largest ones that were seen.
struct Tolerance {
  DType dtype;
  double forward;
  double lse;
  double backward;
};
constexpr Tolerance kTolerances[] = {
    {DType::float64, 2e-14, 2e-14, 1e-13},
    {DType::float32, 1e-6, 1e-6, 3e-6},
    {DType::bfloat16, 8e-3, 1e-6, 3e-2},
    {DType::float16, 1e-3, 1e-6, 8e-3},
};

void expect_forward(const Case& problem, const AttentionResult& result,
                    const Tolerance& tolerance) {
  problem.expect("out", result.out, tolerance.forward);
  // lse is float32 in every dtype; rotated queries and keys are rounded to the dtype first.
  const bool rotated = problem["cos"].defined();
  problem.expect("lse", result.lse, rotated ? tolerance.forward : tolerance.lse);
}

// Elements of the score matrix that share one element of the bias: their rounding errors add up,
// also where the gradients themselves cancel.
double num_summed(const Case& problem) {
  const TensorView q = problem["q"], k = problem["k"], bias = problem["bias"];
  const std::int64_t rows = q.numel() / q.size(-1);  // over batch and heads
  const std::int64_t scores = rows * problem.value("max_seqlen_k", k.size(1));
  return std::max(1.0, static_cast<double>(scores) / static_cast<double>(bias.numel()));
}

void expect_backward(const Case& problem, const AttentionGradients& gradients, double tolerance) {
  problem.expect("dq", gradients.dq, tolerance);
  problem.expect("dk", gradients.dk, tolerance);
  problem.expect("dv", gradients.dv, tolerance);
  EXPECT_EQ(gradients.dbias.defined(), problem["bias"].defined());
  EXPECT_EQ(gradients.dsinks.defined(), problem["sinks"].defined());
  if (gradients.dbias.defined()) {
    problem.expect("dbias", gradients.dbias, tolerance * std::sqrt(num_summed(problem)));
  }
  if (gradients.dsinks.defined()) problem.expect("dsinks", gradients.dsinks, tolerance);
}

void check_dense(const Case& problem, const Tolerance& tolerance) {
  const AttentionOptions options = problem.options();
  const TensorView q = problem["q"], k = problem["k"], v = problem["v"];
  const AttentionResult result = flash_attn_func(q, k, v, options);
  expect_forward(problem, result, tolerance);
  const AttentionGradients gradients =
      flash_attn_backward(problem["dout"], q, k, v, result, options, problem["dlse"]);
  expect_backward(problem, gradients, tolerance.backward);
}

void check_varlen(const Case& problem, const Tolerance& tolerance) {
  const AttentionOptions options = problem.options();
  const TensorView q = problem["q"], k = problem["k"], v = problem["v"];
  const Sequences sequences{
      .cu_seqlens_q = problem["cu_seqlens_q"],
      .cu_seqlens_k = problem["cu_seqlens_k"],
      .max_seqlen_q = problem.value<std::int64_t>("max_seqlen_q", 0),
      .max_seqlen_k = problem.value<std::int64_t>("max_seqlen_k", 0),
      .seqused_q = problem["seqused_q"],
      .seqused_k = problem["seqused_k"],
  };
  const AttentionResult result = flash_attn_varlen_func(q, k, v, sequences, options);
  expect_forward(problem, result, tolerance);
  const AttentionGradients gradients = flash_attn_varlen_backward(
      problem["dout"], q, k, v, result, sequences, options, problem["dlse"]);
  expect_backward(problem, gradients, tolerance.backward);
}

void check_decode(const Case& problem, const Tolerance& tolerance) {
  for (const int num_splits : {0, 1, 3}) {
    SCOPED_TRACE("num_splits " + std::to_string(num_splits));
    const Tensor k_cache = clone(problem["k_cache"]);
    const Tensor v_cache = clone(problem["v_cache"]);
    const KVCacheView cache{.k = k_cache,
                            .v = v_cache,
                            .cache_seqlens = problem["cache_seqlens"],
                            .cache_batch_idx = problem["cache_batch_idx"],
                            .cache_leftpad = problem["cache_leftpad"],
                            .block_table = problem["block_table"]};
    const AppendKV append{.k = problem["k_new"],
                          .v = problem["v_new"],
                          .rotary = {.cos = problem["cos"],
                                     .sin = problem["sin"],
                                     .interleaved = problem.value("interleaved", false),
                                     .positions = problem["positions"]},
                          .num_splits = num_splits};
    const AttentionResult result =
        flash_attn_with_kvcache(problem["q"], cache, append, problem.options());
    expect_forward(problem, result, tolerance);
    problem.expect("k_cache_after", k_cache, tolerance.forward);
    problem.expect("v_cache_after", v_cache, 0.0);
  }
}

const std::vector<nlohmann::json>& descriptions() {
  static const std::vector<nlohmann::json> cases = file().about().at("cases");
  return cases;
}

class Attention : public testing::TestWithParam<std::size_t> {};

TEST_P(Attention, equals_pytorch) {
  for (Tolerance tolerance : kTolerances) {
    const Case problem(descriptions()[GetParam()], tolerance.dtype);
    if (problem.kind() == "dense") check_dense(problem, tolerance);
    if (problem.kind() == "varlen") check_varlen(problem, tolerance);
    if (problem.kind() == "decode") check_decode(problem, tolerance);
  }
}

std::string instance_name(const testing::TestParamInfo<std::size_t>& instance) {
  return descriptions()[instance.param].at("name");
}

INSTANTIATE_TEST_SUITE_P(truth, Attention, testing::Range(std::size_t{0}, descriptions().size()),
                         instance_name);

}  // namespace
}  // namespace flashmha::truth
