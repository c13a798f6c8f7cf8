#!/usr/bin/env python3
"""Makes rotary.safetensors: rotary tables of Transformers for every scaling that we have.

    python3 make_rotary.py [--out rotary.safetensors]

Frequencies come from Transformers' own functions. They compute in float32; here they are made to
compute in float64 (their module sees torch.float as float64), so that tables can be compared at
large positions too, and checked against what they give as they are.
"""

import argparse
import json

import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, modeling_rope_utils
from transformers.models.llama import modeling_llama

POSITIONS = [0, 1, 2, 3, 7, 31, 100, 1000, 4095, 30000]

# name: (head_dim, max_position_embeddings, rope parameters, length of the sequence or None)
CONFIGS = {
    "default": (64, 2048, {"rope_type": "default", "rope_theta": 10000.0}, None),
    "default_odd_theta": (40, 2048, {"rope_type": "default", "rope_theta": 500000.0}, None),
    "linear": (64, 2048, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}, None),
    "linear_partial": (64, 2048, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5,
                                  "partial_rotary_factor": 0.25}, None),
    "dynamic_short": (64, 2048, {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
                      100),
    "dynamic_long": (64, 2048, {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
                     5000),
    "dynamic_partial": (80, 512, {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0,
                                  "partial_rotary_factor": 0.5}, 2000),
    "yarn": (64, 8192, {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                        "original_max_position_embeddings": 2048}, None),
    "yarn_mscale": (64, 163840, {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 40.0,
                                 "original_max_position_embeddings": 4096, "beta_fast": 32.0,
                                 "beta_slow": 1.0, "mscale": 0.8, "mscale_all_dim": 1.2}, None),
    "yarn_attention_factor": (128, 131072, {"rope_type": "yarn", "rope_theta": 150000.0,
                                            "factor": 32.0, "beta_fast": 16.0, "beta_slow": 2.0,
                                            "original_max_position_embeddings": 4096,
                                            "attention_factor": 0.75, "truncate": False}, None),
    "llama3": (128, 131072, {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                             "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                             "original_max_position_embeddings": 8192}, None),
    "llama3_2": (64, 131072, {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0,
                              "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                              "original_max_position_embeddings": 8192}, None),
}

# One embedding, asked for these lengths in turn: dynamic frequencies grow, and come back.
DYNAMIC_LENGTHS = [10, 100, 80, 200, 30, 64, 65]
DYNAMIC = (16, 64, {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})


class TorchInFloat64:
    """Stands for the module torch inside Transformers' files."""

    float = float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def config_of(head_dim, max_position_embeddings, parameters):
    return LlamaConfig(hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim,
                       max_position_embeddings=max_position_embeddings, rope_parameters=parameters)


def frequencies(config, seqlen):
    rope_type = config.rope_parameters["rope_type"]
    if rope_type == "default":
        return modeling_llama.LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    return modeling_rope_utils.ROPE_INIT_FUNCTIONS[rope_type](config, "cpu", seq_len=seqlen)


def in_float64(function, *arguments):
    modules = (modeling_rope_utils, modeling_llama)
    try:
        for module in modules:
            module.torch = TorchInFloat64()
        return function(*arguments)
    finally:
        for module in modules:
            module.torch = torch


def dynamic_sequence():
    """Frequencies of an embedding after each of DYNAMIC_LENGTHS."""
    rotary = modeling_llama.LlamaRotaryEmbedding(config_of(*DYNAMIC))
    update = modeling_rope_utils.dynamic_rope_update(lambda self, x, position_ids: None)
    found = []
    for length in DYNAMIC_LENGTHS:
        update(rotary, torch.zeros(1), torch.arange(length)[None])
        found.append(rotary.inv_freq.clone())
    return torch.stack(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="rotary.safetensors")
    arguments = parser.parse_args()

    file, described = {}, []
    for name, (head_dim, length, parameters, seqlen) in CONFIGS.items():
        config = config_of(head_dim, length, parameters)
        inv_freq, factor = in_float64(frequencies, config, seqlen)
        single, _ = frequencies(config, seqlen)
        difference = ((inv_freq - single) / inv_freq).abs().max().item()
        assert inv_freq.dtype == torch.float64 and difference < 1e-5
        angles = torch.tensor(POSITIONS)[:, None] * inv_freq
        file[f"{name}.inv_freq"] = inv_freq
        file[f"{name}.cos"], file[f"{name}.sin"] = angles.cos() * factor, angles.sin() * factor
        described.append({"name": name, "head_dim": head_dim, "max_position_embeddings": length,
                          "seqlen": seqlen or 0, "attention_factor": factor,
                          "parameters": parameters})
        print(f"{name:<22} {len(inv_freq):3} frequencies, attention factor {factor:.6f}, "
              f"float32 differs by {difference:.1e}")
    file["dynamic_sequence.inv_freq"] = in_float64(dynamic_sequence)

    made_by = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    head_dim, length, parameters = DYNAMIC
    about = {"made_by": made_by, "positions": POSITIONS, "configs": described,
             "dynamic_sequence": {"lengths": DYNAMIC_LENGTHS, "head_dim": head_dim,
                                  "max_position_embeddings": length, "parameters": parameters}}
    save_file(file, arguments.out, metadata={"truth": json.dumps(about, separators=(",", ":"))})
    print(f"-> {arguments.out}")


if __name__ == "__main__":
    main()
