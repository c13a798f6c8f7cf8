#!/usr/bin/env python3
"""Makes types.safetensors: every element type of the format, written by the safetensors library, and
beside each tensor X the values X.values that PyTorch gives them (float64 or int64)."""

import argparse
import json

import torch
from safetensors.torch import save_file

BYTES = torch.arange(256, dtype=torch.uint8)
WORDS = torch.arange(65536, dtype=torch.int32).to(torch.uint16)
WIDE = torch.tensor([0, 1, 2**31 - 1, 2**62, 255, 65535])


def main():
    tensors = {
        "F8_E4M3": BYTES.view(torch.float8_e4m3fn),
        "F8_E5M2": BYTES.view(torch.float8_e5m2),
        "F8_E8M0": BYTES.view(torch.float8_e8m0fnu),
        "F16": WORDS[::17].clone().view(torch.float16),
        "BF16": WORDS[::17].clone().view(torch.bfloat16),
        "F32": torch.randn(7, generator=torch.Generator().manual_seed(1)),
        "F64": torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
        "BOOL": torch.tensor([True, False, True]),
        "U8": BYTES.clone(),
        "I8": BYTES.view(torch.int8).clone(),
        "U16": WORDS[::1001].clone(),
        "I16": WORDS[::1001].clone().view(torch.int16),
        "U32": torch.tensor([0, 1, 2**32 - 1]).to(torch.uint32),
        "I32": torch.tensor([0, -1, 2**31 - 1, -(2**31)], dtype=torch.int32),
        "U64": WIDE.to(torch.uint64),
        "I64": torch.cat([WIDE, -WIDE]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(3, 0, 2),
    }
    for name, tensor in list(tensors.items()):
        values = torch.float64 if tensor.is_floating_point() else torch.int64
        tensors[name + ".values"] = tensor.to(values)
    about = {"torch": torch.__version__, "names": [n for n in tensors if "." not in n]}
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="types.safetensors")
    arguments = parser.parse_args()
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors, arguments.out, metadata={"truth": json.dumps(about)})


if __name__ == "__main__":
    main()
