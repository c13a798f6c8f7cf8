// The decoder once more, written from its definition as plain loops in double precision: shares no
// code with the library but the names of the weights.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "tests/model/fixture.h"

namespace flashmha::test {

using Vector = std::vector<double>;
using Matrix = std::vector<Vector>;

class LlamaInDouble {
 public:
  // Weights are copied; changing them here does not change the model.
  explicit LlamaInDouble(model::CausalLM& model) : config_(model.config()) {
    for (const auto& [name, view] : weights_of(model)) {
      const Tensor values = cast(view, DType::float32);
      weights[name].assign(values.as<float>(), values.as<float>() + values.numel());
    }
  }

  std::map<std::string, Vector> weights;  // row-major

  // Logits [seqlen][vocab_size] of one sequence.
  Matrix logits(const std::vector<std::int64_t>& ids) const {
    const auto hidden = static_cast<std::size_t>(config_.attention.hidden_size);
    const Vector& table = weights.at("model.embed_tokens.weight");
    Matrix x;
    for (const std::int64_t id : ids) {
      const auto row = table.begin() + id * config_.attention.hidden_size;
      x.emplace_back(row, row + static_cast<std::int64_t>(hidden));
    }
    for (std::int64_t layer = 0; layer < config_.num_layers; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      add(x, attention(normed(x, prefix + "input_layernorm.weight"), prefix + "self_attn."));
      add(x, mlp(normed(x, prefix + "post_attention_layernorm.weight"), prefix + "mlp."));
    }
    const bool tied = !weights.contains("lm_head.weight");
    return project(normed(x, "model.norm.weight"),
                   tied ? "model.embed_tokens.weight" : "lm_head.weight");
  }

  // Mean of -log softmax(logits[t])[labels[t + 1]] over all sequences; labels of -100 do not count.
  double loss(const std::vector<std::vector<std::int64_t>>& ids,
              const std::vector<std::vector<std::int64_t>>& labels) const {
    double sum = 0.0;
    int count = 0;
    for (std::size_t b = 0; b < ids.size(); ++b) {
      const Matrix scores = logits(ids[b]);
      for (std::size_t t = 0; t + 1 < ids[b].size(); ++t) {
        if (labels[b][t + 1] == -100) continue;
        double total = 0.0;
        for (const double score : scores[t])
          total += std::exp(score);
        sum += std::log(total) - scores[t][static_cast<std::size_t>(labels[b][t + 1])];
        ++count;
      }
    }
    return sum / count;
  }

 private:
  static void add(Matrix& x, const Matrix& y) {
    for (std::size_t t = 0; t < x.size(); ++t) {
      for (std::size_t i = 0; i < x[t].size(); ++i)
        x[t][i] += y[t][i];
    }
  }

  Matrix normed(const Matrix& x, const std::string& name) const {
    const Vector& weight = weights.at(name);
    Matrix y = x;
    for (Vector& row : y) {
      double squares = 0.0;
      for (const double value : row)
        squares += value * value;
      const double scale = 1.0 / std::sqrt(squares / static_cast<double>(row.size()) +
                                           static_cast<double>(config_.rms_norm.eps));
      for (std::size_t i = 0; i < row.size(); ++i)
        row[i] *= scale * weight[i];
    }
    return y;
  }

  // x W^T.
  Matrix project(const Matrix& x, const std::string& name) const {
    const Vector& weight = weights.at(name);
    const std::size_t in = x.front().size();
    Matrix y(x.size(), Vector(weight.size() / in));
    for (std::size_t t = 0; t < x.size(); ++t) {
      for (std::size_t o = 0; o < y[t].size(); ++o) {
        for (std::size_t i = 0; i < in; ++i)
          y[t][o] += x[t][i] * weight[o * in + i];
      }
    }
    return y;
  }

  // Rotates the pairs (i, i + head_dim / 2) of every head by position * theta^(-2 i / head_dim).
  void rotate(Matrix& x) const {
    const auto head_dim = static_cast<std::size_t>(config_.attention.head_dim);
    for (std::size_t t = 0; t < x.size(); ++t) {
      for (std::size_t head = 0; head < x[t].size(); head += head_dim) {
        for (std::size_t i = 0; i < head_dim / 2; ++i) {
          const double angle =
              static_cast<double>(t) *
              std::pow(config_.attention.rotary->rope_theta,
                       -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
          double& a = x[t][head + i];
          double& b = x[t][head + i + head_dim / 2];
          const double rotated = a * std::cos(angle) - b * std::sin(angle);
          b = b * std::cos(angle) + a * std::sin(angle);
          a = rotated;
        }
      }
    }
  }

  Matrix attention(const Matrix& x, const std::string& prefix) const {
    Matrix q = project(x, prefix + "q_proj.weight");
    Matrix k = project(x, prefix + "k_proj.weight");
    const Matrix v = project(x, prefix + "v_proj.weight");
    rotate(q);
    rotate(k);
    const auto head_dim = static_cast<std::size_t>(config_.attention.head_dim);
    const auto window = static_cast<std::size_t>(config_.attention.sliding_window);
    const auto group =
        static_cast<std::size_t>(config_.attention.num_heads / config_.attention.num_kv_heads);
    Matrix out(x.size(), Vector(q.front().size()));
    for (std::size_t t = 0; t < x.size(); ++t) {
      const std::size_t first = window > 0 && t + 1 > window ? t + 1 - window : 0;
      for (std::size_t head = 0; head < q[t].size() / head_dim; ++head) {
        const std::size_t q_column = head * head_dim;
        const std::size_t kv_column = head / group * head_dim;
        double total = 0.0;
        for (std::size_t s = first; s <= t; ++s) {
          double score = 0.0;
          for (std::size_t i = 0; i < head_dim; ++i) {
            score += q[t][q_column + i] * k[s][kv_column + i];
          }
          const double weight = std::exp(score / std::sqrt(static_cast<double>(head_dim)));
          total += weight;
          for (std::size_t i = 0; i < head_dim; ++i) {
            out[t][q_column + i] += weight * v[s][kv_column + i];
          }
        }
        for (std::size_t i = 0; i < head_dim; ++i)
          out[t][q_column + i] /= total;
      }
    }
    return project(out, prefix + "o_proj.weight");
  }

  Matrix mlp(const Matrix& x, const std::string& prefix) const {
    Matrix gate = project(x, prefix + "gate_proj.weight");
    const Matrix up = project(x, prefix + "up_proj.weight");
    for (std::size_t t = 0; t < gate.size(); ++t) {
      for (std::size_t i = 0; i < gate[t].size(); ++i) {
        gate[t][i] = gate[t][i] / (1.0 + std::exp(-gate[t][i])) * up[t][i];
      }
    }
    return project(gate, prefix + "down_proj.weight");
  }

  model::ModelConfig config_;
};

}  // namespace flashmha::test
