// The machine that the program runs on, as far as figures depend on it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace flashmha::app {

struct Machine {
  std::string cpu_model;                  // "unknown" if the system does not say
  std::vector<std::string> cpu_features;  // those that matter to attention, in the kernel's words
  int num_logical_cpus = 0;
  // Of one core; 0 if the system does not say.
  std::int64_t l1d_cache_bytes = 0;
  std::int64_t l2_cache_bytes = 0;
  std::int64_t l3_cache_bytes = 0;
  std::int64_t memory_bytes = 0;
  std::int64_t available_memory_bytes = 0;
};

Machine inspect_machine();

// "g++ 12.2.0", "clang 14.0.6": what built this program.
std::string compiler_name();

}  // namespace flashmha::app
