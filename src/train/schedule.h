// Options of a run, checked and complete.
#pragma once

#include "flashmha/trainer.h"

namespace flashmha::train {

// The same with every default filled in. Throws invalid_argument for values out of range.
TrainerOptions resolved(TrainerOptions options);

}  // namespace flashmha::train
