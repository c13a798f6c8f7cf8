#include "cuda/ops/call.h"

#include <map>
#include <mutex>
#include <utility>

#include "cuda/error.h"
#include "cuda/launch.h"

namespace flashmha::cuda::ops {
namespace {

using Place = std::pair<int, cudaStream_t>;  // device and stream

// Blocks of threads that have ended. They stay, because graphs may point to them.
struct IdleBlocks {
  std::mutex mutex;
  std::multimap<Place, void*> blocks;

  static IdleBlocks& all() {
    static IdleBlocks idle;
    return idle;
  }
};

// Those of one thread: two threads may queue operations on one stream, each of several kernels.
class WorkspaceBlocks {
 public:
  WorkspaceBlocks() { IdleBlocks::all(); }  // outlives this
  WorkspaceBlocks(const WorkspaceBlocks&) = delete;
  WorkspaceBlocks& operator=(const WorkspaceBlocks&) = delete;
  ~WorkspaceBlocks() {
    IdleBlocks& idle = IdleBlocks::all();
    const std::scoped_lock lock(idle.mutex);
    for (const auto& [place, block] : blocks_)
      idle.blocks.emplace(place, block);
  }

  // Null: there is none yet.
  void*& of(const Place& place) {
    void*& block = blocks_[place];
    if (block != nullptr) return block;
    IdleBlocks& idle = IdleBlocks::all();
    const std::scoped_lock lock(idle.mutex);
    const auto found = idle.blocks.find(place);
    if (found != idle.blocks.end()) {
      block = found->second;
      idle.blocks.erase(found);
    }
    return block;
  }

 private:
  std::map<Place, void*> blocks_;
};

}  // namespace

Call::Call(const char* function, Device device, Stream stream)
    : function_(function), device_(device), stream_(stream_of(stream)) {
  check(cudaGetDevice(&previous_device_));
  if (previous_device_ != device.index) check(cudaSetDevice(device.index));
}

Call::~Call() {
  if (previous_device_ != device_.index) cudaSetDevice(previous_device_);
}

void Call::check(cudaError_t error) const {
  check_cuda(error, function_, device_);
}

void Call::check_launch(cudaError_t error, std::int64_t blocks, int threads) const {
  if (error == cudaSuccess) error = wait_if_asked(stream_);
  if (error == cudaSuccess) [[likely]]
    return;
  cudaGetLastError();
  fail(ErrorCode::device, "[{}] a launch of {} blocks of {} threads on {} failed: {}", function_,
       blocks, threads, device_name(device_), cudaGetErrorString(error));
}

void* Call::workspace() const {
  thread_local WorkspaceBlocks blocks;
  void*& block = blocks.of({device_.index, stream_});
  if (block == nullptr) {
    // Also while the stream is being captured: the block is no part of the graph.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check(cudaThreadExchangeStreamCaptureMode(&mode));
    const cudaError_t error = cudaMalloc(&block, kWorkspaceBytes);
    cudaThreadExchangeStreamCaptureMode(&mode);
    if (error == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      fail(ErrorCode::out_of_memory, "[{}] {} bytes of workspace could not be had on {}", function_,
           kWorkspaceBytes, device_name(device_));
    }
    check(error);
  }
  return block;
}

}  // namespace flashmha::cuda::ops
