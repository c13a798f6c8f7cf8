#!/usr/bin/env python3
"""Runs flash_attn's own tests, unchanged, on flashmha:

    python scripts/flash_attn_tests.py tests/test_flash_attn.py [--cases 20] [--seed 0] [...]

The path is a test file of flash_attn 2.8.3 (its source distribution has it; this repository has no
copy). Its hundreds of thousands of cases are sampled: --cases of every test function, by --seed;
--shard 2/5 takes the second fifth of these. --max-seqlen leaves out longer sequences. On a machine
without a GPU, or with --device cpu, what the tests ask of "cuda" is given on the CPU. All other
arguments are pytest's.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import types

import pytest


def on_the_cpu():
    """From here on "cuda" means "cpu": the tests name their device themselves."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Cpu(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):
            options = dict(options or {})
            if str(options.get("device", "")).startswith("cuda"):
                options["device"] = torch.device("cpu")
            return function(*arguments, **options)

    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.get_device_properties = lambda device=None: types.SimpleNamespace(
        total_memory=2**40, multi_processor_count=132)
    torch.cuda.synchronize = lambda device=None: None
    Cpu().__enter__()


def parameters_of(definition):
    """The parametrize marks of a test: [(names, values), ...]."""
    for mark in definition.iter_markers("parametrize"):
        names, values = mark.args
        if isinstance(names, str):
            names = [name.strip() for name in names.split(",")]
        yield names, [value if len(names) > 1 else (value,) for value in values]


class Sample:
    """pytest's plugin: a few cases of every test, drawn before any is made."""

    def __init__(self, options):
        self.options = options

    def fits(self, case):
        longest = self.options.max_seqlen
        return longest is None or all(value <= longest for name, value in case.items()
                                      if name.startswith("seqlen") and type(value) is int)

    def draw(self, name, marks):
        generator = random.Random(f"{self.options.seed} {name}")
        total = 1
        for _, values in marks:
            total *= len(values)
        cases = []
        for number in generator.sample(range(total), total):
            case = {}
            for names, values in marks:
                number, index = divmod(number, len(values))
                case.update(zip(names, values[index]))
            if self.fits(case):
                cases.append(case)
                if len(cases) == self.options.cases:
                    break
        index, count = self.options.shard
        return list(itertools.islice(cases, index - 1, None, count))

    @pytest.hookimpl(tryfirst=True)
    def pytest_generate_tests(self, metafunc):
        definition = metafunc.definition
        marks = list(parameters_of(definition))
        if not marks:
            return
        cases = self.draw(definition.name, marks)
        # pytest makes the product of the marks that are left: none.
        for node in definition.listchain():
            node.own_markers[:] = [mark for mark in node.own_markers if mark.name != "parametrize"]
        names = [name for mark_names, _ in marks for name in mark_names]
        metafunc.parametrize(names, [tuple(case[name] for name in names) for case in cases])


def shard(text):
    index, count = (int(part) for part in text.split("/"))
    if not 1 <= index <= count:
        raise argparse.ArgumentTypeError("a shard is like 1/3")
    return index, count


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="+", help="test files of flash_attn")
    parser.add_argument("--cases", type=int, default=20, help="of every test function [20]")
    parser.add_argument("--seed", default="0", help="of the sample [0]")
    parser.add_argument("--shard", type=shard, default=(1, 1), help="which part, like 2/5 [1/1]")
    parser.add_argument("--max-seqlen", type=int, help="longest sequence [any]")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="[cuda if there is a GPU]")
    options, rest = parser.parse_known_args()

    import flashmha
    import torch

    flashmha.install_as_flash_attn()
    gpu = torch.cuda.is_available() and flashmha.num_gpus() > 0
    if options.device == "cuda" and not gpu:
        sys.exit("there is no GPU, or flashmha has no CUDA")
    if options.device == "cpu" or not gpu:
        on_the_cpu()
    return pytest.main([*options.path, "-q", "-rs", "-p", "no:cacheprovider", "--tb=short", *rest],
                       plugins=[Sample(options)])


if __name__ == "__main__":
    sys.exit(main())
