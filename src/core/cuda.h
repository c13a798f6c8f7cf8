// What core asks of the CUDA backend. src/cuda defines these functions; in a build without it
// src/no_cuda does, whose functions say so by throwing Error(device).
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

#include "core/memory_plan.h"
#include "flashmha/tensor.h"

namespace flashmha {

// GPUs that can be used; 0 without a GPU, without a driver, and in a build without CUDA.
int cuda_num_devices();

// Memory that belongs to the stream's order: usable by work queued on it from now on, and given
// back to the pool behind the work that is queued on it when the last owner goes.
std::shared_ptr<void> cuda_allocate(std::size_t bytes, Device device, Stream stream);

MemoryStats cuda_memory_stats(Device device);
void cuda_reset_peak_memory(Device device);
void cuda_synchronize(Device device, Stream stream);

// A recorded graph, see flashmha/graph.h; owns the memory of the work.
class RecordedWork {
 public:
  RecordedWork() = default;
  RecordedWork(const RecordedWork&) = delete;
  RecordedWork& operator=(const RecordedWork&) = delete;
  virtual ~RecordedWork() = default;
  // Queues it on the current stream.
  virtual void start() = 0;
};

// Records what `work` queues on the current stream, without running it. Its memory comes from a new
// block, in the places of `plan`.
std::unique_ptr<RecordedWork> cuda_record(Device device, const MemoryPlan& plan,
                                          const std::function<void()>& work);

// copy() and fill() where a tensor is on a GPU; shapes and dtypes have been checked.
void cuda_copy(const TensorView& source, const TensorView& destination, Stream stream);
void cuda_fill(const TensorView& destination, double value, Stream stream);

}  // namespace flashmha
