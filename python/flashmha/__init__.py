"""FlashMHA: exact attention, forward and backward, for CPUs and GPUs.

attention, attention_backward and attention_with_kvcache take arrays of any library with DLPack
(NumPy, PyTorch, JAX, CuPy), without copying them. flashmha.flash_attn has the names of the package
flash_attn; install_as_flash_attn() lets `import flash_attn` find it. After
flashmha.transformers.register(), models of Transformers run with attn_implementation="flashmha".
"""

from ._native import __version__, num_gpus, num_threads, set_num_threads
from .attention import Gradients, attention, attention_backward, attention_with_kvcache
from .errors import DeviceError, Error, FileError, InvalidArgument, OutOfMemory, Unsupported

__all__ = [
    "DeviceError",
    "Error",
    "FileError",
    "Gradients",
    "InvalidArgument",
    "OutOfMemory",
    "Unsupported",
    "__version__",
    "attention",
    "attention_backward",
    "attention_with_kvcache",
    "install_as_flash_attn",
    "num_gpus",
    "num_threads",
    "set_num_threads",
]


def __getattr__(name):
    """What needs torch is imported when it is asked for."""
    if name == "FlashMultiHeadAttention":
        from .modules import FlashMultiHeadAttention

        return FlashMultiHeadAttention
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def install_as_flash_attn() -> None:
    """From now on `import flash_attn`, and Transformers' check for it, find flashmha.flash_attn."""
    from .install import install_as_flash_attn as install

    install()
