"""Types and documentation: the stubs say what is there, and all that is public is described."""

import ast
import importlib
import inspect
import pathlib
import re

import flashmha
import pytest
from flashmha import _native

PACKAGE = pathlib.Path(flashmha.__file__).parent
PLAIN = ["", "attention", "errors", "install", "model", "training"]
OF_TORCH = ["flash_attn", "flash_attn.bert_padding", "flash_attn.flash_attn_2_cuda",
            "flash_attn.flash_attn_interface", "flash_attn.layers.rotary",
            "flash_attn.ops.triton.rotary", "modules", "padding", "rotary", "torch_ops"]
OF_TRANSFORMERS = ["transformers"]


def parse(name):
    return ast.parse((PACKAGE / name).read_text()).body


def parameters_of(function):
    """[(name, default or None), ...] of a function in a stub."""
    arguments = function.args
    assert arguments.vararg is arguments.kwarg is None and not arguments.kwonlyargs
    names = [argument.arg for argument in arguments.args]
    defaults = [ast.unparse(value) for value in arguments.defaults]
    return list(zip(names, [None] * (len(names) - len(defaults)) + defaults))


def native_parameters_of(function):
    """The same of a function of the extension."""
    text, _, defaults = function.__nb_signature__[0]
    text = re.sub(r"= \\(\d+)", r"= \1", text.rpartition(" -> ")[0])
    body = ast.parse(text + ": ...").body[0]
    return [(name, None if index is None else repr(defaults[int(index)]))
            for name, index in parameters_of(body)]


def number(text):
    """Defaults that are floats come as float32 has them."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return text


def assert_same(stub, function, where):
    found, expected = parameters_of(stub), native_parameters_of(function)
    assert [name for name, _ in found] == [name for name, _ in expected], where
    for (name, a), (_, b) in zip(found, expected):
        assert number(a) == pytest.approx(number(b)) if a != b else True, (where, name, a, b)
    assert stub.returns is not None and all(
        argument.annotation is not None or argument.arg == "self" for argument in stub.args.args)


def members(body):
    return {node.name: node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_the_extension_is_described_as_it_is():
    stubs = members(parse("_native.pyi"))
    there = {name for name in dir(_native) if not name.startswith("__")}
    assert set(stubs) == there
    for name, stub in stubs.items():
        if isinstance(stub, ast.FunctionDef):
            assert_same(stub, getattr(_native, name), name)
            continue
        described = members(stub.body)
        owner = getattr(_native, name)
        public = {key for key in vars(owner) if not key.startswith("_")}
        assert public == {key for key in described if not key.startswith("_")}, name
        for key, method in described.items():
            function = inspect.getattr_static(owner, key)
            function = getattr(owner, key)
            if hasattr(function, "__nb_signature__"):
                assert_same(method, function, f"{name}.{key}")


def test_the_package_is_described_as_it_is():
    names = {alias.asname for node in parse("__init__.pyi") if isinstance(node, ast.ImportFrom)
             for alias in node.names}
    assert names == set(flashmha.__all__)
    assert (PACKAGE / "py.typed").exists()


def check_module(name):
    module = importlib.import_module("flashmha" + (name and f".{name}"))
    assert module.__doc__, name
    assert sorted(module.__all__) == module.__all__, name
    for key in module.__all__:
        value = getattr(module, key)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        assert value.__doc__, f"{name}.{key}"
        if inspect.isfunction(value) and value.__module__ == module.__name__:
            signature = inspect.signature(value)
            if name == "flash_attn.flash_attn_2_cuda":  # has the extension's own arguments
                continue
            assert signature.return_annotation is not inspect.Signature.empty, f"{name}.{key}"
            for parameter in signature.parameters.values():
                assert parameter.annotation is not inspect.Parameter.empty, f"{name}.{key}"


@pytest.mark.parametrize("name", PLAIN)
def test_public_names(name):
    if name == "":  # whose names need torch and Transformers
        assert sorted(flashmha.__all__) == flashmha.__all__
        assert set(flashmha.__all__) == set(dir(flashmha))
        return
    check_module(name)


@pytest.mark.parametrize("name", OF_TORCH)
def test_public_names_for_torch(name):
    pytest.importorskip("torch")
    check_module(name)


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_public_names_for_transformers(name):
    pytest.importorskip("transformers")
    check_module(name)


def test_modules_are_imported_when_they_are_asked_for():
    pytest.importorskip("transformers")
    assert callable(flashmha.transformers.register)
    assert flashmha.flash_attn.__version__ == "2.8.3"
    assert flashmha.FlashMultiHeadAttention.__module__ == "flashmha.modules"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(flashmha, "nothing")  # noqa: B009
