"""FlashMHA: exact attention, forward and backward, for CPUs and GPUs.

attention, attention_backward and attention_with_kvcache take arrays of any library with DLPack
(NumPy, PyTorch, JAX, CuPy), without copying them. flashmha.flash_attn has the names of the package
flash_attn; install_as_flash_attn() lets `import flash_attn` find it. After
flashmha.transformers.register(), models of Transformers run with attn_implementation="flashmha".
FlashMultiHeadAttention is a layer for PyTorch. Model loads, generates and trains without any of
these.
"""

import importlib as _importlib

from ._native import __version__, num_gpus, num_threads, set_num_threads
from .attention import Gradients, attention, attention_backward, attention_with_kvcache
from .errors import DeviceError, Error, FileError, InvalidArgument, OutOfMemory, Unsupported
from .install import install_as_flash_attn
from .model import AdamW, Generated, Loss, Model, Parameter, Tokenizer
from .training import PackedDataset, StepRecord, Trainer, TrainingResult

__all__ = [
    "AdamW",
    "DeviceError",
    "Error",
    "FileError",
    "FlashMultiHeadAttention",
    "Generated",
    "Gradients",
    "InvalidArgument",
    "KVCache",
    "Loss",
    "Model",
    "OutOfMemory",
    "PackedDataset",
    "Parameter",
    "StepRecord",
    "Tokenizer",
    "Trainer",
    "TrainingResult",
    "Unsupported",
    "__version__",
    "attention",
    "attention_backward",
    "attention_with_kvcache",
    "flash_attn",
    "install_as_flash_attn",
    "num_gpus",
    "num_threads",
    "set_num_threads",
    "transformers",
]

# What needs PyTorch (or Transformers) is imported when it is asked for.
_MODULES = ("flash_attn", "modules", "torch_ops", "transformers")
_OF_MODULES = ("FlashMultiHeadAttention", "KVCache")


def __getattr__(name):
    if name in _MODULES:
        return _importlib.import_module(f"{__name__}.{name}")
    if name in _OF_MODULES:
        return getattr(_importlib.import_module(f"{__name__}.modules"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
