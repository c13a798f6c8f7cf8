// The attention layer in a model of your own: a classifier that says whether a sequence holds more
// ones than zeros. One layer over embedded bits, the mean over the sequence, a linear head;
// forward, backward and AdamW by hand. Sequences have different lengths: the layer takes the mask,
// computes real tokens only, and gives exact zeros at padding.
#include <cmath>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "flashmha/nn.h"

using namespace flashmha;

namespace {

constexpr std::int64_t kBatch = 32;
constexpr std::int64_t kSeqlen = 24;
constexpr std::int64_t kHidden = 32;

struct Batch {
  Tensor bits = Tensor::zeros({kBatch, kSeqlen}, DType::int32);
  Tensor mask = Tensor::zeros({kBatch, kSeqlen}, DType::int32);
  Tensor labels = Tensor::zeros({kBatch}, DType::int32);
  std::vector<std::int64_t> lengths;

  explicit Batch(std::mt19937& random) {
    for (std::int64_t row = 0; row < kBatch; ++row) {
      lengths.push_back(std::uniform_int_distribution<std::int64_t>(3, kSeqlen)(random));
      int excess = 0;  // ones minus zeros
      for (std::int64_t t = 0; t < lengths.back(); ++t) {
        const bool one = random() % 2 == 0;
        bits.as<std::int32_t>()[row * kSeqlen + t] = one ? 1 : 0;
        mask.as<std::int32_t>()[row * kSeqlen + t] = 1;
        excess += one ? 1 : -1;
      }
      labels.as<std::int32_t>()[row] = excess > 0 ? 1 : 0;
    }
  }
};

struct Classifier {
  nn::Parameter embedding{.value = Tensor::zeros({2, kHidden}, DType::float32), .gradient = {}};
  nn::FlashMultiHeadAttention attention{{.hidden_size = kHidden, .num_heads = 4, .causal = false},
                                        DType::float32};
  nn::Linear head{kHidden, 2, /*with_bias=*/true, DType::float32};

  void visit(const nn::ParameterVisitor& visitor) {
    visitor("embedding", embedding);
    attention.visit("attention.", visitor);
    head.visit("head.", visitor);
  }

  // Adds the gradients of the mean loss over the batch; returns the loss.
  float accumulate(const Batch& batch) {
    const Tensor x = Tensor::empty({kBatch, kSeqlen, kHidden}, DType::float32);
    ops::embedding(embedding.value, batch.bits, x);
    const nn::AttentionInputs inputs{.hidden_states = x, .attention_mask = batch.mask};
    nn::AttentionSaved saved;
    const Tensor out = attention.forward(inputs, &saved);
    const Tensor mean = pool(out, batch);
    const Tensor logits = head.forward(mean);

    const Tensor loss = Tensor::empty({2}, DType::float32);
    const Tensor lse = Tensor::empty({kBatch}, DType::float32);
    ops::cross_entropy(logits, batch.labels, /*ignore_index=*/-100, loss, lse);
    ops::cross_entropy_backward(logits, {.targets = batch.labels, .lse = lse, .loss = loss},
                                /*dlogits=*/logits);

    const Tensor dmean = head.backward(logits, mean);
    const Tensor dout = unpool(dmean, batch);
    const Tensor dx = attention.backward(dout, inputs, saved).hidden_states;
    ops::embedding_backward(dx, batch.bits, embedding.gradient_sum());
    return loss.as<float>()[0];
  }

 private:
  // [kBatch, kSeqlen, kHidden] -> [kBatch, kHidden]: mean over the real tokens.
  static Tensor pool(const Tensor& out, const Batch& batch) {
    Tensor mean = Tensor::zeros({kBatch, kHidden}, DType::float32);
    for (std::int64_t i = 0; i < out.numel(); ++i) {
      const std::int64_t row = i / (kSeqlen * kHidden);
      mean.as<float>()[row * kHidden + i % kHidden] +=
          out.as<float>()[i] / static_cast<float>(batch.lengths[static_cast<std::size_t>(row)]);
    }
    return mean;
  }

  static Tensor unpool(const Tensor& dmean, const Batch& batch) {
    Tensor dout = Tensor::empty({kBatch, kSeqlen, kHidden}, DType::float32);
    for (std::int64_t i = 0; i < dout.numel(); ++i) {
      const std::int64_t row = i / (kSeqlen * kHidden);
      dout.as<float>()[i] = dmean.as<float>()[row * kHidden + i % kHidden] /
                            static_cast<float>(batch.lengths[static_cast<std::size_t>(row)]);
    }
    return dout;
  }
};

// A parameter and the moments of AdamW.
struct Trained {
  nn::Parameter* parameter;
  Tensor moment1;
  Tensor moment2;
};

}  // namespace

int main() {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 0.2f);
  Classifier classifier;
  std::vector<Trained> all;
  classifier.visit([&](const std::string&, nn::Parameter& parameter) {
    for (std::int64_t i = 0; i < parameter.value.numel(); ++i) {
      parameter.value.as<float>()[i] = normal(random);
    }
    all.push_back({&parameter, Tensor::zeros(parameter.value.shape(), DType::float32),
                   Tensor::zeros(parameter.value.shape(), DType::float32)});
  });
  float mean_loss = std::log(2.0f);  // of guessing
  for (int step = 1; step <= 200; ++step) {
    const float loss = classifier.accumulate(Batch(random));
    mean_loss += 0.1f * (loss - mean_loss);
    const auto schedule = ops::adamw_schedule({}, /*learning_rate=*/3e-3f, step);
    for (Trained& one : all) {  // which zeroes the gradients
      ops::adamw({.parameter = one.parameter->value,
                  .gradient = one.parameter->gradient_sum(),
                  .moment1 = one.moment1,
                  .moment2 = one.moment2},
                 {.schedule = view_of(schedule.data(), {3})}, {});
    }
    if (step % 50 == 0) std::printf("step %3d  loss %.3f\n", step, static_cast<double>(mean_loss));
  }
  const bool learnt = mean_loss < 0.3f;
  std::printf("%s\n", learnt ? "learnt: guessing gives 0.693" : "did not learn");
  return learnt ? 0 : 1;
}
