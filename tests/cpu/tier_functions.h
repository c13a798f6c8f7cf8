// The inline functions of the vector layer as plain functions over arrays, one set for each tier,
// so that tests can call every tier that this machine runs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cpu/isa.h"

namespace flashmha::tests {

// Tables are indexed by storage: 0 float, 1 bf16, 2 fp16. All arrays have `count` elements and are
// processed with whole vectors first and the *_n forms for the rest.
struct TierFunctions {
  const char* name;
  int lanes, tile_rows, tile_columns;
  void (*widen[3])(const void* in, float* out, int64_t count);
  void (*narrow[3])(const float* in, void* out, int64_t count);
  void (*exp2)(const float* in, float* out, int64_t count);
  void (*exp)(const float* in, float* out, int64_t count);
  void (*tanh)(const float* in, float* out, int64_t count);
  void (*log)(const float* in, float* out, int64_t count);
  // sum and highest of one vector.
  float (*sum)(const float* lanes);
  float (*highest)(const float* lanes);
  // Every panel of a block: tests/cpu/microkernel_test.cpp.
  void (*pack[3])(bool transposed, const void* in, int64_t in_stride, int64_t num_rows,
                  int64_t num_columns, float* panels);
  void (*widen_rows[3])(const void* in, int64_t in_stride, int64_t num_rows, int64_t num_columns,
                        float scale, float* out);
  // c[m][n] (+)= a b, c_stride = n; by_columns: a is stored as [k][m].
  void (*multiply)(int64_t m, int64_t n, int64_t k, const float* a, bool by_columns,
                   const float* panels, float* c, bool accumulate);
};

// Called once by each tier's set, before main.
bool register_tier(const TierFunctions* functions);

// The sets of all tiers that this machine can run.
std::vector<const TierFunctions*> runnable_tiers();

}  // namespace flashmha::tests
