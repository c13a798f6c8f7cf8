// Weights by name: random values, copies between models.
#include <map>
#include <string>

#include "core/check.h"
#include "flashmha/model.h"
#include "flashmha/random.h"
#include "model/mix.h"

namespace flashmha::model {

void CausalLM::init_weights(std::uint64_t seed) {
  visit([&](const std::string& name, nn::Parameter& parameter) {
    if (parameter.value.view().rank() < 2) return;
    fill_normal(parameter.value, seed ^ hash(name), config_.initializer_range);
  });
}

void copy_weights(CausalLM& source, CausalLM& destination) {
  std::map<std::string, TensorView> weights;
  source.visit(
      [&](const std::string& name, nn::Parameter& parameter) { weights[name] = parameter.value; });
  std::size_t num_copied = 0;
  destination.visit([&](const std::string& name, nn::Parameter& parameter) {
    const auto weight = weights.find(name);
    check(weight != weights.end(), "[copy_weights] the source has no {}", name);
    check(weight->second.shape == parameter.value.shape(),
          "[copy_weights] {} must have the same shape in both models; got {} and {}", name,
          to_string(weight->second), to_string(parameter.value));
    copy(weight->second, parameter.value);
    ++num_copied;
  });
  check(num_copied == weights.size(),
        "[copy_weights] the source has {} tensors, the destination only {}", weights.size(),
        num_copied);
}

}  // namespace flashmha::model
