// A safetensors file. Inputs are tried twice: as a file, and as header and data behind the right
// length, which chance alone rarely finds.
#include "flashmha/safetensors.h"

#include "tests/fuzz/fuzz.h"
#include "tests/io/safetensors_bytes.h"

namespace flashmha {
namespace {

void read_everything(const io::SafetensorsFile& file) {
  std::size_t num_bytes = 0;
  for (const io::SafetensorsEntry& entry : file.entries()) {
    num_bytes += entry.data.size();
    fuzz::require(&file.entry(entry.name) == &entry);
    // Every byte is looked at, which the sanitizer watches.
    for (const std::byte byte : entry.data)
      fuzz::require(byte <= std::byte{255});
    fuzz::accepts([&] {
      const Tensor tensor = file.read(entry.name);
      fuzz::require(entry.nearest == tensor.dtype() && tensor.numel() == entry.numel());
    });
    for (const DType dtype : {DType::float32, DType::float16, DType::int32, DType::boolean})
      fuzz::accepts([&] { file.read(entry.name, dtype); });
    fuzz::accepts([&] { fuzz::require(file.view(entry.name).numel() == entry.numel()); });
  }
  fuzz::require(num_bytes <= std::filesystem::file_size(file.path()));
}

void try_file(std::string_view bytes) {
  const std::string path = fuzz::write("x.safetensors", bytes);
  fuzz::accepts([&] { read_everything(io::SafetensorsFile(path)); });
}

}  // namespace
}  // namespace flashmha

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  flashmha::try_file(bytes);
  const std::size_t end_of_header = bytes.rfind('}') + 1;  // 0 if there is none
  flashmha::try_file(flashmha::test::safetensors_bytes(bytes.substr(0, end_of_header),
                                                       bytes.substr(end_of_header)));
  return 0;
}
