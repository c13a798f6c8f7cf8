"""flashmha.Trainer: against the C++ program, resumed, watched, interrupted."""

import gc
import json
import os
import signal
import subprocess
import sys
import threading

import flashmha
import numpy as np
import pytest

from test_model import needs_program, program

SIZES = dict(num_layers=2, hidden_size=32, num_heads=4)
SETTINGS = dict(num_steps=12, batch_size=2, learning_rate=4e-3, seed=5)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    words = ["sea", "ship", "sail", "storm", "rope", "captain"]
    for i in range(6):
        (folder / f"{i}.txt").write_text(" ".join(rng.choice(words, 200)))
    return folder


def new_trainer(text, output="", **changes):
    tokenizer = flashmha.Tokenizer.bytes()
    model = flashmha.Model.new(tokenizer, max_position_embeddings=64, seed=5, **SIZES)
    data = flashmha.PackedDataset.from_files(text, tokenizer, seq_length=64)
    return model, flashmha.Trainer(model, *data, output=output, **{**SETTINGS, **changes})


@needs_program
def test_trains_what_the_program_does(text, tmp_path):
    """The same weights, bit for bit, and the same log."""
    program("train", "--data", text, "--output", tmp_path / "program", "--layers", 2, "--hidden",
            32, "--heads", 4, "--seq-length", 64, "--steps", 12, "--batch-size", 2,
            "--learning-rate", 4e-3, "--seed", 5)
    _, trainer = new_trainer(text, tmp_path / "python")
    result = trainer.run()
    assert result.end == "finished" and result.step == 12 and result.peak_bytes > 0
    runs = []
    for name in ("program", "python"):
        checkpoint = tmp_path / name / "checkpoint-12"
        log = [json.loads(line) for line in (tmp_path / name / "log.jsonl").open()]
        for record in log:
            record.pop("tokens_per_second", None)
        runs.append(((checkpoint / "model.safetensors").read_bytes(),
                     (checkpoint / "config.json").read_text(), log))
    assert runs[0] == runs[1]


def test_a_resumed_run_ends_with_the_same_bits(text, tmp_path):
    model, trainer = new_trainer(text, tmp_path / "whole")
    records, paths = [], []
    result = trainer.run(on_step=records.append, on_checkpoint=paths.append)
    assert [r.step for r in records] == list(range(13))
    assert records[0].loss is None and records[0].eval_loss > 0
    assert records[-1].loss == result.loss < records[1].loss
    assert str(tmp_path / "whole" / "checkpoint-12") in map(str, paths)

    seen = []
    _, stopped = new_trainer(text, tmp_path / "parts")
    result = stopped.run(on_step=seen.append, should_stop=lambda: len(seen) > 5)
    assert result.end == "stopped" and result.step == 5
    del stopped, _, trainer  # who holds a trainer holds its directory
    again, resumed = new_trainer(text, tmp_path / "parts")
    assert resumed.resume() == 5
    assert resumed.run().step == 12
    expected = model.parameters()
    for name, parameter in again.parameters().items():
        assert np.array_equal(np.asarray(parameter.weight), np.asarray(expected[name].weight))
    assert flashmha.Model.load(tmp_path / "parts").generate("sea", max_new_tokens=5).tokens
    _, other = new_trainer(text, tmp_path / "whole", learning_rate=1.0)
    with pytest.raises(ValueError, match="learning_rate"):
        other.resume()


def test_exceptions_of_callbacks_end_the_run(text):
    _, trainer = new_trainer(text)
    with pytest.raises(ZeroDivisionError):
        trainer.run(on_step=lambda record: 1 / (record.step - 3))
    assert trainer.run().step == 12  # goes on


def test_ctrl_c_leaves_a_checkpoint(text, tmp_path):
    """Whether it comes inside a callback or while the library computes."""
    def interrupt(record):
        if record.step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    options = dict(num_steps=10**6, warmup_steps=1, save_every=0)
    _, trainer = new_trainer(text, tmp_path / "callback", **options)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(on_step=interrupt)
    assert (tmp_path / "callback/checkpoint-4/model.safetensors").exists()

    _, trainer = new_trainer(text, tmp_path / "library", **options)
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert list((tmp_path / "library").glob("checkpoint-*/model.safetensors"))
    # The error, whose traceback knows the trainer, does not keep it: its directory is free again.
    del trainer, _
    gc.collect()
    assert new_trainer(text, tmp_path / "library", **options)[1].resume() > 0


def test_divergence_is_said(text):
    model, trainer = new_trainer(text)
    weight = np.asarray(model.parameters()["model.norm.weight"].weight)
    weight[0] = np.nan
    result = trainer.run()
    assert result.end == "diverged" and result.step == 0 and result.message


def test_datasets(text, tmp_path):
    tokenizer = flashmha.Tokenizer.bytes()
    training, evaluation = flashmha.PackedDataset.from_files([text], tokenizer, seq_length=32,
                                                             eval_fraction=0.2)
    assert training.num_documents + evaluation.num_documents == 6
    assert training.num_targets == training.num_tokens - training.num_documents
    assert training.seq_length == 32 and training.num_sequences * 32 >= training.num_targets
    alone, none = flashmha.PackedDataset.from_tokens([[1, 2, 3], [4, 5]], seq_length=8)
    assert none is None and alone.num_targets == 3 and alone.num_sequences == 1
    with pytest.raises(flashmha.FileError):
        flashmha.PackedDataset.from_files(tmp_path / "nothing", tokenizer)
    with pytest.raises(ValueError, match="seq_length"):
        flashmha.PackedDataset.from_tokens([[1, 2]], seq_length=0)


def test_epochs_become_steps(text):
    tokenizer = flashmha.Tokenizer.bytes()
    model = flashmha.Model.new(tokenizer, **SIZES)
    data, _ = flashmha.PackedDataset.from_files(text, tokenizer, seq_length=64, eval_fraction=0)
    trainer = flashmha.Trainer(model, data, epochs=2, batch_size=3)
    assert trainer.num_steps == -(-2 * data.num_sequences // 3)


def test_everything_goes_when_nobody_holds_it(text):
    """No cycle keeps a model: memory of a killed trainer is given back."""
    subprocess.run([sys.executable, "-c", """
import gc, sys, weakref
import flashmha
tokenizer = flashmha.Tokenizer.bytes()
model = flashmha.Model.new(tokenizer, num_layers=1, hidden_size=32, num_heads=4)
data, _ = flashmha.PackedDataset.from_tokens([list(range(100))], seq_length=16)
trainer = flashmha.Trainer(model, data, num_steps=2)
trainer.run(on_step=lambda record: None)
optimizer = flashmha.AdamW(model)
gone = weakref.ref(model)
gc.disable()
del model, trainer, data
assert gone() is None
optimizer.step()  # holds the C++ model
"""], check=True)
