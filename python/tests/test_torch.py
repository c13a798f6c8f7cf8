"""Operators of PyTorch: gradients, the compiler, modes, types."""

import flashmha
import pytest

torch = pytest.importorskip("torch")
from flashmha import torch_ops
from flashmha.attention import CacheOptions

import plain


def random_qkv(rng, device="cpu", dtype=None, batch=2, seqlen_q=11, seqlen_k=17, heads=(4, 2),
               dim=16):
    """q, k, v that need gradients; of the type that the device serves best."""
    if dtype is None:
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
    shapes = ((batch, seqlen_q, heads[0], dim), (batch, seqlen_k, heads[1], dim),
              (batch, seqlen_k, heads[1], dim))
    return [torch.from_numpy(rng.standard_normal(shape)).to(device, dtype).requires_grad_()
            for shape in shapes]


def gradients_of(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


OPTIONS = {
    "plain": dict(),
    "causal": dict(causal=True),
    "window": dict(window_size=(5, 2), softmax_scale=0.4),
    "softcap": dict(causal=True, softcap=2.0),
}


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("dim", [16, 64, 128])
def test_accuracy(rng, place, case, dim):
    """At most twice the error of plain operations in the same type; three times for gradients."""
    options = OPTIONS[case]
    tensors = random_qkv(rng, *place, seqlen_q=65, seqlen_k=130, dim=dim)
    plain.check(lambda q, k, v: flashmha.attention(q, k, v, **options), tensors, **options)


def test_accuracy_with_bias_mask_sinks_and_alibi(rng, place):
    device, dtype = place
    tensors = random_qkv(rng, *place, seqlen_q=33, seqlen_k=70)

    def random(*shape):
        return torch.from_numpy(rng.standard_normal(shape)).to(device)

    options = dict(bias=random(1, 4, 33, 70).to(dtype).requires_grad_(),
                   sinks=random(4).float().requires_grad_(), mask=random(2, 1, 1, 70) > -0.5,
                   alibi_slopes=random(4).abs().float())
    plain.check(lambda q, k, v: flashmha.attention(q, k, v, **options), tensors, **options)


@pytest.mark.parametrize("p", [0.17])
def test_accuracy_of_dropout(rng, place, p):
    """With the very elements dropped that the generator says."""
    from flashmha.flash_attn import dropout

    device, _ = place
    tensors = random_qkv(rng, *place, seqlen_q=65, seqlen_k=130, dim=32)
    kept = dropout.kept(p, 77, 5, 2, 4, 65, 130, device)
    plain.check(lambda q, k, v: flashmha.attention(q, k, v, dropout=(p, 77, 5)), tensors, kept=kept,
                dropout_p=p)


def test_types_of_results(rng, place):
    q, k, v = random_qkv(rng, *place)
    out, lse = flashmha.attention(q, k, v, causal=True, return_lse=True)
    assert out.dtype == q.dtype and lse.dtype == torch.float32 and out.device == q.device
    assert out.is_contiguous() and lse.shape == (2, 4, 11) and lse.is_contiguous()
    wider = torch.cat((v, v), -1)
    assert flashmha.attention(q, k, wider).shape == (2, 11, 4, 32)
    crooked = q.detach().transpose(1, 2).contiguous().transpose(1, 2)
    with torch.no_grad():
        assert torch.equal(flashmha.attention(crooked, k, v, causal=True), out)


def test_gradcheck(rng):
    q, k, v = random_qkv(rng, "cpu", torch.float64, seqlen_q=3, seqlen_k=4, dim=5)
    bias = torch.from_numpy(rng.standard_normal((1, 4, 3, 4))).requires_grad_()
    sinks = torch.from_numpy(rng.standard_normal(4)).requires_grad_()

    def call(q, k, v, bias, sinks):
        return flashmha.attention(q, k, v, causal=True, bias=bias, sinks=sinks, return_lse=True,
                                  softcap=3.0)

    assert torch.autograd.gradcheck(call, (q, k, v, bias, sinks))


def test_gradient_equals_the_explicit_backward(rng, device):
    q, k, v = random_qkv(rng, device)
    options = dict(causal=True, deterministic=True)
    out, lse = flashmha.attention(q, k, v, return_lse=True, **options)
    dout, dlse = torch.randn_like(out), torch.randn_like(lse)
    found = torch.autograd.grad((out, lse), (q, k, v), (dout, dlse))
    arrays = [x.detach() for x in (dout, q, k, v, out, lse)]
    if device == "cpu":  # of another library, too
        arrays, dlse = [x.numpy() for x in arrays], dlse.numpy()
    for a, b in zip(found, flashmha.attention_backward(*arrays, dlse=dlse, **options)):
        assert torch.equal(a, torch.as_tensor(b))


def test_non_contiguous_gradients(rng, device):
    q, k, v = random_qkv(rng, device)

    def call():
        return flashmha.attention(q, k, v, deterministic=True)

    out = call()
    dout = torch.randn(16, 4, 11, 2, device=device, dtype=q.dtype).permute(3, 2, 1, 0)
    found = torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
    expected = torch.autograd.grad(out, (q, k, v), dout.contiguous(), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected))
    found = gradients_of(out.sum(), q, k, v)  # its gradient has stride 0
    expected = torch.autograd.grad(call(), (q, k, v), torch.ones_like(out))
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_deterministic(rng, device):
    """The same bits, call after call."""
    q, k, v = random_qkv(rng, device, seqlen_q=300, seqlen_k=300, dim=64)
    out = flashmha.attention(q, k, v, causal=True, deterministic=True)
    dout = torch.randn_like(out)
    first = torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
    for _ in range(5):
        again = torch.autograd.grad(out, (q, k, v), dout, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(first, again))
        assert torch.equal(flashmha.attention(q, k, v, causal=True), out)


def test_a_tensor_used_several_times(rng, device):
    dtype = torch.float64 if device == "cpu" else torch.bfloat16
    x = torch.from_numpy(rng.standard_normal((2, 9, 4, 16))).to(device, dtype).requires_grad_()
    found = gradients_of((flashmha.attention(x, x, x) ** 2).sum(), x)[0]
    copies = [x.detach().clone().requires_grad_() for _ in range(3)]
    parts = gradients_of((flashmha.attention(*copies) ** 2).sum(), *copies)
    tolerance = 1e-12 if device == "cpu" else 0.05
    torch.testing.assert_close(found, sum(parts), rtol=tolerance, atol=tolerance)


def test_only_some_inputs_need_gradients(rng, device):
    q, k, v = random_qkv(rng, device)
    full = gradients_of(flashmha.attention(q, k, v).sum(), k)[0]
    found = gradients_of(flashmha.attention(q.detach(), k, v.detach()).sum(), k)[0]
    assert torch.equal(full, found)


def test_inference_mode_and_no_grad(rng, device):
    q, k, v = random_qkv(rng, device)
    expected = flashmha.attention(q, k, v)
    assert expected.requires_grad
    with torch.no_grad():
        out = flashmha.attention(q, k, v)
    assert not out.requires_grad and torch.equal(out, expected)
    with torch.inference_mode():
        out = flashmha.attention(q * 1, k, v)
        assert out.is_inference() and torch.equal(out, expected)


def test_out_is_the_same_with_and_without_lse(rng, device):
    with torch.no_grad():
        q, k, v = random_qkv(rng, device)
        cases = [(q, k, v), (q.transpose(0, 1), k.transpose(0, 1)[:11], v.transpose(0, 1)[:11]),
                 (q, k, v[..., :8]), (q[:0], k[:0], v[:0]), (q[:, :0], k, v)]
        for tensors in cases:
            out, lse = flashmha.attention(*tensors, causal=True, return_lse=True)
            q_shape = tensors[0].shape
            assert out.shape == (*q_shape[:-1], tensors[2].shape[-1]) and out.is_contiguous()
            assert lse.shape == (q_shape[0], q_shape[2], q_shape[1])
            assert torch.equal(out, flashmha.attention(*tensors, causal=True))
            out, lse = flashmha.attention_with_kvcache(*tensors, causal=True, return_lse=True)
            assert out.shape == (*q_shape[:-1], tensors[2].shape[-1]) and out.is_contiguous()
            assert lse.shape == (q_shape[0], q_shape[2], q_shape[1])
            assert torch.equal(out, flashmha.attention_with_kvcache(*tensors, causal=True))


def test_the_extension_writes_lse_only_where_it_is_given(rng, device):
    q, k, v = (x.detach() for x in random_qkv(rng, device))
    out, lse = flashmha.attention(q, k, v, return_lse=True)
    again = torch.full_like(out, float("nan"))
    flashmha._native.attend(q, k, v, again, None)
    assert torch.equal(again, out)
    again.fill_(float("nan"))
    flashmha._native.attend_to_cache(q, k, v, again, None)
    torch.testing.assert_close(again, out, rtol=0.02, atol=0.02)
    with pytest.raises(flashmha.InvalidArgument, match="lse must be given"):
        flashmha._native.attend(q, k, v, out, None, dout=out, dq=q, dk=k, dv=v)


def test_wrong_ranks_are_refused_with_and_without_gradient(rng, device):
    from flashmha.flash_attn import flash_attn_func

    q, k, v = random_qkv(rng, device)
    for needs_gradient in (True, False):
        q, k, v = (x.detach().requires_grad_(needs_gradient) for x in (q, k, v))
        for bad in ((q[0], k, v), (q[0, 0], k, v), (q[0, 0, 0, 0], k, v), (q, k[0], v),
                    (q, k, v[0]), (q, k, v[None]), (q, k, v[0, 0, 0, 0])):
            for return_lse in (False, True):
                with pytest.raises(flashmha.InvalidArgument):
                    flashmha.attention(*bad, return_lse=return_lse)
            # Of a tensor without dimensions it asks for the last stride first, as flash_attn does.
            with pytest.raises((flashmha.InvalidArgument, IndexError)):
                flash_attn_func(*bad)


def test_autocast(rng, device):
    q, k, v = random_qkv(rng, device, torch.float32)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = flashmha.attention(q, k, v.bfloat16())
        with torch.no_grad():
            assert torch.equal(flashmha.attention(q, k, v), out)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert q.grad.dtype == torch.float32
    assert torch.equal(out, flashmha.attention(q.bfloat16(), k.bfloat16(), v.bfloat16()))


def test_no_second_derivative(rng, device):
    q, k, v = random_qkv(rng, device)
    out = flashmha.attention(q, k, v)
    first = torch.autograd.grad((out ** 2).sum(), q, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="no second derivative"):
        first.sum().backward()


def test_dropout_repeats_under_checkpointing(rng, device):
    from flashmha.flash_attn import flash_attn_func
    from torch.utils.checkpoint import checkpoint

    q, k, v = random_qkv(rng, device)

    def run(wrapped):
        torch.manual_seed(5)

        def layer(q):
            return flash_attn_func(q, k, v, dropout_p=0.4, deterministic=True)

        out = checkpoint(layer, q, use_reentrant=False) if wrapped else layer(q)
        return out, gradients_of((out ** 2).sum(), q)[0]

    (out, dq), (out2, dq2) = run(False), run(True)
    assert torch.equal(out, out2) and torch.equal(dq, dq2)


def _options(**given):
    return torch_ops._positional(given)


def test_operators_obey_the_rules_of_pytorch(rng, device):
    q, k, v = random_qkv(rng, device)
    torch.set_default_device(device)
    try:
        check_operators(rng, q, k, v)
    finally:
        torch.set_default_device(None)


def check_operators(rng, q, k, v):
    bias = torch.randn(1, 4, 1, 17, requires_grad=True)
    sinks = torch.randn(4, requires_grad=True)
    torch.library.opcheck(torch.ops.flashmha.attend.default,
                          (q, k, v, *_options(bias=bias, sinks=sinks, causal=True,
                                              deterministic=True)))
    ends = torch.tensor([0, 4, 11], dtype=torch.int32)
    packed = [x[0].detach().requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(torch.ops.flashmha.attend.default, (*packed, *_options(
        cu_seqlens_q=ends, cu_seqlens_k=ends, max_seqlen_q=7, max_seqlen_k=7)))
    x = torch.randn(2, 5, 3, 16).to(q.dtype).requires_grad_()
    tables = torch.randn(9, 8), torch.randn(9, 8)
    positions = torch.arange(5, dtype=torch.int32).expand(2, -1)
    torch.library.opcheck(torch.ops.flashmha.rotary.default, (x, *tables, positions, False, False))
    cache = torch.randn(2, 12, 2, 16).to(q.dtype), torch.randn(2, 12, 2, 16).to(q.dtype)
    new = torch.randn(2, 1, 2, 16).to(q.dtype), torch.randn(2, 1, 2, 16).to(q.dtype)
    torch.library.opcheck(
        torch.ops.flashmha.attend_to_cache.default,
        (q[:, :1].detach(), *cache, *CacheOptions(
            *new, cache_seqlens=torch.tensor([3, 5], dtype=torch.int32), causal=True)))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_in_one_graph(rng, device, dynamic):
    from flashmha.flash_attn import flash_attn_func, flash_attn_varlen_func

    def layer(q, k, v):
        first = flashmha.attention(q * 2, k, v, causal=True, deterministic=True)
        second = flash_attn_func(first, k, v, window_size=(3, 0), softcap=5.0, deterministic=True)
        ends = torch.arange(3, dtype=torch.int32, device=q.device) * q.shape[1]
        ends_k = torch.arange(3, dtype=torch.int32, device=q.device) * k.shape[1]
        return flash_attn_varlen_func(second.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), ends,
                                      ends_k, q.shape[1], k.shape[1], causal=True,
                                      deterministic=True)

    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for seqlen_q in (11, 12):
        q, k, v = random_qkv(rng, device, seqlen_q=seqlen_q)
        out, expected = compiled(q, k, v), layer(q, k, v)
        assert torch.equal(out, expected)
        for a, b in zip(gradients_of((out ** 2).sum(), q, k, v),
                        gradients_of((expected ** 2).sum(), q, k, v)):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_dropout_is_compiled(rng, device):
    """Each call of the compiled function draws anew, and the generator repeats it."""
    from flashmha.flash_attn import flash_attn_func

    torch._dynamo.reset()
    q, k, v = (x.detach() for x in random_qkv(rng, device))
    compiled = torch.compile(lambda q, k, v: flash_attn_func(q, k, v, dropout_p=0.3) * 2,
                             fullgraph=True,
                             backend="inductor" if device == "cuda" else "aot_eager")
    torch.manual_seed(3)
    first, second = compiled(q, k, v), compiled(q, k, v)
    torch.manual_seed(3)
    assert torch.equal(compiled(q, k, v), first) and not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(flash_attn_func(q, k, v, dropout_p=0.3) * 2, first)
    torch._dynamo.reset()


@pytest.mark.parametrize("options", [
    dict(causal=True), dict(bias=True, align="top_left", window_size=(2, 7)),
    dict(mask=True, positions=True)], ids=["flash_attn", "bias", "mask"])
def test_compiled_cache_is_updated(rng, device, options):
    from flashmha.flash_attn import flash_attn_with_kvcache

    options = dict(options)
    if "bias" in options:
        options["bias"] = torch.randn(1, 4, 1, 17, device=device)
    if "mask" in options:
        options["mask"] = torch.rand(2, 1, 1, 17, device=device) > 0.3
    if "positions" in options:
        options["positions"] = torch.tensor([[5], [1]], dtype=torch.int32, device=device)
        options["rotary_cos"], options["rotary_sin"] = torch.randn(2, 9, 4, device=device)
    call = (flash_attn_with_kvcache if options == dict(causal=True)
            else flashmha.attention_with_kvcache)

    def step(q, k_cache, v_cache, k, v, filled):
        return call(q, k_cache, v_cache, k, v, cache_seqlens=filled, **options)

    q, k_cache, v_cache = (x.detach() for x in random_qkv(rng, device, seqlen_q=1))
    k, v = (torch.randn(2, 1, 2, 16, device=device, dtype=q.dtype) for _ in range(2))
    filled = torch.tensor([3, 9], dtype=torch.int32, device=device)
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


def test_errors_of_tensors(rng, device):
    q, k, v = random_qkv(rng, device)
    with pytest.raises(TypeError, match="k must be an array"):
        with torch.no_grad():
            flashmha.attention(q, [1], v)
    with pytest.raises(ValueError, match="must be a multiple of num_heads_kv"):
        flashmha.attention(q[:, :, :3], k, v)
    with pytest.raises(TypeError, match="element type that FlashMHA does not know"):
        flashmha.attention(q.detach().to(torch.complex64), k, v)
    if device == "cuda":
        with pytest.raises(ValueError, match="on a GPU q must be bfloat16 or float16"):
            flashmha.attention(q.float(), k.float(), v.float())
        with pytest.raises(ValueError, match="k must be on cuda:0 like q; got .* on cpu"):
            flashmha.attention(q, k.cpu(), v)


def test_tensors_without_the_exchange_table(rng, device):
    """PyTorch before 2.10: the extension takes them through DLPack's protocol, on the current
    stream, also if they want a gradient."""
    from flashmha import _native

    class Old(torch.Tensor):
        __dlpack_c_exchange_api__ = None

    tensors = [x.detach().as_subclass(Old).requires_grad_() for x in random_qkv(rng, device)]
    out, lse = (x.as_subclass(Old) for x in torch_ops.new_results(tensors[0], tensors[2]))
    _native.attend(*tensors, out, lse, causal=True)
    expected = flashmha.attention(*(x.detach().as_subclass(torch.Tensor) for x in tensors),
                                  causal=True)
    assert torch.equal(out.as_subclass(torch.Tensor), expected)
