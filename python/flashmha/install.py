"""Makes `import flash_attn` find flashmha.flash_attn, for programs that cannot be changed."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import sys
from typing import Any, Iterable, Optional

from .errors import Error

__all__ = ["install_as_flash_attn"]

_OURS = "flashmha.flash_attn"
_THEIRS = "flash_attn"
_EXTENSION = "flash_attn_2_cuda"  # beside the package


def _our_name(fullname: str) -> str:
    """Of the module that serves an import of theirs; "" for other imports."""
    if fullname == _EXTENSION:
        return f"{_OURS}.{_EXTENSION}"
    if fullname == _THEIRS or fullname.startswith(_THEIRS + "."):
        return _OURS + fullname[len(_THEIRS):]
    return ""


class _Loader(importlib.abc.Loader):
    """Hands out the module that exists under our name, so that there is one of each."""

    def create_module(self, spec):
        module = importlib.import_module(_our_name(spec.name))
        self._spec = module.__spec__
        return module

    def exec_module(self, module):
        module.__spec__ = self._spec  # the import system has put in that of the other name
        if module.__name__ == _OURS:  # torch.ops.flash_attn is there from the import on
            importlib.import_module(f"{_OURS}.operators").register()


class _Distribution(importlib.metadata.Distribution):
    """What programs see that ask which version of flash-attn is installed."""

    def read_text(self, filename: str) -> Optional[str]:
        from . import flash_attn

        return {
            "METADATA": f"Metadata-Version: 2.1\nName: flash-attn\n"
                        f"Version: {flash_attn.__version__}\nSummary: served by flashmha\n",
            "top_level.txt": f"{_THEIRS}\n{_EXTENSION}\n",
        }.get(filename)

    def locate_file(self, path):
        raise FileNotFoundError(path)


class _Finder(importlib.metadata.DistributionFinder):
    def find_spec(self, fullname, path=None, target=None):
        ours = _our_name(fullname)
        if not ours:
            return None
        try:
            found = importlib.util.find_spec(ours)
        except ModuleNotFoundError:
            return None
        if found is None:
            return None
        is_package = found.submodule_search_locations is not None
        return importlib.machinery.ModuleSpec(fullname, _Loader(), origin=found.origin,
                                              is_package=is_package)

    def find_distributions(self, context: Any = None) -> Iterable[importlib.metadata.Distribution]:
        name = getattr(context, "name", None)
        if name is None or name.replace("_", "-").lower() == "flash-attn":
            yield _Distribution()


def install_as_flash_attn() -> None:
    """From now on `import flash_attn`, and Transformers' check for it, find flashmha.flash_attn.

    Call it before anything imports flash_attn: Error if another one has been imported already.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    present = sys.modules.get(_THEIRS)
    if present is not None and not present.__name__.startswith(_OURS):
        raise Error("[install_as_flash_attn] another flash_attn has been imported already: "
                    f"{getattr(present, '__file__', present)}")
    sys.meta_path.insert(0, _Finder())
    importlib.invalidate_caches()
    _tell_transformers()


def _tell_transformers() -> None:
    """Transformers that has been imported before has found out that there is no flash_attn."""
    known = sys.modules.get("transformers.utils.import_utils")
    distributions = getattr(known, "PACKAGE_DISTRIBUTION_MAPPING", None)  # of Transformers 5
    if distributions is not None and "flash-attn" not in distributions.get(_THEIRS, []):
        distributions[_THEIRS] = [*distributions.get(_THEIRS, []), "flash-attn"]
    for name in ("is_flash_attn_2_available", "_package_distribution_mapping",
                 "_is_package_available"):
        function = getattr(known, name, None)
        if hasattr(function, "cache_clear"):
            function.cache_clear()
