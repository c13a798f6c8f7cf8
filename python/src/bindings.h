// The functions of flashmha._native.
#pragma once

#include <nanobind/nanobind.h>

namespace flashmha::python {

void bind_attention(nanobind::module_& module);
// Operations around attention.
void bind_ops(nanobind::module_& module);
// Attention for jax.jit.
void bind_jax(nanobind::module_& module);
// Tokenizer.
void bind_text(nanobind::module_& module);
// Model and AdamW; generation with a model; datasets and Trainer.
void bind_model(nanobind::module_& module);
void bind_generation(nanobind::module_& module);
void bind_training(nanobind::module_& module);

}  // namespace flashmha::python
