// Work on a GPU that is done again and again, recorded once as a CUDA graph.
//
// A step of a model is hundreds of kernels of a few microseconds each; a graph starts them all with
// one call, and the GPU finds the next one ready. On a CPU there is nothing to gain: work just
// runs.
//
//   Graph step(device);
//   for (...) {
//     copy(next_ids, ids);                       // inputs and results stay where they are
//     step.run([&] { model_step(ids, logits); });
//   }
#pragma once

#include <functional>
#include <memory>

#include "flashmha/device.h"

namespace flashmha {

// The work must be the same every time: the same operations on tensors that lie where they lay
// before. Numbers that the host passes to kernels are recorded, too; what changes from run to run
// has to be read from tensors. Memory that the work allocates must be free again at its end; in the
// recorded runs it comes from one block, laid out by the lifetimes that were seen in the first run.
// Not for several threads at a time.
class Graph {
 public:
  explicit Graph(Device device = {});
  ~Graph();
  Graph(Graph&&) noexcept;
  Graph& operator=(Graph&&) noexcept;

  // Does the work, on the current stream: the first time as it is (what it makes once and keeps, a
  // table say, is made now), the second time recording it, from then on by starting the recording
  // without calling `work`. Throws what `work` throws; and, while recording, invalid_argument where
  // it reads device memory on the host, and where it keeps memory or allocates other sizes than in
  // its first run. After an error the next run is a first one.
  void run(const std::function<void()>& work);

  // Forgets the recording and gives its memory back: the next run is a first one. It waits for
  // nothing: what was started goes on, in the order of its stream.
  void reset();

  // From the third run on a GPU.
  bool is_recorded() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace flashmha
