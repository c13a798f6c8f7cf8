// The functions of flashmha._native.
#pragma once

#include <nanobind/nanobind.h>

namespace flashmha::python {

void bind_attention(nanobind::module_& module);
// Operations around attention.
void bind_ops(nanobind::module_& module);

}  // namespace flashmha::python
