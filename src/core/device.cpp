#include "flashmha/device.h"

#include <charconv>

#include "core/check.h"
#include "core/cuda.h"

namespace flashmha {
namespace {

thread_local Stream stream_of_this_thread;

}  // namespace

Stream current_stream() {
  return stream_of_this_thread;
}

CurrentStream::CurrentStream(Stream stream) : previous_(stream_of_this_thread) {
  stream_of_this_thread = stream;
}

CurrentStream::~CurrentStream() {
  stream_of_this_thread = previous_;
}

std::string device_name(Device device) {
  return device.type == DeviceType::cpu ? "cpu" : fmt::format("cuda:{}", device.index);
}

Device parse_device(const std::string& name) {
  if (name == "cpu") return {};
  if (name == "cuda") return {DeviceType::cuda, 0};
  constexpr std::string_view kPrefix = "cuda:";
  int index = -1;
  if (name.starts_with(kPrefix)) {
    const char* first = name.data() + kPrefix.size();
    const char* last = name.data() + name.size();
    const auto [end, error] = std::from_chars(first, last, index);
    if (error != std::errc{} || end != last) index = -1;
  }
  check(index >= 0, "[parse_device] a device is 'cpu', 'cuda' or 'cuda:<index>'; got '{}'", name);
  return {DeviceType::cuda, index};
}

int num_devices(DeviceType type) {
  return type == DeviceType::cpu ? 1 : cuda_num_devices();
}

void synchronize(Device device, Stream stream) {
  if (device.type != DeviceType::cpu) cuda_synchronize(device, stream);
}

}  // namespace flashmha
