"""The names and semantics of flash_attn 2.8.3."""

import inspect
import math
import subprocess
import sys

import numpy as np
import pytest

import reference

torch = pytest.importorskip("torch")
from flashmha import flash_attn
from flashmha.flash_attn import bert_padding, flash_attn_interface
from flashmha.flash_attn.layers import rotary

import plain

# Arguments and defaults, read off the documentation of flash_attn 2.8.3.
TAIL = ("dropout_p=0.0 softmax_scale=None causal=False window_size=(-1,-1) softcap=0.0 "
        "alibi_slopes=None deterministic=False return_attn_probs=False")
RAGGED = "cu_seqlens_q cu_seqlens_k max_seqlen_q max_seqlen_k"
GIVEN = ("dropout_p softmax_scale causal window_size_left{u} window_size_right{u} softcap{z} "
         "alibi_slopes{n}")
FORWARD = GIVEN.format(u="", z="", n="")
SIGNATURES = {
    "flash_attn_func": f"q k v {TAIL}",
    "flash_attn_kvpacked_func": f"q kv {TAIL}",
    "flash_attn_qkvpacked_func": f"qkv {TAIL}",
    "flash_attn_varlen_func": f"q k v {RAGGED} {TAIL} block_table=None",
    "flash_attn_varlen_kvpacked_func": f"q kv {RAGGED} {TAIL}",
    "flash_attn_varlen_qkvpacked_func": f"qkv cu_seqlens max_seqlen {TAIL}",
    "flash_attn_with_kvcache":
        "q k_cache v_cache k=None v=None rotary_cos=None rotary_sin=None cache_seqlens=None "
        "cache_batch_idx=None cache_leftpad=None block_table=None softmax_scale=None causal=False "
        "window_size=(-1,-1) softcap=0.0 rotary_interleaved=True alibi_slopes=None num_splits=0 "
        "return_softmax_lse=False",
    "_flash_attn_forward": f"q k v {FORWARD} return_softmax",
    "_flash_attn_varlen_forward":
        f"q k v {RAGGED} {GIVEN.format(u='=-1', z='=0.0', n='=None')} return_softmax=False "
        "block_table=None leftpad_k=None seqused_k=None zero_tensors=False",
    "_flash_attn_backward":
        f"dout q k v out softmax_lse dq dk dv {FORWARD} deterministic rng_state=None",
    "_flash_attn_varlen_backward":
        f"dout q k v out softmax_lse dq dk dv {RAGGED} {FORWARD} deterministic rng_state=None "
        "zero_tensors=False",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name):
    parameters = inspect.signature(getattr(flash_attn_interface, name)).parameters.values()
    found = [p.name if p.default is p.empty else f"{p.name}={p.default}".replace(" ", "")
             for p in parameters]
    assert found == SIGNATURES[name].split()


def random_tensors(rng, *shapes, device="cpu", dtype=None):
    """Of the type that the device serves best, unless another is asked for."""
    if dtype is None:
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return [torch.from_numpy(rng.standard_normal(shape)).to(device, dtype) for shape in shapes]


def int32(values, device):
    return torch.tensor(values, dtype=torch.int32, device=device)


def assert_close(found, expected, device):
    """What two ways of computing it give."""
    rtol, atol = (1e-5, 1e-5) if device == "cpu" else (0.02, 0.05)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def check(q, k, v, **options):
    """flash_attn_func against formulas in double precision."""
    out, lse, _ = flash_attn.flash_attn_func(q, k, v, return_attn_probs=True, **options)
    exact = [x.double() for x in (q, k, v)]
    truth = plain.attention(*exact, **options)
    plain.assert_accurate(out, plain.attention(q, k, v, **options), truth)
    slopes = options.pop("alibi_slopes", None)
    if slopes is not None:
        options["alibi_slopes"] = slopes.double().cpu().numpy()
    true_lse = reference.attention(*(x.cpu().numpy() for x in exact), **options)[1]
    true_lse[np.isneginf(true_lse)] = np.inf
    assert reference.largest_error(lse.cpu(), true_lse) < (1e-5 if q.device.type == "cpu" else 5e-3)


@pytest.mark.parametrize("head_dim", [32, 40, 59, 111, 256])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("lengths", [(113, 203), (64, 17), (1, 33)])
def test_dense(rng, device, head_dim, causal, local, lengths):
    q, k, v = random_tensors(rng, (2, lengths[0], 6, head_dim), *[(2, lengths[1], 2, head_dim)] * 2,
                             device=device)
    window = tuple(int(n) for n in rng.integers(0, lengths[1], 2)) if local else (-1, -1)
    slopes = torch.rand(2, 6, device=device) * 0.3 if head_dim == 40 else None
    check(q, k, v, causal=causal, window_size=window, softcap=4.0 if head_dim == 59 else 0.0,
          alibi_slopes=slopes)


def test_packed(rng, device):
    qkv = random_tensors(rng, (2, 33, 3, 4, 32), device=device)[0].requires_grad_()
    parts = [x.detach().clone().requires_grad_() for x in qkv.unbind(2)]
    kv = torch.stack(parts[1:], 2).detach().requires_grad_()
    options = dict(causal=True, deterministic=True)
    out = flash_attn.flash_attn_qkvpacked_func(qkv, **options)
    kv_out = flash_attn.flash_attn_kvpacked_func(parts[0], kv, **options)
    expected = flash_attn.flash_attn_func(*parts, **options)
    assert torch.equal(out, expected) and torch.equal(kv_out, expected)
    dout = torch.randn_like(out)
    gradients = torch.stack(torch.autograd.grad(expected, parts, dout), 2)
    assert torch.equal(torch.autograd.grad(out, qkv, dout)[0], gradients)
    assert torch.equal(torch.autograd.grad(kv_out, kv, dout)[0], gradients[:, :, 1:])


def test_varlen(rng, device):
    ends = int32([0, 5, 5, 17], device)
    q, k, v = random_tensors(rng, (17, 4, 32), (17, 2, 32), (17, 2, 32), device=device)
    arguments = (ends, ends, 12, 12)
    out, lse, _ = flash_attn.flash_attn_varlen_func(q, k, v, *arguments, causal=True,
                                                    return_attn_probs=True)
    assert lse.shape == (4, 17)
    for begin, end in ((0, 5), (5, 17)):
        alone = flash_attn.flash_attn_func(*(x[None, begin:end] for x in (q, k, v)), causal=True)
        assert torch.equal(out[begin:end], alone[0])
    kv = torch.stack((k, v), 1)
    assert torch.equal(out, flash_attn.flash_attn_varlen_kvpacked_func(q, kv, *arguments,
                                                                       causal=True))
    qkv = torch.stack((k, k, v), 1)
    assert torch.equal(
        flash_attn.flash_attn_varlen_qkvpacked_func(qkv, ends, 12, causal=True),
        flash_attn.flash_attn_varlen_func(k, k, v, *arguments, causal=True))


def test_empty_rows_have_infinite_lse(rng, device):
    q, k, v = random_tensors(rng, (1, 5, 2, 16), (1, 2, 2, 16), (1, 2, 2, 16), device=device)
    q.requires_grad_()
    out, lse, probabilities = flash_attn.flash_attn_func(q, k, v, causal=True,
                                                         return_attn_probs=True)
    assert (out[:, :3] == 0).all() and (lse[:, :, :3] == math.inf).all()
    assert torch.isfinite(lse[:, :, 3:]).all() and probabilities.numel() == 0
    dq = torch.autograd.grad(out.sum(), q)[0]
    assert (dq[:, :3] == 0).all() and torch.isfinite(dq).all()
    none = k[:, :0]
    out, lse, _ = flash_attn.flash_attn_func(q, none, none, return_attn_probs=True)
    assert (out == 0).all() and (lse == math.inf).all()


@pytest.mark.parametrize("ragged", [False, True])
def test_probabilities_show_what_was_dropped(rng, device, ragged):
    torch.manual_seed(int(rng.integers(2**31)))
    p, n = 0.17, 45
    q, k, v = random_tensors(rng, *[(2, n, 4, 32)] * 3, device=device)
    options = dict(dropout_p=p, causal=True, return_attn_probs=True)
    if ragged:
        ends = int32([0, n, 2 * n], device)
        out, lse, s = flash_attn.flash_attn_varlen_func(
            *(x.flatten(0, 1) for x in (q, k, v)), ends, ends, n, n, **options)
        out = out.unflatten(0, (2, n))
    else:
        out, lse, s = flash_attn.flash_attn_func(q, k, v, **options)
    assert s.shape == (2, 4, 128, 128)
    s = s[:, :, :n, :n].float()
    normal = s.abs() / s.abs().sum(-1, keepdim=True)
    expected = torch.einsum("bhij,bjhd->bihd", normal.masked_fill(s < 0, 0) / (1 - p), v.float())
    assert_close(out, expected.to(out.dtype), device)
    dropped = (s < 0).sum() / (s != 0).sum()
    assert abs(dropped - p) < 0.03


def test_private_functions_serve_blocks_of_a_ring(rng, device):
    """Keys in two blocks: forward of each, merged; backward of each with the merged out and lse."""
    q, k, v, dout = random_tensors(rng, *[(2, 64, 4, 32)] * 4, device=device,
                                   dtype=torch.bfloat16)
    scale = 32 ** -0.5
    rest = dict(window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None)
    q2 = q[:, 32:]  # the later half of the queries sees block 0 whole and block 1 causally
    blocks = [(k[:, :32], v[:, :32], False), (k[:, 32:], v[:, 32:], True)]
    parts = [flash_attn_interface._flash_attn_forward(q2, *block[:2], 0.0, scale, causal=block[2],
                                                      return_softmax=False, **rest)
             for block in blocks]
    assert all(part[3].shape == (2,) and part[2].numel() == 0 for part in parts)
    lse = torch.logsumexp(torch.stack([part[1] for part in parts]), 0)
    out = sum(torch.exp(part[1] - lse).transpose(1, 2)[..., None] * part[0].float()
              for part in parts).to(q.dtype)
    leaves = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = plain.attention(*leaves, causal=True)[:, 32:]
    torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.02)
    true_gradients = torch.autograd.grad(expected, leaves, dout[:, 32:].double())
    dq = torch.zeros(q2.shape, device=device)
    for i, (k_block, v_block, causal) in enumerate(blocks):
        gradients = [torch.empty_like(x) for x in (q2, k_block, v_block)]
        softmax_d = flash_attn_interface._flash_attn_backward(
            dout[:, 32:], q2, k_block, v_block, out, lse, *gradients, 0.0, scale, causal,
            deterministic=False, **rest)
        assert softmax_d.shape == (2, 4, 128)
        dq += gradients[0].float()
        rows = slice(32 * i, 32 * i + 32)
        for found, true in zip(gradients[1:], true_gradients[1:]):
            torch.testing.assert_close(found.double(), true[:, rows], rtol=0.03, atol=0.03)
    torch.testing.assert_close(dq.double(), true_gradients[0][:, 32:], rtol=0.03, atol=0.03)


def test_private_varlen_functions(rng, device):
    ends = int32([0, 7, 20], device)
    leaves = random_tensors(rng, *[(20, 4, 32)] * 3, device=device)
    for x in leaves:
        x.requires_grad_()
    lengths = (ends, ends, 13, 13)
    torch.manual_seed(3)
    expected = flash_attn.flash_attn_varlen_func(*leaves, *lengths, dropout_p=0.3, causal=True,
                                                 deterministic=True)
    dout = torch.randn_like(expected)
    torch.manual_seed(3)
    out, lse, _, rng_state = flash_attn_interface._flash_attn_varlen_forward(
        *leaves, *lengths, 0.3, 32 ** -0.5, True)
    assert torch.equal(out, expected)
    gradients = [torch.full_like(x, math.nan).detach() for x in leaves]
    softmax_d = flash_attn_interface._flash_attn_varlen_backward(
        dout, *leaves, out, lse, *gradients, *lengths, 0.3, 32 ** -0.5, True, -1, -1, 0.0, None,
        True, rng_state)
    assert softmax_d.shape == (4, 20 + 256)
    torch.testing.assert_close(softmax_d[:, 7 + 128:20 + 128],
                               (dout.float() * out.float()).sum(-1)[7:].t().detach())
    for found, true in zip(gradients, torch.autograd.grad(expected, leaves, dout)):
        assert torch.equal(found, true)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("paged", [False, True])
def test_kvcache(rng, device, interleaved, paged):
    batch, capacity, new, dim = 3, 48, 3, 32
    q, k, v = random_tensors(rng, (batch, new, 4, dim), *[(batch, new, 2, dim)] * 2, device=device)
    caches = random_tensors(rng, *[(batch, capacity, 2, dim)] * 2, device=device)
    filled = int32([5, 0, 45], device)
    angles = torch.outer(torch.arange(capacity), 100.0 ** -torch.linspace(0, 1, 8))
    cos, sin = (table.to(device, q.dtype) for table in (angles.cos(), angles.sin()))
    offsets = dict(seqlen_offsets=filled, interleaved=interleaved)
    q_rotated = rotary.apply_rotary_emb(q, cos, sin, **offsets)
    k_rotated = rotary.apply_rotary_emb(k, cos, sin, **offsets)
    expected, wanted = [], [cache.clone() for cache in caches]
    for b, n in enumerate(filled.tolist()):
        wanted[0][b, n:n + new], wanted[1][b, n:n + new] = k_rotated[b], v[b]
        keys = [cache[b:b + 1, :n + new] for cache in wanted]
        expected.append(flash_attn.flash_attn_func(q_rotated[b:b + 1], *keys, causal=True))
    table = None
    if paged:
        order = torch.from_numpy(rng.permutation(batch * capacity // 16)).to(device)
        table = order.view(batch, -1).int()
        pages = [torch.empty_like(cache).view(-1, 16, 2, dim) for cache in caches]
        for page, cache in zip(pages, caches):
            page[order] = cache.view(-1, 16, 2, dim)
        caches = pages
    out, lse = flash_attn.flash_attn_with_kvcache(
        q, *caches, k, v, rotary_cos=cos, rotary_sin=sin, cache_seqlens=filled, causal=True,
        rotary_interleaved=interleaved, block_table=table, return_softmax_lse=True)
    assert_close(out, torch.cat(expected), device)
    assert lse.shape == (batch, 4, new)
    if paged:
        caches = [page[order].view(batch, capacity, 2, dim) for page in caches]
    assert_close(caches[0], wanted[0], device)
    assert torch.equal(caches[1], wanted[1])


def test_kvcache_rows_and_padding(rng, device):
    q, *caches = random_tensors(rng, (2, 1, 4, 32), *[(4, 16, 2, 32)] * 2, device=device)
    rows, leftpad = int32([3, 1], device), int32([2, 0], device)
    out = flash_attn.flash_attn_with_kvcache(q, *caches, cache_seqlens=9, cache_batch_idx=rows,
                                             cache_leftpad=leftpad)
    for b in range(2):
        keys = [cache[rows[b], leftpad[b]:9][None] for cache in caches]
        expected = flash_attn.flash_attn_func(q[b:b + 1], *keys)
        assert_close(out[b:b + 1], expected, device)


@pytest.mark.parametrize("words, change", [
    ("query and key must have the same dtype", dict(k=lambda k: k.bfloat16())),
    ("FlashAttention forward only supports head dimension at most 256",
     dict(q=lambda q: q.repeat(1, 1, 1, 9), k=lambda k: k.repeat(1, 1, 1, 9),
          v=lambda v: v.repeat(1, 1, 1, 9))),
    ("Number of heads in key/value must divide number of heads in query",
     dict(q=lambda q: q[:, :, :3])),
    ("ALiBi slopes must have dtype fp32", dict(alibi_slopes=torch.zeros(4).half())),
])
def test_errors_that_users_know(rng, device, words, change):
    q, k, v = random_tensors(rng, (1, 3, 4, 32), (1, 3, 2, 32), (1, 3, 2, 32), device=device,
                             dtype=torch.float16)
    tensors = [change.get(name, lambda x: x)(x) for name, x in zip("qkv", (q, k, v))]
    with pytest.raises(RuntimeError, match=words):
        flash_attn.flash_attn_func(*tensors, alibi_slopes=change.get("alibi_slopes"))
    with pytest.raises(RuntimeError, match="seqlens_k must also be passed in"):
        flash_attn.flash_attn_with_kvcache(q, k, v, k, v)
    if device == "cuda":
        with pytest.raises(RuntimeError, match="FlashAttention only support fp16 and bf16 data"):
            flash_attn.flash_attn_func(q.float(), k.float(), v.float())


@pytest.mark.parametrize("unused", [False, True])
def test_unpad_and_pad(rng, device, unused):
    x = random_tensors(rng, (3, 7, 2, 5), device=device)[0].requires_grad_()
    mask = torch.from_numpy(rng.random((3, 7)) < 0.5).to(device)
    mask[:, 2] = True
    extra = (~mask & torch.from_numpy(rng.random((3, 7)) < 0.5).to(device)) if unused else None
    kept = mask | extra if unused else mask
    rows, indices, ends, longest, used = bert_padding.unpad_input(x, mask, extra)
    assert torch.equal(rows, x[kept]) and indices.dtype == torch.int64
    assert ends.dtype == torch.int32 and ends.tolist() == [0, *kept.sum(1).cumsum(0).tolist()]
    assert longest == int(kept.sum(1).max()) and torch.equal(used, mask.sum(1).int())
    padded = bert_padding.pad_input(rows, indices, 3, 7)
    assert torch.equal(padded, x * kept[..., None, None])
    weight = torch.randn_like(padded)
    assert torch.equal(torch.autograd.grad((padded * weight).sum(), x)[0],
                       weight * kept[..., None, None])


def test_unpad_concatenated_sequences(rng):
    x = random_tensors(rng, (2, 6, 3))[0]
    lengths = torch.tensor([[2, 3, 0, 0, 0, 0], [6, 0, 0, 0, 0, 0]])
    rows, indices, ends, longest = bert_padding.unpad_input_for_concatenated_sequences(x, lengths)
    assert ends.tolist() == [0, 2, 5, 11] and longest == 6 and ends.dtype == torch.int32
    assert torch.equal(rows, torch.cat((x[0, :5], x[1]))) and len(indices) == 11


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_rotary(rng, device, interleaved, inplace, ragged):
    x, dout = random_tensors(rng, *[(2, 9, 3, 24)] * 2, device=device)
    cos, sin = random_tensors(rng, (20, 8), (20, 8), device=device)
    offsets = torch.tensor([3, 11], device=device)
    rows = torch.arange(9, device=device) + offsets[:, None]
    expected_x = x.clone().requires_grad_()
    expected = rotary.apply_rotary_emb_torch(expected_x, cos[rows], sin[rows], interleaved)
    expected.backward(dout)
    leaf = x.clone().requires_grad_()
    given, ends = leaf * 1, None
    if ragged:
        given, ends = given.flatten(0, 1), int32([0, 9, 18], device)
    out = rotary.apply_rotary_emb(given, cos, sin, interleaved, inplace, offsets, ends, 9)
    assert_close(out.view_as(expected), expected, device)
    assert (out.data_ptr() == given.data_ptr()) == inplace
    out.backward(dout.clone().view_as(out))
    assert_close(leaf.grad, expected_x.grad, device)


def test_rotary_embedding_module(rng, device):
    module = rotary.RotaryEmbedding(16, device=device)
    qkv = random_tensors(rng, (2, 5, 3, 2, 32), device=device)[0]
    angles = torch.outer(torch.arange(5.0) + 2, 10000.0 ** (-torch.arange(0, 16, 2) / 16))
    tables = [table.to(device, qkv.dtype) for table in (angles.cos(), angles.sin())]
    expected = [rotary.apply_rotary_emb_torch(qkv[:, :, i], *tables) for i in range(2)]
    value = qkv[:, :, 2].clone()
    out = module(qkv, seqlen_offset=2)
    for i in range(2):
        assert_close(out[:, :, i], expected[i], device)
    assert torch.equal(out[:, :, 2], value)


def test_import_flash_attn():
    """In a process of its own, because it changes what imports find."""
    subprocess.run([sys.executable, "-c", """
import importlib.metadata, flashmha
flashmha.install_as_flash_attn()
flashmha.install_as_flash_attn()
import flash_attn
import flash_attn.flash_attn_interface as interface
from flash_attn import flash_attn_func
from flash_attn.bert_padding import pad_input
from flash_attn.layers.rotary import apply_rotary_emb
from flash_attn.ops.triton.rotary import apply_rotary
import flashmha.flash_attn.flash_attn_interface as ours
assert interface is ours and flash_attn_func is ours.flash_attn_func
assert flash_attn.__version__ == importlib.metadata.version("flash-attn") == "2.8.3"
try:
    import flash_attn.nothing
except ModuleNotFoundError as error:
    assert "flash_attn.nothing" in str(error)
else:
    raise AssertionError
"""], check=True)
