// Where tensors live and where work is queued.
#pragma once

#include <cstdint>
#include <string>

namespace flashmha {

enum class DeviceType : std::uint8_t { cpu, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;

  friend bool operator==(const Device&, const Device&) = default;
};

// "cpu" or "cuda:0".
std::string device_name(Device device);

// Inverse of device_name; also takes "cuda" for "cuda:0". Throws invalid_argument.
Device parse_device(const std::string& name);

// Devices of a type that can be used: 1 for cpu; for cuda 0 without a GPU, without a driver, and in
// a build without CUDA.
int num_devices(DeviceType type);

// A queue of work: a cudaStream_t on a GPU (null: the thread's current stream); without meaning on
// a CPU, where every call has finished when it returns. Tensors that a call returns belong to the
// order of its stream, and must be gone before the stream is destroyed.
struct Stream {
  void* handle = nullptr;
};

// The stream of this thread's calls that name none; null is the default stream of CUDA.
Stream current_stream();

// Makes a stream the thread's current one while it lives: layers and models then queue there.
class CurrentStream {
 public:
  explicit CurrentStream(Stream stream);
  CurrentStream(const CurrentStream&) = delete;
  CurrentStream& operator=(const CurrentStream&) = delete;
  ~CurrentStream();

 private:
  Stream previous_;
};

// Waits until the work that was queued on the stream has finished; throws Error(device) if some of
// it failed. Returns at once for a CPU.
void synchronize(Device device, Stream stream = {});

// Threads that CPU kernels use (default: the cores that this process may run on, or the value of
// FLASHMHA_NUM_THREADS). set_num_threads(0) restores the default. Results never depend on it.
int num_threads();
void set_num_threads(int count);

}  // namespace flashmha
