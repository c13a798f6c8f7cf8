#include "flashmha/graph.h"

#include <optional>
#include <utility>

#include "core/cuda.h"
#include "core/memory_plan.h"

namespace flashmha {

struct Graph::State {
  Device device;
  std::optional<MemoryPlan> plan;  // given after the first run
  std::unique_ptr<RecordedWork> recorded;
};

Graph::Graph(Device device) : state_(std::make_unique<State>(State{.device = device})) {}
Graph::~Graph() = default;
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;

void Graph::run(const std::function<void()>& work) {
  State& state = *state_;
  if (state.device.type == DeviceType::cpu) return work();
  if (!state.plan) {
    const AllocationWatch watch(state.device);
    work();
    state.plan = plan_memory(watch.finish());
    return;
  }
  if (!state.recorded) {
    const MemoryPlan plan = std::move(*state.plan);
    state.plan.reset();  // an error leaves a first run to be done
    state.recorded = cuda_record(state.device, plan, work);
    state.plan.emplace();
  }
  state.recorded->start();
}

void Graph::reset() {
  state_->plan.reset();
  state_->recorded.reset();
}

bool Graph::is_recorded() const {
  return state_->recorded != nullptr;
}

}  // namespace flashmha
