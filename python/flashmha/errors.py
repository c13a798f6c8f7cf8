"""Exceptions of flashmha. All derive from Error, and from the built-in class that fits.

Error is a RuntimeError, which is what users of flash_attn catch.
"""

__all__ = ["DeviceError", "Error", "FileError", "InvalidArgument", "OutOfMemory", "Unsupported"]


class Error(RuntimeError):
    """What flashmha raises on purpose; the message names the function, the rule and the values."""


class InvalidArgument(Error, ValueError):
    """A rule of a function was broken by the caller."""


class Unsupported(Error, NotImplementedError):
    """Legal, but no kernel serves it; the message lists every kernel's reason."""


class OutOfMemory(Error, MemoryError):
    """An allocation failed; nothing was leaked."""


class DeviceError(Error):
    """A device is absent or failed."""


class FileError(Error, OSError):
    """A file could not be read or written."""
