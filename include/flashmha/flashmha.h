// Everything: include this one.
#pragma once

#include "flashmha/attention.h"
#include "flashmha/checkpoint.h"
#include "flashmha/device.h"
#include "flashmha/dlpack.h"
#include "flashmha/dtype.h"
#include "flashmha/error.h"
#include "flashmha/graph.h"
#include "flashmha/plan.h"
#include "flashmha/random.h"
#include "flashmha/safetensors.h"
#include "flashmha/sanity.h"
#include "flashmha/tensor.h"
#include "flashmha/text_generation.h"
#include "flashmha/tokenizer.h"
#include "flashmha/trainer.h"
#include "flashmha/version.h"
