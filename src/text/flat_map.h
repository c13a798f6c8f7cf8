// A hash table from 64-bit keys to 64-bit values in one array: the merges of a vocabulary are
// looked up a few times for every character of a text.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace flashmha::text {

class FlatMap {
 public:
  bool empty() const { return size_ == 0; }

  static constexpr std::uint64_t kNone = ~std::uint64_t{0};  // no key and no value

  void reserve(std::size_t num_keys) {
    if (num_keys * 2 > slots_.size()) rehash(std::bit_ceil(num_keys * 2));
  }

  void set(std::uint64_t key, std::uint64_t value) {
    reserve(size_ + 1);
    Slot& slot = slots_[index_of(key)];
    if (slot.key == kNone) ++size_;
    slot = {key, value};
  }

  // kNone if the key was never set.
  std::uint64_t find(std::uint64_t key) const {
    return slots_.empty() ? kNone : slots_[index_of(key)].value;
  }

 private:
  struct Slot {
    std::uint64_t key = kNone;
    std::uint64_t value = kNone;
  };

  // The slot of the key or the free one where it belongs.
  std::size_t index_of(std::uint64_t key) const {
    // Fibonacci hashing: the high bits of the product depend on all bits of the key.
    std::size_t index = static_cast<std::size_t>((key * 0x9E3779B97F4A7C15U) >> shift_);
    while (slots_[index].key != key && slots_[index].key != kNone) {
      index = (index + 1) & (slots_.size() - 1);
    }
    return index;
  }

  void rehash(std::size_t num_slots) {
    std::vector<Slot> old(num_slots);
    old.swap(slots_);
    shift_ = 64 - std::countr_zero(num_slots);
    for (const Slot& slot : old) {
      if (slot.key != kNone) slots_[index_of(slot.key)] = slot;
    }
  }

  std::vector<Slot> slots_;  // a power of two of them, at most half used
  int shift_ = 0;
  std::size_t size_ = 0;
};

}  // namespace flashmha::text
