"""Language models computed by the C++ library alone: loaded, generating, trained.

    model = flashmha.Model.load("Qwen3-0.6B")               # a directory as Hugging Face's
    print(model.generate("The sea was", max_new_tokens=40).text)
    logits = model(input_ids)                                # [batch, seqlen, vocab_size]

PyTorch and Transformers are not needed. flashmha.Trainer trains a model on text; loss(), backward()
and AdamW are the parts for a loop of one's own. No call holds the GIL while it computes; a model
computes for one thread at a time.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import importlib.util
import os
import shutil
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Union

from . import _native, arrays
from ._native import Tokenizer

__all__ = ["AdamW", "Generated", "Loss", "Model", "Parameter", "Tokenizer"]

Array = Any
Path = Union[str, "os.PathLike[str]"]


class Generated(NamedTuple):
    """What follows a prompt."""

    text: str  # without special tokens and the stop string; "" of generate_tokens
    tokens: List[int]  # new ones, the stop token included
    finish_reason: str  # "length", "stop_token", "stop_string" or "callback"
    prompt: int  # index of the prompt
    score: float  # beam search: sum of log probabilities / length ** length_penalty


class Loss(NamedTuple):
    """Cross-entropy of the next tokens."""

    mean: float  # over the counted tokens, natural logarithm
    num_tokens: int


class Parameter(NamedTuple):
    """Memory of a model, for any library with DLPack: torch.from_dlpack(parameter.weight)."""

    weight: Array
    gradient: Optional[Array]  # float32; None before the first backward


def _find(directory: Path) -> str:
    """The directory itself, or the newest checkpoint in the output of a training."""
    directory = os.fspath(directory)
    if os.path.exists(os.path.join(directory, "config.json")):
        return directory
    return _native.latest_checkpoint(directory) or directory


@functools.lru_cache(maxsize=None)
def _load_cublaslt() -> None:
    """Loads the cuBLASLt of pip's packages, which are in no folder that the system searches.

    The C++ library then finds it by its name; without one it looks where the system does.
    """
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations or () if found is not None else ():
        for path in sorted(glob.glob(os.path.join(folder, "*", "lib", "libcublasLt.so.*"))):
            ctypes.CDLL(path)


def _prepare(device: str) -> str:
    if device.startswith("cuda"):
        _load_cublaslt()
    return device


class Model:
    """A decoder of the Llama family (docs/model.md says which), made by load, from_config or new.

    device: "cpu" or "cuda:0". dtype: "float32", "bfloat16" or "float16". attention: "flash", or
    "plain", which stores the scores and is there for comparison.
    """

    def __init__(self, native: _native.Model, directory: Optional[str] = None,
                 tokenizer: Optional[Tokenizer] = None):
        self._native, self._directory, self._tokenizer = native, directory, tokenizer

    # ---- making and saving -----------------------------------------------------------------------

    @classmethod
    def load(cls, directory: Path, *, dtype: Optional[str] = None, device: str = "cpu",
             attention: str = "flash") -> "Model":
        """The model of a directory as Hugging Face's, or of the newest checkpoint of a training.

        dtype: of weights and activations; default: what config.json says, but bfloat16 for
            float32 with flash attention on a GPU.
        """
        directory = _find(directory)
        return cls(_native.Model.load(directory, dtype, _prepare(device), attention), directory)

    @classmethod
    def from_config(cls, directory: Path, *, seed: int = 0, dtype: Optional[str] = None,
                    device: str = "cpu", attention: str = "flash") -> "Model":
        """Random weights for the config.json of a directory, whose weights are not looked at."""
        directory = os.fspath(directory)
        native = _native.Model.from_config(directory, seed, dtype, _prepare(device), attention)
        return cls(native, directory)

    @classmethod
    def new(cls, tokenizer: Tokenizer, *, num_layers: int = 4, hidden_size: int = 512,
            num_heads: int = 8, num_kv_heads: Optional[int] = None, head_dim: Optional[int] = None,
            intermediate_size: Optional[int] = None, max_position_embeddings: int = 2048,
            seed: int = 1, dtype: Optional[str] = None, device: str = "cpu",
            attention: str = "flash") -> "Model":
        """Random weights for the vocabulary of a tokenizer, as `flashmha train` makes them.

        num_kv_heads: default num_heads; head_dim: hidden_size / num_heads; intermediate_size: 8/3
        of hidden_size, rounded up to 32; dtype: float32, but bfloat16 with flash attention on a
        GPU.
        """
        native = _native.Model.of_sizes(
            tokenizer.vocab_size, num_layers, hidden_size, num_heads, num_kv_heads or 0,
            head_dim or 0, intermediate_size or 0, max_position_embeddings, tokenizer.bos_token_id,
            tokenizer.eos_token_id, seed, dtype, _prepare(device), attention)
        return cls(native, None, tokenizer)

    def save(self, directory: Path, *, max_shard_bytes: int = 5_000_000_000) -> None:
        """Writes config.json and the weights as safetensors; Transformers reads them, too.

        The directory has the old weights or the new ones at any moment. It also gets the
        tokenizer's files of the directory that the model came from.
        """
        directory = os.fspath(directory)
        self._native.save(directory, max_shard_bytes)
        for path in self._companions():
            destination = os.path.join(directory, os.path.basename(path))
            if not os.path.exists(destination) or not os.path.samefile(path, destination):
                shutil.copyfile(path, destination)

    def _companions(self) -> List[str]:
        """Files of the model's directory that belong to it besides its weights and config."""
        names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
        directory = self._directory
        paths = [] if directory is None else [os.path.join(directory, name) for name in names]
        return [path for path in paths if os.path.isfile(path)]

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model's directory; bytes without tokenizer.json there."""
        if self._tokenizer is None:
            self._tokenizer = (Tokenizer.bytes() if self._directory is None else
                               Tokenizer.for_model(self._directory))
        return self._tokenizer

    # ---- what it is ------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        return self._native.vocab_size

    @property
    def num_layers(self) -> int:
        return self._native.num_layers

    @property
    def hidden_size(self) -> int:
        return self._native.hidden_size

    @property
    def num_parameters(self) -> int:
        return self._native.num_parameters

    @property
    def dtype(self) -> str:
        return self._native.dtype

    @property
    def device(self) -> str:
        return self._native.device

    def parameters(self) -> Dict[str, Parameter]:
        """Weights and gradients under Hugging Face's names, as arrays of the model's own memory."""
        return {name: Parameter(*pair) for name, pair in self._native.parameters().items()}

    def __repr__(self) -> str:
        return (f"flashmha.Model({self._native.model_type or 'llama'}, {self.num_layers} layers, "
                f"hidden {self.hidden_size}, {self.num_parameters} parameters, {self.dtype}, "
                f"{self.device})")

    # ---- logits, loss, gradients -----------------------------------------------------------------

    def forward(self, input_ids: Array, attention_mask: Optional[Array] = None,
                position_ids: Optional[Array] = None, *, last_logits_only: bool = False) -> Array:
        """Logits [batch, seqlen, vocab_size] in the model's dtype, an array of input_ids' library.

        input_ids: int32 or int64 [batch, seqlen]; also nested lists. attention_mask: [batch,
        seqlen], boolean or integers, non-zero = real token; padding may be anywhere. position_ids:
        int32 [batch, seqlen]; default: real tokens are counted. last_logits_only: those of the last
        position, [batch, 1, vocab_size].
        Integers may be on the host also if the model is on a GPU; the logits are on the model's
        device. For NumPy they are on the host, bfloat16 as float32, which NumPy has.
        """
        input_ids = _integers(input_ids)
        for_numpy = arrays.library(input_ids) == "numpy"
        logits = self._native.forward(input_ids, attention_mask, position_ids, last_logits_only,
                                      for_numpy)
        return arrays.adopt(logits, input_ids)

    __call__ = forward

    def loss(self, input_ids: Array, labels: Optional[Array] = None,
             attention_mask: Optional[Array] = None, position_ids: Optional[Array] = None) -> Loss:
        """Cross-entropy of every token's successor.

        labels: like input_ids, which is the default; token t predicts labels[t + 1], and -100 is
        not counted.
        """
        input_ids = _integers(input_ids)
        labels = input_ids if labels is None else _integers(labels)
        return Loss(*self._native.loss(input_ids, labels, attention_mask, position_ids))

    def backward(self, input_ids: Array, labels: Optional[Array] = None,
                 attention_mask: Optional[Array] = None, position_ids: Optional[Array] = None, *,
                 scale: float = 1.0) -> Loss:
        """loss(), and adds the gradients of scale * loss to those of the parameters.

        Of several batches that make up one step, each needs scale = its share of their tokens.
        """
        input_ids = _integers(input_ids)
        labels = input_ids if labels is None else _integers(labels)
        return Loss(*self._native.loss(input_ids, labels, attention_mask, position_ids, scale))

    def zero_gradients(self) -> None:
        self._native.zero_gradients()

    # ---- generation ------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Union[str, Sequence[str]],
        *,
        max_new_tokens: int = 128,
        temperature: Optional[float] = None,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        stop_token_ids: Optional[Sequence[int]] = None,
        num_return_sequences: int = 1,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        early_stopping: str = "heuristic",
        cache: str = "dynamic",
        tokenizer: Optional[Tokenizer] = None,
        on_text: Optional[Callable[[int, str], Optional[bool]]] = None,
        on_step: Optional[Callable[[int], Any]] = None,
    ) -> Union[Generated, List[Generated]]:
        """Continues a text, or a batch of them, of any lengths.

        temperature: 0 is the most likely token; default: 0, and 1 with top_k, top_p or min_p, which
        are filters as in Transformers. seed: equal seeds give equal texts, on every machine, and
        for a prompt alone as in a batch. stop: texts before which a result ends. stop_token_ids:
        default: the model's own, else the tokenizer's; () for none. num_beams > 1: beam search,
        with early_stopping "heuristic", "when_found" or "never". cache: "dynamic", "static",
        "sliding", "paged" or "none".
        on_text(row, text): called with a row's new text as soon as it is certain; row =
        prompt * num_return_sequences + sequence; returns False to end the row. on_step(step): after
        every step. An exception of theirs, or Ctrl-C, ends the generation.
        Returns one Generated for a str, otherwise a list, num_return_sequences for each prompt.
        """
        tokenizer = self.tokenizer if tokenizer is None else tokenizer
        if stop_token_ids is None:
            stop_token_ids = self._stop_token_ids(tokenizer)
        options = _generation(locals())
        options["stop_strings"] = [stop] if isinstance(stop, str) else list(stop)
        one = isinstance(prompts, str)
        results = _native.generate_text(self._native, tokenizer, [prompts] if one else
                                        list(prompts), options, on_text, on_step)
        results = [Generated(*result) for result in results]
        return results[0] if one and num_return_sequences == 1 else results

    def generate_tokens(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 128,
        temperature: Optional[float] = None,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop_token_ids: Sequence[int] = (),
        num_return_sequences: int = 1,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        early_stopping: str = "heuristic",
        cache: str = "dynamic",
        on_token: Optional[Callable[[int, int], Optional[bool]]] = None,
        on_step: Optional[Callable[[int], Any]] = None,
    ) -> List[Generated]:
        """generate() from token ids, a list for each prompt, to token ids.

        on_token(row, token): called with every token; returns False to end the row.
        """
        results = _native.generate_tokens(self._native, [list(prompt) for prompt in prompts],
                                          _generation(locals()), on_token, on_step)
        return [Generated("", *result[1:]) for result in results]

    def _stop_token_ids(self, tokenizer: Tokenizer) -> List[int]:
        ids = _native.stop_token_ids(self._native, self._directory)
        end = tokenizer.eos_token_id
        return ids or ([end] if end is not None and end < self.vocab_size else [])


class AdamW:
    """AdamW with float32 moments, and float32 master weights for 16-bit parameters.

    Vectors (norms, biases, sinks) are not decayed. max_gradient_norm 0: gradients are not clipped.
    """

    def __init__(self, model: Model, learning_rate: float = 1e-3, beta1: float = 0.9,
                 beta2: float = 0.95, eps: float = 1e-8, weight_decay: float = 0.1,
                 max_gradient_norm: float = 1.0):
        self._native = _native.AdamW(model._native, learning_rate, beta1, beta2, eps, weight_decay,
                                     max_gradient_norm)

    def step(self) -> float:
        """Updates all parameters from their gradients, then zeroes these.

        Returns the norm of the whole gradient before clipping; if it is not finite, nothing is
        changed.
        """
        return self._native.step()

    def set_learning_rate(self, learning_rate: float) -> None:
        self._native.set_learning_rate(learning_rate)

    @property
    def num_steps(self) -> int:
        return self._native.num_steps


_GENERATION = ("max_new_tokens", "top_k", "top_p", "min_p", "repetition_penalty", "seed",
               "num_return_sequences", "num_beams", "length_penalty", "early_stopping", "cache")


def _generation(arguments: Dict[str, Any]) -> Dict[str, Any]:
    """Options of the C++ library."""
    options = {name: arguments[name] for name in _GENERATION}
    filtered = options["top_k"] > 0 or options["top_p"] < 1.0 or options["min_p"] > 0.0
    temperature = arguments["temperature"]
    if temperature is None:
        temperature = 1.0 if filtered else 0.0
    options["temperature"] = float(temperature)
    options["stop_token_ids"] = list(arguments["stop_token_ids"])
    return options


def _integers(ids: Array) -> Array:
    """Nested lists as an array."""
    if not isinstance(ids, (list, tuple)):
        return ids
    import numpy

    return numpy.asarray(ids, dtype=numpy.int64)
