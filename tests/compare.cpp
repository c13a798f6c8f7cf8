#include "tests/compare.h"

#include <fmt/format.h>

#include <cmath>
#include <cstring>

#include "core/check.h"

namespace flashmha::tests {
namespace {

enum class Kind { finite, plus_infinity, minus_infinity, nan };

Kind kind_of(double value) {
  if (std::isnan(value)) return Kind::nan;
  if (std::isinf(value)) return value > 0 ? Kind::plus_infinity : Kind::minus_infinity;
  return Kind::finite;
}

// Position of the element with this row-major index, as "[1,2,3]".
std::string position_text(const Shape& shape, std::int64_t index) {
  Shape position = shape;
  for (int dim = shape.rank - 1; dim >= 0; --dim) {
    position[dim] = index % shape[dim];
    index /= shape[dim];
  }
  return to_string(position);
}

}  // namespace

Comparison compare(const std::string& name, const TensorView& actual, const TensorView& expected,
                   double tolerance) {
  check(actual.shape == expected.shape, "[compare] {}: got {}, expected {}", name,
        to_string(actual), to_string(expected));
  const Tensor a = cast(actual, DType::float64);
  const Tensor e = cast(expected, DType::float64);
  Comparison result;
  std::int64_t num_wrong_kind = 0;
  std::int64_t num_far = 0;
  std::int64_t first_wrong_kind = -1;
  std::int64_t worst = -1;
  for (std::int64_t i = 0; i < a.numel(); ++i) {
    const double got = a.as<double>()[i];
    const double want = e.as<double>()[i];
    if (kind_of(got) != kind_of(want)) {
      if (num_wrong_kind++ == 0) first_wrong_kind = i;
    } else if (kind_of(want) == Kind::finite) {
      const double error = std::abs(got - want);
      num_far += error > tolerance ? 1 : 0;
      if (error > result.max_error || worst < 0) worst = i;
      result.max_error = std::max(result.max_error, error);
    }
  }
  result.ok = num_wrong_kind == 0 && num_far == 0;
  if (result.ok) return result;
  const std::int64_t shown = num_wrong_kind > 0 ? first_wrong_kind : worst;
  result.message = fmt::format(
      "{}{} = {:.9g}, expected {:.9g}; {} of {} elements wrong ({:.2f} %): {} in kind, {} by more "
      "than {:.3g} (largest error {:.3g})",
      name, position_text(actual.shape, shown), a.as<double>()[shown], e.as<double>()[shown],
      num_wrong_kind + num_far, a.numel(),
      100.0 * static_cast<double>(num_wrong_kind + num_far) / static_cast<double>(a.numel()),
      num_wrong_kind, num_far, tolerance, result.max_error);
  return result;
}

double max_abs(const TensorView& tensor) {
  const Tensor values = cast(tensor, DType::float64);
  double largest = 0;
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    const double value = std::abs(values.as<double>()[i]);
    if (std::isfinite(value)) largest = std::max(largest, value);
  }
  return largest;
}

bool same_bits(const TensorView& a, const TensorView& b) {
  if (a.dtype != b.dtype || !(a.shape == b.shape)) return false;
  if (!a.defined()) return true;
  const Tensor left = clone(a);
  const Tensor right = clone(b);
  return left.numel() == 0 ||
         std::memcmp(left.view().data, right.view().data, left.view().bytes()) == 0;
}

}  // namespace flashmha::tests
