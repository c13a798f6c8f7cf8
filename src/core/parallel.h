// The executor of CPU kernels: one pool of threads for the process.
#pragma once

#include <cstdint>

#include "core/function_ref.h"

namespace flashmha {

// Calls body(task, worker) for every task in [0, count), on the calling thread and up to
// max_workers - 1 threads of the pool. Tasks are handed out in increasing order from an atomic
// counter, so put the longest first; worker is in [0, max_workers) and names the scratch memory of
// the thread that runs the task. Returns when all have finished; the first exception is rethrown.
// A call from inside a task runs its tasks inline on that thread (worker 0).
void parallel_for(std::int64_t count, int max_workers,
                  FunctionRef<void(std::int64_t task, int worker)> body);

}  // namespace flashmha
