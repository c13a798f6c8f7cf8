"""The C++ library. Arrays may be of any library with DLPack; None: not given. flashmha.attention
and flashmha.flash_attn are what programs should call."""

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

_Bytes = bytes

__version__: str

def num_threads() -> int:
    """Threads that CPU kernels use."""

def set_num_threads(count: int) -> None:
    """Sets the threads of CPU kernels; 0 restores the default."""

def num_gpus() -> int:
    """GPUs that can be used; 0 in a build without CUDA."""

def synchronize(device: str) -> None:
    """Waits for the default stream of a GPU; returns at once for "cpu"."""

def attend(
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    top_left: bool = False,
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    bias: Any = None,
    mask: Any = None,
    sinks: Any = None,
    dropout_p: float = 0.0,
    seed: int = 0,
    offset: int = 0,
    deterministic: bool = False,
    cu_seqlens_q: Any = None,
    cu_seqlens_k: Any = None,
    max_seqlen_q: int = 0,
    max_seqlen_k: int = 0,
    seqused_q: Any = None,
    seqused_k: Any = None,
    block_table: Any = None,
    dout: Any = None,
    dlse: Any = None,
    dq: Any = None,
    dk: Any = None,
    dv: Any = None,
    dbias: Any = None,
    dsinks: Any = None,
    workspace: Optional[Callable[[int, int], Any]] = None,
) -> None:
    """Writes out and, unless it is None, lse; with dout given, reads them and writes dq, dk, dv
    and, where given, dbias and dsinks. workspace(bytes, device index) returns an array to work in;
    without it the library allocates."""

def attend_quickly(
    q: Any,
    k: Any,
    v: Any,
    out: Any,
    lse: Any,
    softmax_scale: Optional[float],
    causal: bool,
    window_left: int,
    window_right: int,
    softcap: float,
    workspace: Optional[Callable[[int, int], Any]],
) -> bool:
    """attend with the options of most calls alone, all given. False, and nothing done: q has not 4
    dimensions, no batch, another head_dim than v, or float64."""

def attend_to_cache(
    q: Any,
    k_cache: Any,
    v_cache: Any,
    out: Any,
    lse: Any,
    k: Any = None,
    v: Any = None,
    rotary_cos: Any = None,
    rotary_sin: Any = None,
    rotary_interleaved: bool = False,
    positions: Any = None,
    cache_seqlens: Any = None,
    cache_batch_idx: Any = None,
    cache_leftpad: Any = None,
    block_table: Any = None,
    num_splits: int = 0,
    softmax_scale: Optional[float] = None,
    causal: bool = False,
    window_left: int = -1,
    window_right: int = -1,
    top_left: bool = False,
    softcap: float = 0.0,
    alibi_slopes: Any = None,
    bias: Any = None,
    mask: Any = None,
    sinks: Any = None,
    workspace: Optional[Callable[[int, int], Any]] = None,
) -> None:
    """Writes out and lse, and appends k and v to the cache where given."""

def empty(shape: Sequence[int], dtype: str, device: str = "cpu") -> Any:
    """An array with unspecified contents, for any library with DLPack."""

def rotary(
    x: Any,
    cos: Any,
    sin: Any,
    positions: Any,
    y: Any,
    interleaved: bool = False,
    conjugate: bool = False,
) -> None:
    """Rotates x [batch, seqlen, num_heads, head_dim] or [total, num_heads, head_dim] into y, which
    may be x; cos, sin float32 [num_positions, rotary_dim / 2]; positions int32 [batch, seqlen] or
    [total]."""

def rotary_tables(parameters: Dict[str, Any], num_positions: int) -> Tuple[Any, Any]:
    """(cos, sin) of RotaryEmbedding of flashmha/rotary.h, float32 [num_positions, rotary_dim / 2];
    parameters: members of RotaryConfig as Transformers names them."""

def xla_handlers() -> Tuple[Any, Any]:
    """Attention as foreign functions of XLA, for CPUs and GPUs: capsules for
    jax.ffi.register_ffi_target."""

class Tokenizer:
    """Text to token ids and back. Immutable; may be used by many threads."""

    @staticmethod
    def bytes() -> Tokenizer:
        """Ids 0 to 255 are bytes, 256 is <|endoftext|>, the end of a sequence."""

    @staticmethod
    def from_file(path: str) -> Tokenizer:
        """The tokenizer of a tokenizer.json."""

    @staticmethod
    def for_model(directory: str) -> Tokenizer:
        """The tokenizer of a model's folder; bytes() if it has no tokenizer.json."""

    def encode(
        self,
        text: Union[str, _Bytes],
        add_special_tokens: bool = True,
        match_special_tokens: bool = True,
    ) -> List[int]:
        """Ids of a str, or of bytes, which may be invalid UTF-8. add_special_tokens: those that
        belong around a text. match_special_tokens: the text of a special token becomes that token;
        False for text from strangers."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of ids; bytes that are no UTF-8 become U+FFFD."""

    def token_id(self, token: str) -> Optional[int]:
        """Id of a token as tokenizer.json writes it; None if there is no such one."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""

    @property
    def bos_token_id(self) -> Optional[int]:
        """Starts a sequence, or None."""

    @property
    def eos_token_id(self) -> Optional[int]:
        """Ends a sequence, or None."""

class Model:
    """CausalLM of flashmha/model.h; use flashmha.Model."""

    @staticmethod
    def load(
        directory: str,
        dtype: Optional[str] = None,
        device: str = "cpu",
        attention: str = "flash",
    ) -> Model: ...
    @staticmethod
    def from_config(
        directory: str,
        seed: int,
        dtype: Optional[str] = None,
        device: str = "cpu",
        attention: str = "flash",
    ) -> Model: ...
    @staticmethod
    def of_sizes(
        vocab_size: int,
        num_layers: int,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        intermediate_size: int,
        max_position_embeddings: int,
        bos_token_id: Optional[int] = None,
        eos_token_id: Optional[int] = None,
        seed: int = 0,
        dtype: Optional[str] = None,
        device: str = "cpu",
        attention: str = "flash",
    ) -> Model: ...
    def save(self, directory: str, max_shard_bytes: int = 5000000000) -> None: ...
    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        last_logits_only: bool = False,
        numpy: bool = False,
    ) -> Any: ...
    def loss(
        self,
        input_ids: Any,
        labels: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        scale: Optional[float] = None,
    ) -> Tuple[float, int]: ...
    def zero_gradients(self) -> None: ...
    def parameters(self) -> Dict[str, Tuple[Any, Any]]: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def model_type(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...

class AdamW:
    """AdamW of flashmha/training.h; use flashmha.AdamW."""

    def __init__(
        self,
        model: Model,
        learning_rate: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        max_gradient_norm: float,
    ) -> None: ...
    def step(self) -> float: ...
    def set_learning_rate(self, learning_rate: float) -> None: ...
    @property
    def num_steps(self) -> int: ...

def latest_checkpoint(output: str) -> Optional[str]:
    """The complete checkpoint of the highest step in the output of a run, or None."""

def stop_token_ids(model: Model, directory: Optional[str]) -> List[int]:
    """The tokens that end a sequence: of the directory's generation_config.json, else of the
    model's config."""

_Result = Tuple[Optional[str], List[int], str, int, float]

def generate_text(
    model: Model,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    options: Dict[str, Any],
    on_text: Optional[Callable[[int, str], Optional[bool]]] = None,
    on_step: Optional[Callable[[int], Any]] = None,
) -> List[_Result]:
    """generate_text of flashmha/text_generation.h: [(text, tokens, finish_reason, prompt, score),
    ...]. options: the members of GenerationOptions and SamplingOptions by name, and
    stop_strings."""

def generate_tokens(
    model: Model,
    prompts: Sequence[Sequence[int]],
    options: Dict[str, Any],
    on_token: Optional[Callable[[int, int], Optional[bool]]] = None,
    on_step: Optional[Callable[[int], Any]] = None,
) -> List[_Result]:
    """generate of flashmha/generation.h, with the same results but text, which is None."""

class PackedDataset:
    """Documents cut and packed into sequences of seq_length tokens. Every token but a document's
    first is predicted once, and attention never leaves a document."""

    @property
    def seq_length(self) -> int: ...
    @property
    def num_sequences(self) -> int: ...
    @property
    def num_targets(self) -> int:
        """Tokens that are predicted."""

    @property
    def num_documents(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...

_Datasets = Tuple[PackedDataset, Optional[PackedDataset]]

def dataset_from_files(
    paths: Sequence[str],
    tokenizer: Tokenizer,
    seq_length: int,
    eval_fraction: float = 0.0,
    document_separator: str = "",
) -> _Datasets:
    """(training, evaluation or None): read_corpus, split_corpus and PackedDataset of
    flashmha/dataset.h."""

def dataset_from_tokens(
    documents: Sequence[Sequence[int]], seq_length: int, eval_fraction: float = 0.0
) -> _Datasets:
    """The same from token ids, a list for each document."""

class Trainer:
    """Trainer of flashmha/trainer.h; use flashmha.Trainer."""

    def __init__(
        self,
        model: Model,
        training: PackedDataset,
        evaluation: Optional[PackedDataset],
        options: Dict[str, Any],
    ) -> None: ...
    def resume(self) -> int: ...
    def run(
        self,
        on_step: Optional[Callable[..., Any]] = None,
        on_checkpoint: Optional[Callable[[str], Any]] = None,
        should_stop: Optional[Callable[[], bool]] = None,
    ) -> Tuple[
        str, int, Optional[float], Optional[float], int, float, int, str
    ]: ...
