// The layers: include this one for all of them.
#pragma once

#include "flashmha/kv_cache.h"
#include "flashmha/layers.h"
#include "flashmha/mha.h"
#include "flashmha/ops.h"
#include "flashmha/padding.h"
#include "flashmha/plain_attention.h"
#include "flashmha/rotary.h"
