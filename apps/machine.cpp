#include "machine.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <sstream>

namespace flashmha::app {
namespace {

// The value of the first line "key<blanks>: value" of a file in /proc; empty if there is none.
std::string first_value(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const std::size_t colon = line.find(':');
    if (line.find_last_not_of(" \t", colon - 1) + 1 != key.size()) continue;
    const std::size_t begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

// x86 lists "flags", aarch64 "Features".
std::vector<std::string> cpu_features() {
  static constexpr std::array kInteresting = {
      "avx2",     "fma",      "f16c",  "avx512f", "avx512bw", "avx512_bf16", "avx512_fp16",
      "amx_tile", "amx_bf16", "asimd", "asimdhp", "sve",      "sve2",        "bf16"};
  std::istringstream words(first_value("/proc/cpuinfo", "flags") + " " +
                           first_value("/proc/cpuinfo", "Features"));
  std::vector<std::string> present;
  for (std::string word; words >> word;) {
    if (std::find(kInteresting.begin(), kInteresting.end(), word) != kInteresting.end()) {
      present.push_back(word);
    }
  }
  return present;
}

std::int64_t system_value(int name) {
  return std::max<std::int64_t>(0, ::sysconf(name));
}

}  // namespace

Machine inspect_machine() {
  Machine machine;
  machine.cpu_model = first_value("/proc/cpuinfo", "model name");
  if (machine.cpu_model.empty()) machine.cpu_model = "unknown";
  machine.cpu_features = cpu_features();
  machine.num_logical_cpus = static_cast<int>(system_value(_SC_NPROCESSORS_ONLN));
  machine.l1d_cache_bytes = system_value(_SC_LEVEL1_DCACHE_SIZE);
  machine.l2_cache_bytes = system_value(_SC_LEVEL2_CACHE_SIZE);
  machine.l3_cache_bytes = system_value(_SC_LEVEL3_CACHE_SIZE);
  machine.memory_bytes = system_value(_SC_PHYS_PAGES) * system_value(_SC_PAGESIZE);
  std::int64_t available_kib = 0;
  std::istringstream(first_value("/proc/meminfo", "MemAvailable")) >> available_kib;
  machine.available_memory_bytes = available_kib * 1024;
  return machine;
}

std::string compiler_name() {
  return FLASHMHA_COMPILER;
}

}  // namespace flashmha::app
