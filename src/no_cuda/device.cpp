// A build without CUDA: there are no GPUs.
#include "core/check.h"
#include "core/cuda.h"

namespace flashmha {
namespace {

[[noreturn]] void fail_without_cuda(const char* function, Device device) {
  fail(ErrorCode::device, "[{}] {} is not available: this library was built without CUDA", function,
       device_name(device));
}

}  // namespace

int cuda_num_devices() {
  return 0;
}

std::shared_ptr<void> cuda_allocate(std::size_t, Device device, Stream) {
  fail_without_cuda("allocate", device);
}

MemoryStats cuda_memory_stats(Device) {
  return {};
}

void cuda_reset_peak_memory(Device) {}

void cuda_synchronize(Device device, Stream) {
  fail_without_cuda("synchronize", device);
}

std::unique_ptr<RecordedWork> cuda_record(Device device, const MemoryPlan&,
                                          const std::function<void()>&) {
  fail_without_cuda("Graph", device);
}

void cuda_copy(const TensorView& source, const TensorView& destination, Stream) {
  fail_without_cuda("copy",
                    source.device.type == DeviceType::cuda ? source.device : destination.device);
}

void cuda_fill(const TensorView& destination, double, Stream) {
  fail_without_cuda("fill", destination.device);
}

}  // namespace flashmha
