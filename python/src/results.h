// Tensors of the library as arrays for Python.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "flashmha/tensor.h"

namespace flashmha::python {

// For any library with DLPack; numpy.asarray takes those on the CPU, but for bfloat16.
using Array = nanobind::ndarray<nanobind::array_api>;

// An array that owns a tensor.
Array array_of(Tensor tensor);
// An array of memory that `owner` keeps alive.
Array array_of(const TensorView& view, nanobind::handle owner);

// On the CPU; bfloat16, which NumPy lacks, as float32.
Tensor for_numpy(Tensor tensor);

}  // namespace flashmha::python
