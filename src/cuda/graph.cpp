// Recording work as a CUDA graph.
#include "core/cuda.h"
#include "cuda/error.h"

namespace flashmha {
namespace {

// The stream that work is recorded on: it never runs anything, so that graphs do not wait for one
// another. One for each recording, because a device's streams cannot be shared with another device.
class RecordingStream {
 public:
  explicit RecordingStream(Device device) {
    cuda::check_cuda(cudaStreamCreateWithFlags(&handle_, cudaStreamNonBlocking), "Graph", device);
  }
  RecordingStream(const RecordingStream&) = delete;
  RecordingStream& operator=(const RecordingStream&) = delete;
  ~RecordingStream() { cudaStreamDestroy(handle_); }
  cudaStream_t handle() const { return handle_; }

 private:
  cudaStream_t handle_ = nullptr;
};

class CudaGraph final : public RecordedWork {
 public:
  CudaGraph(Device device, const MemoryPlan& plan)
      : device_(device),
        plan_(plan),
        home_(cuda::stream_of({})),
        last_(home_),
        block_(cuda_allocate(plan_.total_bytes, device, {home_})) {}

  // What runs goes on: the runtime frees a graph behind its last run, and the block's release waits
  // for that run, too.
  ~CudaGraph() override {
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
    cudaEvent_t done = nullptr;
    if (last_ == home_ || cudaEventCreateWithFlags(&done, cudaEventDisableTiming) != cudaSuccess) {
      return;
    }
    cudaEventRecord(done, last_);
    cudaStreamWaitEvent(home_, done);
    cudaEventDestroy(done);
  }

  void record(const std::function<void()>& work) {
    const RecordingStream stream(device_);
    // Calls that a capture forbids to other threads are theirs to make.
    cuda::check_cuda(cudaStreamBeginCapture(stream.handle(), cudaStreamCaptureModeThreadLocal),
                     "Graph", device_);
    cudaGraph_t graph = nullptr;
    try {
      const CurrentStream current({stream.handle()});
      PlannedMemory memory(device_, plan_, block_.get());
      work();
      memory.require_complete();
    } catch (...) {
      cudaStreamEndCapture(stream.handle(), &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    cuda::check_cuda(cudaStreamEndCapture(stream.handle(), &graph), "Graph", device_);
    const cudaError_t error = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    cuda::check_cuda(error, "Graph", device_);
  }

  void start() override {
    const cuda::CurrentDevice current(device_, "Graph");
    last_ = cuda::stream_of({});
    cuda::check_cuda(cudaGraphLaunch(executable_, last_), "Graph", device_);
  }

 private:
  Device device_;
  MemoryPlan plan_;
  cudaStream_t home_;  // whose order the block belongs to
  cudaStream_t last_;
  std::shared_ptr<void> block_;
  cudaGraphExec_t executable_ = nullptr;
};

}  // namespace

std::unique_ptr<RecordedWork> cuda_record(Device device, const MemoryPlan& plan,
                                          const std::function<void()>& work) {
  const cuda::CurrentDevice current(device, "Graph");
  auto graph = std::make_unique<CudaGraph>(device, plan);
  graph->record(work);
  return graph;
}

}  // namespace flashmha
