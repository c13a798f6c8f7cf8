"""What only a GPU shows: streams, devices, graphs, the compiler's code, pools, other libraries."""

import subprocess
import sys
import time

import flashmha
import numpy as np
import pytest

torch = pytest.importorskip("torch")
from flashmha import torch_operators
from flashmha.flash_attn import (
    flash_attn_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
)

import plain

pytestmark = pytest.mark.gpu


def random_qkv(rng, device="cuda", batch=2, seqlen=128, heads=(4, 2), dim=64):
    return [torch.from_numpy(rng.standard_normal((batch, seqlen, n, dim))).to(
        device, torch.bfloat16) for n in (heads[0], heads[1], heads[1])]


def int32(values, device="cuda"):
    return torch.tensor(values, dtype=torch.int32, device=device)


# ---- streams and devices -------------------------------------------------------------------------


def test_side_streams(rng):
    """A call waits for what its stream computes, and nothing else."""
    values = random_qkv(rng)
    expected = flashmha.attention(*values)
    late = [torch.zeros_like(x) for x in values]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # the values come late
        for x, value in zip(late, values):
            x.copy_(value)
        out = flashmha.attention(*late)
        leaves = [x.detach().requires_grad_() for x in late]
        found = flash_attn_func(*leaves, causal=True, deterministic=True)
        found.backward(torch.ones_like(found))
    stream.synchronize()
    assert torch.equal(out, expected)
    leaves_of_values = [x.detach().requires_grad_() for x in values]
    other = flash_attn_func(*leaves_of_values, causal=True, deterministic=True)
    other.backward(torch.ones_like(other))
    for a, b in zip(leaves, leaves_of_values):
        assert torch.equal(a.grad, b.grad)


def test_calls_do_not_wait_for_the_gpu(rng):
    q, k, v = (x.requires_grad_() for x in random_qkv(rng))
    ends, filled = int32([0, 100, 256]), int32([17, 100])
    caches = [x.detach().clone() for x in (k, v)]
    new = [x.detach()[:, :1].contiguous() for x in (q, k, v)]
    packed = [x.flatten(0, 1) for x in (q, k, v)]

    def calls():
        for options in (dict(causal=True), dict(dropout_p=0.1), dict(deterministic=True)):
            out = flash_attn_func(q, k, v, **options)
            out.backward(out)
        flash_attn_varlen_func(*packed, ends, ends, 156, 156, causal=True).sum().backward()
        flash_attn_with_kvcache(new[0], *caches, *new[1:], cache_seqlens=filled, causal=True)

    calls()  # allocates, loads kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        start = time.perf_counter()
        torch.cuda._sleep(2_000_000_000)
        calls()
        queued = time.perf_counter() - start
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert queued < 0.5 * (time.perf_counter() - start)


def test_tensors_that_are_not_on_the_current_device(rng):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU alone")
    expected = [x.requires_grad_() for x in random_qkv(rng, "cuda:0")]
    tensors = [x.detach().to("cuda:1").requires_grad_() for x in expected]
    with torch.cuda.device(0):
        results = []
        for leaves in (expected, tensors):
            out = flash_attn_func(*leaves, causal=True, deterministic=True)
            out.backward(torch.ones_like(out))
            results.append((out, *(x.grad for x in leaves)))
        assert torch.cuda.current_device() == 0
    for a, b in zip(*results):
        assert b.device.index == 1 and torch.equal(a.to(b.device), b)


# ---- graphs and the compiler ---------------------------------------------------------------------


def capture(function):
    """A CUDA graph of function(), and what it returned."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return graph, result


def test_forward_and_backward_in_a_graph(rng):
    leaves = [x.requires_grad_() for x in random_qkv(rng)]
    dout = torch.randn_like(leaves[0])
    ends = int32([0, 100, 256])

    def step():
        out = flash_attn_func(*leaves, causal=True, deterministic=True)
        packed = [x.flatten(0, 1) for x in leaves]
        ragged = flash_attn_varlen_func(*packed, ends, ends, 156, 156, deterministic=True)
        gradients = torch.autograd.grad((out, ragged.view_as(out)), leaves, (dout, dout))
        return out, ragged, *gradients

    graph, results = capture(step)
    for seed in (1, 2):
        other = random_qkv(np.random.default_rng(seed))
        with torch.no_grad():
            for x, value in zip(leaves, other):
                x.copy_(value)
        graph.replay()
        for found, expected in zip(results, step()):
            assert torch.equal(found, expected)


def test_decoding_in_a_graph(rng):
    """Lengths on the device: a replay appends where they say."""
    q, k, v = random_qkv(rng)
    caches = [x.clone() for x in (k, v)]
    new = [x[:, :1].contiguous() for x in (q, k, v)]
    filled = int32([5, 90])

    def step():
        return flash_attn_with_kvcache(new[0], *caches, *new[1:], cache_seqlens=filled, causal=True)

    graph, out = capture(step)
    for lengths in ([7, 64], [0, 127]):
        filled.copy_(int32(lengths))
        for cache, value in zip(caches, (k, v)):
            cache.copy_(value)
        graph.replay()
        found, written = out.clone(), [cache.clone() for cache in caches]
        for cache, value in zip(caches, (k, v)):
            cache.copy_(value)
        assert torch.equal(found, step())
        assert all(torch.equal(a, b) for a, b in zip(written, caches))


def test_dropout_in_a_graph_is_refused(rng):
    q, k, v = random_qkv(rng)
    flash_attn_func(q, k, v, dropout_p=0.1)
    with pytest.raises(Exception, match="dropout cannot be captured"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            flash_attn_func(q, k, v, dropout_p=0.1)
    torch.cuda.synchronize()
    assert torch.equal(flashmha.attention(q, k, v), flashmha.attention(q, k, v))


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.project = torch.nn.Linear(256, 256 + 2 * 128)
        self.out = torch.nn.Linear(256, 256)

    def forward(self, x):
        q, k, v = self.project(x).split((256, 128, 128), -1)
        q, k, v = (y.unflatten(-1, (-1, 64)) for y in (q, k, v))
        return self.out(flash_attn_func(q, k, v, causal=True).flatten(-2)).relu()


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_by_inductor(rng, mode):
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    layer = Layer().to("cuda", torch.bfloat16)
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    for _ in range(4):
        x = torch.randn(2, 128, 256, device="cuda", dtype=torch.bfloat16)
        results = []
        for function in (layer, compiled):
            layer.zero_grad()
            if mode == "reduce-overhead":
                torch.compiler.cudagraph_mark_step_begin()
            out = function(x)
            out.square().mean().backward()
            results.append((out.detach().clone(), layer.project.weight.grad.clone()))
        for found, expected in zip(results[1], results[0]):
            torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)
    assert counters["inductor"]["cudagraph_skips"] == 0
    torch._dynamo.reset()


# ---- memory --------------------------------------------------------------------------------------


def test_workspace_is_of_pytorchs_pool(rng, monkeypatch):
    asked = []
    original = torch_operators.workspace

    def counting(num_bytes, index):
        asked.append(num_bytes)
        return original(num_bytes, index)

    monkeypatch.setattr(torch_operators, "workspace", counting)
    leaves = [x.requires_grad_() for x in random_qkv(rng)]
    out = flash_attn_func(*leaves)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gradients = torch.autograd.grad(out, leaves, out)
    assert asked and min(asked) > 0
    results = sum(x.numel() * x.element_size() for x in gradients)
    assert torch.cuda.max_memory_allocated() - before >= results + max(asked)


# ---- other libraries -----------------------------------------------------------------------------


def test_cupy(rng):
    cupy = pytest.importorskip("cupy")
    arrays = [rng.standard_normal((2, 37, heads, 64)).astype(np.float16) for heads in (4, 2, 2)]
    expected, expected_lse = flashmha.attention(*(x.astype(np.float32) for x in arrays),
                                                causal=True, return_lse=True)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        q, k, v = (cupy.asarray(x) for x in arrays)
        late = [cupy.zeros_like(x) for x in (q, k, v)]
        slow = cupy.ones(1 << 28, "f4")  # the values come late
        for _ in range(20):
            slow *= 1.0001
        for x, value in zip(late, (q, k, v)):
            x[...] = value
        out, lse = flashmha.attention(*late, causal=True, return_lse=True)
        gradients = flashmha.attention_backward(cupy.ones_like(out), *late, out, lse, causal=True)
    stream.synchronize()
    assert isinstance(out, cupy.ndarray) and out.dtype == np.float16 and lse.dtype == np.float32
    np.testing.assert_allclose(cupy.asnumpy(out), expected, atol=0.01)
    np.testing.assert_allclose(cupy.asnumpy(lse), expected_lse, atol=0.005)
    true_gradients = flashmha.attention_backward(
        np.ones_like(expected), *(x.astype(np.float32) for x in arrays), expected, expected_lse,
        causal=True)
    for a, b in zip(gradients[:3], true_gradients[:3]):
        assert isinstance(a, cupy.ndarray)
        np.testing.assert_allclose(cupy.asnumpy(a), b, atol=0.05)


# ---- models of the C++ library -------------------------------------------------------------------


def test_cublaslt_is_found_without_pytorch(tmp_path):
    """A model runs in a process that has not imported torch, whose packages may hold the only
    cuBLASLt of the system."""
    subprocess.run([sys.executable, "-c", """
import flashmha, numpy, sys
tokenizer = flashmha.Tokenizer.bytes()
options = dict(num_layers=2, hidden_size=128, num_heads=2, dtype="bfloat16", seed=3)
ids = numpy.arange(60).reshape(2, 30)
logits = [flashmha.Model.new(tokenizer, device=device, **options)(ids)
          for device in ("cuda:0", "cpu")]
numpy.testing.assert_allclose(*logits, atol=0.02, rtol=0.05)
assert "torch" not in sys.modules
"""], check=True)


def test_model(tmp_path):
    tokenizer = flashmha.Tokenizer.bytes()
    model = flashmha.Model.new(tokenizer, num_layers=2, hidden_size=128, num_heads=2, seed=3,
                               dtype="bfloat16", device="cuda:0")
    assert model.device == "cuda:0"
    data, _ = flashmha.PackedDataset.from_tokens(
        [tokenizer.encode("abcdefghijklmnopqrstuvwxyz" * 4)] * 8, seq_length=64)
    trainer = flashmha.Trainer(model, data, num_steps=80, batch_size=4, learning_rate=1e-2,
                               output=tmp_path)
    losses = []
    trainer.run(on_step=lambda record: losses.append(record.loss))
    assert losses[-1] < 0.3 * losses[1]
    assert model.generate("abc", max_new_tokens=5).text == "defgh"
    loaded = {name: flashmha.Model.load(tmp_path, device=name) for name in ("cuda", "cpu")}
    assert loaded["cuda"].generate(["abc", "uv"], max_new_tokens=4, num_beams=2)[1].text == "wxyz"
    ids = torch.arange(97, 117, device="cuda")[None]
    logits = loaded["cuda"](ids)
    assert logits.is_cuda and logits.dtype == torch.bfloat16
    expected = loaded["cpu"](ids.cpu())
    torch.testing.assert_close(logits.cpu(), expected, rtol=0.05, atol=0.3)
    assert np.array_equal(loaded["cuda"](ids.cpu().numpy()), logits.float().cpu().numpy())
    weight = torch.from_dlpack(loaded["cuda"].parameters()["model.norm.weight"].weight)
    assert weight.is_cuda


def test_model_reads_what_another_stream_computes(rng):
    model = flashmha.Model.new(flashmha.Tokenizer.bytes(), num_layers=1, hidden_size=64,
                               num_heads=1, seed=3, dtype="bfloat16", device="cuda:0")
    values = torch.from_numpy(rng.integers(0, 256, (2, 40))).cuda()
    expected = model(values)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(values)
        torch.cuda._sleep(200_000_000)
        late.copy_(values)
        logits = model(late)
        total = logits.float().sum()
    stream.synchronize()
    assert torch.equal(logits, expected)
    torch.testing.assert_close(total, expected.float().sum())


def test_accuracy_of_long_rows(rng):
    tensors = [x.requires_grad_() for x in random_qkv(rng, batch=1, seqlen=1500, heads=(2, 1))]
    plain.check(lambda q, k, v: flash_attn_func(q, k, v, causal=True), tensors, causal=True)
