"""flashmha.Model against what Transformers said about the same directories, and the C++ program."""

import json
import os
import pathlib
import struct
import subprocess
import threading

import flashmha
import numpy as np
import pytest

CHECKPOINTS = pathlib.Path(__file__).parents[2] / "tests/truth/checkpoints"
NAMES = ("gemma2", "gemma3", "llama2", "llama3", "mistral", "qwen2", "qwen3")
PROGRAM = os.environ.get("FLASHMHA_PROGRAM")
needs_checkpoints = pytest.mark.skipif(not CHECKPOINTS.is_dir(), reason="no tests/truth")
needs_program = pytest.mark.skipif(not PROGRAM, reason="FLASHMHA_PROGRAM is not set")


def read_safetensors(path):
    """{name: array}, and the metadata."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    about = json.loads(header.pop("__metadata__")["truth"])
    dtypes = {"F32": np.float32, "I32": np.int32, "I64": np.int64}
    arrays = {}
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        arrays[name] = np.frombuffer(data[begin:end], dtypes[entry["dtype"]]).reshape(
            entry["shape"])
    return arrays, about


def distance(found, truth):
    """Largest difference, as a share of the largest value."""
    found, truth = np.asarray(found, np.float64), np.asarray(truth, np.float64)
    assert found.shape == truth.shape
    return np.abs(found - truth).max() / np.abs(truth).max()


def batch_of(answers, name):
    return [answers[f"{name}.{part}"] for part in ("input_ids", "attention_mask", "labels")]


@needs_checkpoints
@pytest.mark.parametrize("attention", ["flash", "plain"])
@pytest.mark.parametrize("name", NAMES)
def test_transformers_says_the_same(name, attention):
    """Logits, loss, gradients, and the losses of ten steps of training."""
    answers, about = read_safetensors(CHECKPOINTS / name / "answers.safetensors")
    for case in about["cases"]:
        model = flashmha.Model.load(CHECKPOINTS / name, dtype="float32", attention=attention)
        ids, mask, labels = batch_of(answers, case["name"])
        real = mask.astype(bool)
        logits = model(ids, mask)
        assert distance(logits[real], answers[f"{case['name']}.logits"][real]) < 1e-5
        last = model(ids, mask, last_logits_only=True)
        assert np.array_equal(last[:, 0], logits[:, -1])
        assert abs(model.loss(ids, labels, mask).mean - case["loss"]) < 1e-6 * case["loss"]
        if case["name"] == about["gradients_of"]:
            model.backward(ids, labels, mask)
            for key, parameter in model.parameters().items():
                assert distance(parameter.gradient, answers[f"gradient.{key}"]) < 1e-5, key
            model.zero_gradients()
        settings = about["training"]
        optimizer = flashmha.AdamW(
            model, learning_rate=settings["learning_rate"], beta1=settings["beta1"],
            beta2=settings["beta2"], eps=settings["eps"], weight_decay=settings["weight_decay"],
            max_gradient_norm=0.0)
        for step, expected in enumerate(case["training_losses"]):
            assert abs(model.backward(ids, labels, mask).mean - expected) < 2e-5 * expected, step
            assert optimizer.step() > 0
        assert optimizer.num_steps == settings["steps"]


@needs_checkpoints
@pytest.mark.parametrize("cache", ["dynamic", "static", "paged", "none"])
def test_greedy_tokens(cache):
    answers, about = read_safetensors(CHECKPOINTS / "llama3" / "answers.safetensors")
    model = flashmha.Model.load(CHECKPOINTS / "llama3", dtype="float32")
    for case in about["cases"]:
        ids, mask, _ = batch_of(answers, case["name"])
        expected = answers[f"{case['name']}.tokens"]
        prompts = [row[kept.astype(bool)].tolist() for row, kept in zip(ids, mask)]
        count = expected.shape[1] - ids.shape[1]
        seen = []
        results = model.generate_tokens(prompts, max_new_tokens=count, cache=cache,
                                        on_token=lambda row, token: seen.append((row, token)))
        for row, result in enumerate(results):
            assert result.tokens == expected[row, ids.shape[1]:].tolist()
            assert result.finish_reason == "length" and result.prompt == row
            assert [token for r, token in seen if r == row] == result.tokens


@needs_checkpoints
def test_dtypes_and_libraries():
    model = flashmha.Model.load(CHECKPOINTS / "qwen3")
    assert model.dtype == "bfloat16" and model.device == "cpu" and model.vocab_size == 40
    assert "qwen3, 2 layers" in repr(model)
    logits = model([[1, 2, 3]])
    assert logits.dtype == np.float32 and logits.shape == (1, 3, 40)
    torch = pytest.importorskip("torch")
    found = model(torch.tensor([[1, 2, 3]]))
    assert found.dtype == torch.bfloat16 and np.array_equal(found.float().numpy(), logits)
    weight = torch.from_dlpack(model.parameters()["model.norm.weight"].weight)
    weight.zero_()  # the model's own memory
    assert (model([[1, 2, 3]]) == 0).all()
    del model
    assert (weight == 0).all()


@needs_checkpoints
def test_errors(tmp_path):
    model = flashmha.Model.load(CHECKPOINTS / "qwen3")
    with pytest.raises(flashmha.FileError, match="config.json"):
        flashmha.Model.load(tmp_path)
    with pytest.raises(ValueError, match="indices must be in"):
        model([[40]])
    with pytest.raises(TypeError, match="input_ids must be an array"):
        model("text")
    with pytest.raises(ValueError, match="dtype must be"):
        flashmha.Model.load(CHECKPOINTS / "qwen3", dtype="int8")
    with pytest.raises(ValueError, match="top_p"):
        model.generate_tokens([[1]], top_p=2.0)
    with pytest.raises(ValueError, match="cache must be"):
        model.generate_tokens([[1]], cache="huge")
    with pytest.raises(flashmha.Error):
        flashmha.Model.load(CHECKPOINTS / "qwen3", device=f"cuda:{flashmha.num_gpus()}")


def test_tokenizer():
    tokenizer = flashmha.Tokenizer.bytes()
    assert tokenizer.vocab_size == 257 and tokenizer.eos_token_id == 256
    assert tokenizer.encode("né") == [110, 195, 169]
    assert tokenizer.encode(b"\xff") == [255]
    assert tokenizer.decode([110, 195, 169, 256]) == "né"
    assert tokenizer.decode([110, 195, 256], skip_special_tokens=False) == "n\ufffd<|endoftext|>"
    assert tokenizer.token_id("<|endoftext|>") == 256 and tokenizer.token_id("nothing") is None
    assert tokenizer.encode("<|endoftext|>", match_special_tokens=False) == list(b"<|endoftext|>")
    with pytest.raises(UnicodeEncodeError):
        tokenizer.encode("\ud800")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A small model that has learnt its alphabet, of bytes."""
    tokenizer = flashmha.Tokenizer.bytes()
    model = flashmha.Model.new(tokenizer, num_layers=2, hidden_size=32, num_heads=4, seed=3)
    data, _ = flashmha.PackedDataset.from_tokens(
        [tokenizer.encode("abcdefghijklmnopqrstuvwxyz" * 4)] * 8, seq_length=64)
    flashmha.Trainer(model, data, num_steps=60, batch_size=4, learning_rate=1e-2).run()
    path = tmp_path_factory.mktemp("model")
    model.save(path)
    return path


def program(*arguments):
    return subprocess.run([PROGRAM, *map(str, arguments)], check=True, capture_output=True,
                          text=True).stdout


@needs_program
@pytest.mark.parametrize("settings", [
    dict(), dict(temperature=0.8, top_p=0.9, seed=5), dict(top_k=4, seed=6, cache="paged"),
    dict(num_beams=3, length_penalty=0.5), dict(stop=["xyz", "q"], repetition_penalty=1.1),
])
def test_generates_what_the_program_does(directory, tmp_path, settings):
    report = tmp_path / "report.json"
    flags = []
    for name, value in settings.items():
        for each in value if isinstance(value, list) else [value]:
            flags += ["--" + name.replace("_", "-"), each]
    program("generate", "--model", directory, "--prompt", "abcd", "--prompt", "The sea",
            "--max-new-tokens", 40, "--json", report, *flags)
    expected = json.loads(report.read_text())["results"]
    results = flashmha.Model.load(directory).generate(["abcd", "The sea"], max_new_tokens=40,
                                                      **settings)
    assert [(r.text, r.tokens, r.finish_reason) for r in results] == [
        (e["text"], e["tokens"], e["finish_reason"]) for e in expected]
    if "num_beams" in settings:
        np.testing.assert_allclose([r.score for r in results], [e["score"] for e in expected])


def test_text_comes_in_parts_and_ends_before_stop_strings(directory):
    model = flashmha.Model.load(directory)
    parts = []
    result = model.generate("abc", max_new_tokens=30, stop="mn",
                            on_text=lambda row, text: parts.append(text))
    assert result.text == "defghijkl" == "".join(parts)
    assert result.finish_reason == "stop_string"
    result = model.generate("abc", on_text=lambda row, text: "f" not in text)
    assert result.text == "def" and result.finish_reason == "callback"
    sampled = model.generate("abc", temperature=1.0, num_return_sequences=3, max_new_tokens=12)
    assert len(sampled) == 3 and all(r.prompt == 0 for r in sampled)


def test_exceptions_of_callbacks_end_the_generation(directory):
    model = flashmha.Model.load(directory)

    def refuse(row, text):
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        model.generate("abc", on_text=refuse)
    with pytest.raises(KeyError):
        model.generate_tokens([[97]], on_step=lambda step: {}[step])
    assert model.generate("abc", max_new_tokens=3).text == "def"


def test_a_callback_may_use_the_model(directory):
    model = flashmha.Model.load(directory)
    inner = []

    def look(row, token):
        inner.append(model.generate_tokens([[97, 98]], max_new_tokens=2)[0].tokens)

    outer = model.generate_tokens([[97]], max_new_tokens=3, on_token=look)[0].tokens
    assert outer == [98, 99, 100] and inner == [[99, 100]] * 3


def test_several_threads_share_a_model(directory):
    model = flashmha.Model.load(directory)
    expected = model.generate("abc", max_new_tokens=20).tokens
    found = [None] * 4

    def work(i):
        found[i] = model.generate("abc", max_new_tokens=20, on_text=lambda row, text: True).tokens

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert found == [expected] * 4


@needs_checkpoints
def test_saved_models_are_read_by_transformers(tmp_path):
    model = flashmha.Model.from_config(CHECKPOINTS / "qwen3", seed=7, dtype="float32")
    model.save(tmp_path / "copy")
    again = flashmha.Model.load(tmp_path / "copy")
    ids = [[5, 6, 7, 8]]
    assert np.array_equal(again(ids), model(ids))
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "copy",
                                                               dtype=torch.float32).eval()
    with torch.no_grad():
        logits = theirs(torch.tensor(ids)).logits
    assert distance(model(ids), logits.numpy()) < 1e-5
