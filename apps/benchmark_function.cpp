// Levels one and two of the benchmark: the attention function, and the layer around it.
#include <memory>
#include <utility>

#include "benchmark.h"
#include "flashmha/nn.h"
#include "flashmha/random.h"

namespace flashmha::app {
namespace {

Tensor random_tensor(const Shape& shape, const BenchmarkFlags& flags, std::uint64_t seed) {
  Tensor tensor = Tensor::empty(shape, flags.dtype, parse_device(flags.device));
  model::fill_normal(tensor, seed);
  return tensor;
}

// A forward whose result stays for the backward, and the backward.
struct Pass {
  std::function<void()> forward;
  std::function<void()> backward;
  std::function<void()> release;  // the forward's result

  void training() const {
    forward();
    backward();
    release();
  }
};

// Forward, backward and both, and the memory of both: for plain and for flash.
Comparisons compare_passes(const std::string& level, const Pass& plain, const Pass& flash,
                           const Rounds& rounds, Progress& progress) {
  Comparisons results;
  progress.step(level + ", forward");
  results.push_back(compare_times(level, "forward", plain.forward, flash.forward, rounds));
  progress.step(level + ", backward");
  results.push_back(compare_times(level, "backward", plain.backward, flash.backward, rounds));
  plain.release();
  flash.release();
  progress.step(level + ", forward and backward");
  results.push_back(compare_times(
      level, "training", [&] { plain.training(); }, [&] { flash.training(); }, rounds));
  progress.step(level + ", memory");
  results.push_back(compare_memory(level, "training_memory",
                                   extra_memory_bytes([&] { plain.training(); }, rounds.device),
                                   extra_memory_bytes([&] { flash.training(); }, rounds.device)));
  return results;
}

}  // namespace

Comparisons benchmark_function(const BenchmarkFlags& flags, Progress& progress) {
  const Shape q_shape = {flags.batch_size, flags.seq_length, flags.heads, flags.head_dim};
  const Shape kv_shape = {flags.batch_size, flags.seq_length, flags.kv_heads, flags.head_dim};
  const Tensor q = random_tensor(q_shape, flags, flags.seed);
  const Tensor k = random_tensor(kv_shape, flags, flags.seed + 1);
  const Tensor v = random_tensor(kv_shape, flags, flags.seed + 2);
  const Tensor dout = random_tensor(q_shape, flags, flags.seed + 3);
  const AttentionOptions options{.causal = flags.causal};

  nn::PlainAttentionResult plain;
  const Pass plain_pass{
      .forward = [&] { plain = nn::plain_attention(q, k, v, options); },
      .backward = [&] { nn::plain_attention_backward(dout, q, k, v, plain, options); },
      .release = [&] { plain = {}; }};
  AttentionResult flash;
  const Pass flash_pass{.forward = [&] { flash = flash_attn_func(q, k, v, options); },
                        .backward = [&] { flash_attn_backward(dout, q, k, v, flash, options); },
                        .release = [&] { flash = {}; }};
  return compare_passes("function", plain_pass, flash_pass, rounds_of(flags), progress);
}

Comparisons benchmark_layer(const BenchmarkFlags& flags, Progress& progress) {
  const nn::AttentionConfig config = model_config(flags, model::AttentionKind::flash).attention;
  const Device device = parse_device(flags.device);
  nn::MultiHeadAttention plain(config, flags.dtype, device);
  nn::FlashMultiHeadAttention flash(config, flags.dtype, device);
  std::uint64_t seed = flags.seed;
  for (nn::MultiHeadAttention* layer : {&plain, static_cast<nn::MultiHeadAttention*>(&flash)}) {
    layer->visit("", [&](const std::string&, nn::Parameter& parameter) {
      model::fill_normal(parameter.value, ++seed, 0.02);
      parameter.gradient_sum();  // allocated now: not a part of what a pass needs
    });
  }
  const Shape shape = {flags.batch_size, flags.seq_length, flags.hidden};
  const Tensor x = random_tensor(shape, flags, flags.seed);
  const Tensor dout = random_tensor(shape, flags, flags.seed + 1);
  const nn::AttentionInputs inputs{.hidden_states = x};

  const auto pass_of = [&](nn::MultiHeadAttention& layer, nn::AttentionSaved& saved) {
    return Pass{.forward =
                    [&] {
                      saved = {};
                      layer.forward(inputs, &saved);
                    },
                .backward = [&] { layer.backward(dout, inputs, saved); },
                .release = [&] { saved = {}; }};
  };
  nn::AttentionSaved plain_saved;
  nn::AttentionSaved flash_saved;
  return compare_passes("layer", pass_of(plain, plain_saved), pass_of(flash, flash_saved),
                        rounds_of(flags), progress);
}

}  // namespace flashmha::app
