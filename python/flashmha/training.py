"""Training of a flashmha.Model on text, with schedule, evaluation, log and checkpoints.

    training, held_out = flashmha.PackedDataset.from_files(["books/"], model.tokenizer)
    trainer = flashmha.Trainer(model, training, held_out, output="run", num_steps=1000)
    trainer.resume()                       # goes on where an earlier run was interrupted
    result = trainer.run(on_step=lambda record: print(record.step, record.loss))

The output directory is that of the program `flashmha train`, and each goes on with the other's
runs: log.jsonl, loss.svg, and checkpoint-STEP/, which are model directories. A resumed run ends
with the bits of one that was not interrupted.
"""

from __future__ import annotations

import math
import os
from typing import Any, Callable, NamedTuple, Optional, Sequence, Tuple, Union

from . import _native
from .model import Model, Path, Tokenizer

__all__ = ["PackedDataset", "StepRecord", "Trainer", "TrainingResult"]


class StepRecord(NamedTuple):
    """A line of log.jsonl."""

    step: int  # 0: before training, with eval_loss only
    loss: Optional[float]  # mean over the step's tokens, before its update
    learning_rate: float
    gradient_norm: float  # before clipping
    num_tokens: int  # targets seen since the start
    tokens_per_second: float
    eval_loss: Optional[float]  # mean over the tokens of the held-out sequences


class TrainingResult(NamedTuple):
    """What a run ended with."""

    end: str  # "finished", "stopped" (by should_stop) or "diverged" (message says where)
    step: int  # the last one that was made
    loss: Optional[float]  # of that step
    eval_loss: Optional[float]  # the last one
    num_tokens: int
    tokens_per_second: float
    peak_bytes: int
    message: str


class PackedDataset:
    """Documents cut and packed into sequences of seq_length tokens.

    Every token but a document's first is predicted once, and attention never leaves a document.
    """

    def __init__(self, native: _native.PackedDataset):
        self._native = native

    @classmethod
    def from_files(
        cls, paths: Union[Path, Sequence[Path]], tokenizer: Tokenizer, *, seq_length: int = 512,
        eval_fraction: float = 0.05, document_separator: str = ""
    ) -> Tuple["PackedDataset", Optional["PackedDataset"]]:
        """Text files, and folders of them, for training and for evaluation.

        A file is a document, or several between document_separator; so is the "text" of every line
        of a .jsonl file. Whole documents, about eval_fraction of the tokens, are held out; the
        second result is None if that is 0.
        """
        if isinstance(paths, (str, os.PathLike)):
            paths = [paths]
        return cls._pair(_native.dataset_from_files([os.fspath(path) for path in paths], tokenizer,
                                                    seq_length, eval_fraction, document_separator))

    @classmethod
    def from_tokens(
        cls, documents: Sequence[Sequence[int]], *, seq_length: int = 512,
        eval_fraction: float = 0.0
    ) -> Tuple["PackedDataset", Optional["PackedDataset"]]:
        """The same from token ids, a list for each document."""
        return cls._pair(_native.dataset_from_tokens([list(document) for document in documents],
                                                     seq_length, eval_fraction))

    @classmethod
    def _pair(cls, natives):
        training, evaluation = natives
        return cls(training), None if evaluation is None else cls(evaluation)

    @property
    def seq_length(self) -> int:
        return self._native.seq_length

    @property
    def num_sequences(self) -> int:
        return self._native.num_sequences

    @property
    def num_documents(self) -> int:
        return self._native.num_documents

    @property
    def num_tokens(self) -> int:
        return self._native.num_tokens

    @property
    def num_targets(self) -> int:
        """Tokens that are predicted."""
        return self._native.num_targets


class Trainer:
    """Trains a model; see the head of this file."""

    def __init__(
        self,
        model: Model,
        training: PackedDataset,
        evaluation: Optional[PackedDataset] = None,
        *,
        output: Path = "",
        num_steps: Optional[int] = None,
        epochs: float = 1.0,
        batch_size: int = 8,
        accumulate: int = 1,
        learning_rate: float = 1e-3,
        min_learning_rate: Optional[float] = None,
        warmup_steps: Optional[int] = None,
        beta1: float = 0.9,
        beta2: float = 0.95,
        weight_decay: float = 0.1,
        max_gradient_norm: float = 1.0,
        seed: int = 1,
        eval_every: Optional[int] = None,
        max_eval_sequences: int = 64,
        save_every: Optional[int] = None,
        keep: int = 2,
        companions: Sequence[Path] = (),
        recompute: bool = False,
    ):
        """output: directory; "": nothing is written.

        num_steps: of the optimiser; default: `epochs` times through the data. A step is
        accumulate batches of batch_size sequences; its gradient is the mean over all their tokens.
        learning_rate: the highest, after warmup_steps (default: a tenth of the steps, at most 100);
        then half a cosine down to min_learning_rate (default: a tenth). 5e-5 is usual to fine-tune.
        seed: of the order of the data, and of dropout. eval_every, save_every: steps; default: a
        tenth of all; 0: at the end. keep: checkpoints; 0: all. companions: files that every
        checkpoint gets a copy of; tokenizer.json and the like of the model's directory are added.
        recompute: layers compute again for the backward what they need, which saves memory.
        """
        if num_steps is None:
            steps = epochs * training.num_sequences / (batch_size * accumulate)
            num_steps = max(1, math.ceil(steps))
        tenth = max(1, num_steps // 10)
        options = dict(
            output=os.fspath(output), num_steps=num_steps, batch_size=batch_size,
            accumulate=accumulate, learning_rate=learning_rate, beta1=beta1, beta2=beta2,
            weight_decay=weight_decay, max_gradient_norm=max_gradient_norm, seed=seed,
            eval_every=tenth if eval_every is None else eval_every,
            max_eval_sequences=max_eval_sequences,
            save_every=tenth if save_every is None else save_every, keep=keep,
            companions=model._companions() + [os.fspath(path) for path in companions],
            recompute=recompute)
        if min_learning_rate is not None:
            options["min_learning_rate"] = min_learning_rate
        if warmup_steps is not None:
            options["warmup_steps"] = warmup_steps
        self.num_steps = num_steps
        self._native = _native.Trainer(
            model._native, training._native, None if evaluation is None else evaluation._native,
            options)

    def resume(self) -> int:
        """Makes model and optimiser those of the newest checkpoint in output; returns its step.

        0 if there is none. InvalidArgument if that run had other settings, data or model.
        """
        return self._native.resume()

    def run(self, *, on_step: Optional[Callable[[StepRecord], Any]] = None,
            on_checkpoint: Optional[Callable[[str], Any]] = None,
            should_stop: Optional[Callable[[], bool]] = None) -> TrainingResult:
        """Trains up to num_steps.

        on_step: called after every step. on_checkpoint: with the path of each. should_stop: asked
        between steps; True: a checkpoint is written and run returns. So does Ctrl-C, which is
        raised then. An exception of the functions ends the run at once.
        """
        record = None if on_step is None else lambda *values: on_step(StepRecord(*values))
        return TrainingResult(*self._native.run(record, on_checkpoint, should_stop))
