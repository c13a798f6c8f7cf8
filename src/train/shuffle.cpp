// A keyed bijection of [0, count).
#include "core/check.h"
#include "flashmha/dataset.h"
#include "model/mix.h"

namespace flashmha::train {

Shuffle::Shuffle(std::int64_t count, std::uint64_t seed, std::uint64_t epoch)
    : count_(static_cast<std::uint64_t>(count)), key_(model::mix(model::mix(seed) + epoch)) {
  check(count >= 0, "[Shuffle] count ({}) must not be negative", count);
  while (half_bits_ < 32 && (std::uint64_t{1} << (2 * half_bits_)) < count_)
    ++half_bits_;
}

std::int64_t Shuffle::operator()(std::int64_t position) const {
  check(position >= 0 && static_cast<std::uint64_t>(position) < count_,
        "[Shuffle] position ({}) must be in [0, {})", position, count_);
  constexpr std::uint64_t kRounds = 6;
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  auto value = static_cast<std::uint64_t>(position);
  do {
    std::uint64_t left = value >> half_bits_;
    std::uint64_t right = value & mask;
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      const std::uint64_t bits = model::mix(key_ + (round << 32) + right);
      const std::uint64_t next = left ^ (bits & mask);
      left = right;
      right = next;
    }
    value = (left << half_bits_) | right;
  } while (value >= count_);
  return static_cast<std::int64_t>(value);
}

}  // namespace flashmha::train
