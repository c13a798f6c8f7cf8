"""What pip has installed: the wheel's label, what the extension needs of a system, sizes."""

import ctypes
import importlib.metadata
import pathlib
import shutil
import subprocess
import sys

import flashmha
import pytest
from flashmha import _native

EXTENSION = pathlib.Path(_native.__file__)


@pytest.fixture(scope="module")
def distribution():
    try:
        found = importlib.metadata.distribution("flashmha")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("flashmha was not installed by pip")
    if pathlib.Path(found.locate_file("flashmha")) != pathlib.Path(flashmha.__file__).parent:
        pytest.skip("another flashmha is installed")
    return found


def test_the_label_says_what_the_extension_is(distribution):
    """A wheel for the stable ABI holds an extension for it, and the other way round."""
    tags = [line.split(": ")[1] for line in distribution.read_text("WHEEL").splitlines()
            if line.startswith("Tag")]
    stable = EXTENSION.name == "_native.abi3.so"
    assert all(("-abi3-" in tag) == stable for tag in tags), (tags, EXTENSION.name)
    version = sys.version_info
    if version >= (3, 12) and not hasattr(sys, "_is_gil_enabled"):
        assert stable and all(tag.startswith("cp312-") for tag in tags)
    elif version < (3, 12):
        assert all(tag.startswith(f"cp{version[0]}{version[1]}-") for tag in tags)


def test_nothing_but_the_system_is_needed():
    """No torch, no CUDA, no library that a system without a compiler lacks."""
    if shutil.which("readelf") is None:
        pytest.skip("no readelf")
    lines = subprocess.run(["readelf", "-d", EXTENSION], check=True, capture_output=True,
                           text=True).stdout.splitlines()
    needed = {line.split("[")[1].rstrip("]") for line in lines if "NEEDED" in line}
    system = ("libstdc++.", "libgcc_s.", "libc.", "libm.", "libdl.", "librt.", "libpthread.",
              "ld-linux")
    assert needed and all(name.startswith(system) for name in needed), needed
    assert not any("RUNPATH" in line or "RPATH" in line for line in lines)


def test_the_wheel_is_small(distribution):
    megabytes = sum(file.locate().stat().st_size for file in distribution.files) / 1e6
    cuda = b"libcublasLt.so" in EXTENSION.read_bytes()
    assert megabytes < (40 if cuda else 6), f"{megabytes:.1f} MB"
    names = {str(file) for file in distribution.files}
    assert {"flashmha/py.typed", "flashmha/_native.pyi"} <= names
    assert not any("tests" in name or name.endswith((".cpp", ".h", ".a")) for name in names)


def test_the_metadata_say_the_version(distribution):
    assert distribution.version == flashmha.__version__
    assert "numpy" not in (distribution.requires or [])


def test_cublaslt_of_pip_is_loaded_for_models_on_a_gpu(tmp_path, monkeypatch):
    from flashmha import model

    folder = tmp_path / "nvidia" / "cu99" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcublasLt.so.99").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "nvidia"]:
        monkeypatch.delitem(sys.modules, name)
    loaded = []
    monkeypatch.setattr(ctypes, "CDLL", lambda path: loaded.append(pathlib.Path(path).name))
    model._load_cublaslt.cache_clear()
    try:
        model._prepare("cpu")
        assert not loaded
        model._prepare("cuda:0")
        assert "libcublasLt.so.99" in loaded
    finally:
        model._load_cublaslt.cache_clear()
