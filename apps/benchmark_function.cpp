// Levels one and two of the benchmark: the attention function, and the layer around it.
#include <fmt/format.h>

#include <memory>

#include "benchmark.h"
#include "flashmha/dtype_names.h"
#include "flashmha/random.h"

namespace flashmha::app {
