"""Operators of PyTorch: gradients, the compiler, modes, types."""

import flashmha
import numpy as np
import pytest
import reference

torch = pytest.importorskip("torch")
from flashmha import torch_ops  # noqa: E402


def random_qkv(rng, dtype=torch.float32, batch=2, seqlen_q=11, seqlen_k=17, heads=(4, 2), dim=16):
    shapes = ((batch, seqlen_q, heads[0], dim), (batch, seqlen_k, heads[1], dim),
              (batch, seqlen_k, heads[1], dim))
    return [torch.from_numpy(rng.standard_normal(shape)).to(dtype).requires_grad_()
            for shape in shapes]


def gradients_of(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


def test_bfloat16(rng):
    q, k, v = random_qkv(rng, torch.bfloat16)
    out, lse = flashmha.attention(q, k, v, causal=True, return_lse=True)
    assert out.dtype == torch.bfloat16 and lse.dtype == torch.float32
    exact = [x.detach().double().numpy() for x in (q, k, v)]
    truth = reference.attention(*exact, causal=True)[0]
    scores = (q.transpose(1, 2) @ k.repeat_interleave(2, 2).transpose(1, 2).mT) * 0.25
    seen = torch.from_numpy(reference.visible(11, 17, causal=True))
    p = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    plain = (p @ v.repeat_interleave(2, 2).transpose(1, 2)).transpose(1, 2)
    reference.assert_accurate(out.detach().float(), plain.detach().float(), truth)


def test_gradcheck(rng):
    q, k, v = random_qkv(rng, torch.float64, seqlen_q=3, seqlen_k=4, dim=5)
    bias = torch.from_numpy(rng.standard_normal((1, 4, 3, 4))).requires_grad_()
    sinks = torch.from_numpy(rng.standard_normal(4)).requires_grad_()

    def call(q, k, v, bias, sinks):
        return flashmha.attention(q, k, v, causal=True, bias=bias, sinks=sinks, return_lse=True,
                                  softcap=3.0)

    assert torch.autograd.gradcheck(call, (q, k, v, bias, sinks))


def test_gradient_equals_the_explicit_backward(rng):
    q, k, v = random_qkv(rng)
    out, lse = flashmha.attention(q, k, v, causal=True, return_lse=True)
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)
    found = torch.autograd.grad((out, lse), (q, k, v), (dout, dlse))
    arrays = [x.detach().numpy() for x in (dout, q, k, v, out, lse)]
    expected = flashmha.attention_backward(*arrays, dlse=dlse.numpy(), causal=True)
    for a, b in zip(found, expected):
        np.testing.assert_array_equal(a.numpy(), b)


def test_non_contiguous_gradients(rng):
    q, k, v = random_qkv(rng)
    out = flashmha.attention(q, k, v)
    dout = torch.randn(16, 4, 11, 2).permute(3, 2, 1, 0)
    found = torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
    expected = torch.autograd.grad(out, (q, k, v), dout.contiguous(), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    found = gradients_of(out.sum(), q, k, v)  # its gradient has stride 0
    out = flashmha.attention(q, k, v)
    expected = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_a_tensor_used_several_times(rng):
    x = torch.from_numpy(rng.standard_normal((2, 9, 4, 16))).requires_grad_()
    found = gradients_of((flashmha.attention(x, x, x) ** 2).sum(), x)[0]
    copies = [x.detach().clone().requires_grad_() for _ in range(3)]
    parts = gradients_of((flashmha.attention(*copies) ** 2).sum(), *copies)
    torch.testing.assert_close(found, sum(parts), rtol=1e-12, atol=1e-12)


def test_only_some_inputs_need_gradients(rng):
    q, k, v = random_qkv(rng)
    full = gradients_of(flashmha.attention(q, k, v).sum(), k)[0]
    found = gradients_of(flashmha.attention(q.detach(), k, v.detach()).sum(), k)[0]
    assert torch.equal(full, found)


def test_inference_mode_and_no_grad(rng):
    q, k, v = random_qkv(rng)
    expected = flashmha.attention(q, k, v)
    assert expected.requires_grad
    with torch.no_grad():
        out = flashmha.attention(q, k, v)
    assert not out.requires_grad and torch.equal(out, expected)
    with torch.inference_mode():
        out = flashmha.attention(q * 1, k, v)
        assert out.is_inference() and torch.equal(out, expected)


def test_autocast(rng):
    q, k, v = random_qkv(rng)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = flashmha.attention(q, k, v.bfloat16())
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32
    assert torch.equal(out, flashmha.attention(q.bfloat16(), k.bfloat16(), v.bfloat16()))


def test_no_second_derivative(rng):
    q, k, v = random_qkv(rng)
    out = flashmha.attention(q, k, v)
    first = torch.autograd.grad((out ** 2).sum(), q, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="no second derivative"):
        first.sum().backward()


def test_dropout_repeats_under_checkpointing(rng):
    from torch.utils.checkpoint import checkpoint

    from flashmha.flash_attn import flash_attn_func

    q, k, v = random_qkv(rng)

    def run(wrapped):
        torch.manual_seed(5)
        def layer(q):
            return flash_attn_func(q, k, v, dropout_p=0.4)

        out = checkpoint(layer, q, use_reentrant=False) if wrapped else layer(q)
        return out, gradients_of((out ** 2).sum(), q)[0]

    (out, dq), (out2, dq2) = run(False), run(True)
    assert torch.equal(out, out2) and torch.equal(dq, dq2)


def _options(**given):
    return torch_ops._positional(given)


def test_operators_obey_the_rules_of_pytorch(rng):
    q, k, v = random_qkv(rng)
    bias = torch.from_numpy(rng.standard_normal((1, 4, 1, 17))).float().requires_grad_()
    sinks = torch.randn(4, requires_grad=True)
    torch.library.opcheck(torch.ops.flashmha.attend.default,
                          (q, k, v, *_options(bias=bias, sinks=sinks, causal=True)))
    ends = torch.tensor([0, 4, 11], dtype=torch.int32)
    packed = [x[0].detach().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(torch.ops.flashmha.attend.default, (*packed, *_options(
        cu_seqlens_q=ends, cu_seqlens_k=ends, max_seqlen_q=7, max_seqlen_k=7)))
    x = torch.randn(2, 5, 3, 16, requires_grad=True)
    tables = torch.randn(9, 8), torch.randn(9, 8)
    positions = torch.arange(5, dtype=torch.int32).expand(2, -1)
    torch.library.opcheck(torch.ops.flashmha.rotary.default, (x, *tables, positions, False, False))
    cache = torch.randn(2, 12, 2, 16), torch.randn(2, 12, 2, 16)
    new = torch.randn(2, 1, 2, 16), torch.randn(2, 1, 2, 16)
    torch.library.opcheck(
        torch.ops.flashmha.attend_to_cache.default,
        (q[:, :1].detach(), *cache, *new, None, None, False,
         torch.tensor([3, 5], dtype=torch.int32), None, None, None, None, 0, None, True, -1, -1,
         0.0))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_in_one_graph(rng, dynamic):
    from flashmha.flash_attn import flash_attn_func, flash_attn_varlen_func

    def layer(q, k, v):
        first = flashmha.attention(q * 2, k, v, causal=True)
        second = flash_attn_func(first, k, v, window_size=(3, 0), softcap=5.0)
        ends = torch.arange(3, dtype=torch.int32) * q.shape[1]
        ends_k = torch.arange(3, dtype=torch.int32) * k.shape[1]
        return flash_attn_varlen_func(second.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), ends,
                                      ends_k, q.shape[1], k.shape[1], causal=True)

    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for seqlen_q in (11, 12):
        q, k, v = random_qkv(rng, seqlen_q=seqlen_q)
        out, expected = compiled(q, k, v), layer(q, k, v)
        assert torch.equal(out, expected)
        for a, b in zip(gradients_of((out ** 2).sum(), q, k, v),
                        gradients_of((expected ** 2).sum(), q, k, v)):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_compiled_cache_is_updated(rng):
    from flashmha.flash_attn import flash_attn_with_kvcache

    def step(q, k_cache, v_cache, k, v, filled):
        return flash_attn_with_kvcache(q, k_cache, v_cache, k, v, cache_seqlens=filled, causal=True)

    q, k_cache, v_cache = (x.detach() for x in random_qkv(rng, seqlen_q=1))
    k, v = (torch.randn(2, 1, 2, 16) for _ in range(2))
    filled = torch.tensor([3, 9], dtype=torch.int32)
    caches = [[k_cache.clone(), v_cache.clone()] for _ in range(2)]
    expected = step(q, *caches[0], k, v, filled)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(q, *caches[1], k, v, filled)
    assert torch.equal(found, expected) and not torch.equal(caches[0][0], k_cache)
    assert all(torch.equal(a, b) for a, b in zip(*caches))


def test_fake_and_meta_tensors(rng):
    q, k, v = (torch.empty(2, 5, 4, 8, device="meta") for _ in range(3))
    out, lse = flashmha.attention(q, k, v, return_lse=True)
    assert out.shape == q.shape and lse.shape == (2, 4, 5) and out.is_meta
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        x = torch.empty(2, 5, 4, 8)
        assert flashmha.attention(x, x, x).shape == (2, 5, 4, 8)


def test_errors_of_tensors(rng):
    q, k, v = random_qkv(rng)
    with pytest.raises(TypeError, match="k must be an array"):
        with torch.no_grad():
            flashmha.attention(q, [1], v)
    with pytest.raises(ValueError, match="must be a multiple of num_heads_kv"):
        flashmha.attention(q[:, :, :3], k, v)
    with pytest.raises(TypeError, match="element type that FlashMHA does not know"):
        flashmha.attention(q.detach().to(torch.complex64), k, v)
