// A config.json. One that is read can be written, or is refused; what was written is read again.
#include "flashmha/checkpoint.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace flashmha;
  fuzz::write("config.json", {reinterpret_cast<const char*>(data), size});
  model::ModelConfig config;
  if (!fuzz::accepts([&] { config = model::read_config(fuzz::folder()); })) return 0;
  if (!fuzz::accepts([&] { model::write_config(config, fuzz::folder()); })) return 0;
  fuzz::require(fuzz::accepts([&] { model::read_config(fuzz::folder()); }));
  return 0;
}
