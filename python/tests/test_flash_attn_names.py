"""What programs use of flash_attn besides its functions: classes, buffers, operators, the extension
module, the import itself, its words and its leniency."""

import math
import subprocess
import sys
import types

import pytest

torch = pytest.importorskip("torch")
from flashmha import flash_attn, torch_ops
from flashmha.flash_attn import (
    bert_padding,
    flash_attn_2_cuda,
    flash_attn_interface,
    rules,
)
from flashmha.flash_attn.layers import rotary


def tensors(rng, device, *shapes, grad=False):
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    made = [torch.from_numpy(rng.standard_normal(shape)).to(device, dtype) for shape in shapes]
    return [x.requires_grad_() for x in made] if grad else made


def assert_close(found, expected, device):
    """What two kernels give."""
    rtol, atol = (1e-5, 1e-5) if device == "cpu" else (0.02, 0.01)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol)


def int32(values, device):
    return torch.tensor(values, dtype=torch.int32, device=device)


def run(code):
    """In a process of its own, because it changes what imports find."""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["", "KVPacked", "QKVPacked"])
@pytest.mark.parametrize("ragged", [False, True])
def test_autograd_classes(rng, device, name, ragged):
    shape = (2, 9, 4, 32)
    q, k, v = tensors(rng, device, shape, shape, shape)
    packed = {"": (q, k, v), "KVPacked": (q, torch.stack((k, v), 2)),
              "QKVPacked": (torch.stack((q, k, v), 2),)}[name]
    lengths = ()
    if ragged:
        packed = tuple(x.flatten(0, 1) for x in packed)
        ends = int32([0, 5, 18], device)
        lengths = (ends, 13) if name == "QKVPacked" else (ends, ends, 13, 13)
    function = getattr(flash_attn, f"flash_attn_{'varlen_' if ragged else ''}{name.lower()}"
                                   f"{'_' if name else ''}func")
    apply = getattr(flash_attn_interface, f"FlashAttn{'Varlen' if ragged else ''}{name}Func").apply
    options = (0.0, 0.2, True, (5, 0), 3.0, None, True)
    tail = (None,) if ragged and not name else ()
    leaves = [x.detach().requires_grad_() for x in packed]
    out, lse, _ = apply(*leaves, *lengths, *options, True, *tail, True)
    expected, expected_lse, _ = function(*leaves, *lengths, *options, True)
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)
    dout = torch.randn_like(out)
    for a, b in zip(torch.autograd.grad(out, leaves, dout),
                    torch.autograd.grad(expected, leaves, dout)):
        assert torch.equal(a, b)
    out = apply(*leaves, *lengths, *options, False, *tail, False)
    assert torch.equal(out, expected) and not out.requires_grad


def test_classes_of_bert_padding(rng, device):
    x = tensors(rng, device, (6, 3, 2), grad=True)[0]
    rows = torch.tensor([4, 1], device=device)
    assert torch.equal(bert_padding.IndexFirstAxis.apply(x, rows), x[rows])
    put = bert_padding.IndexPutFirstAxis.apply(x[rows], rows, 6)
    assert torch.equal(put[rows], x[rows]) and (put[0] == 0).all()
    taken, residual = bert_padding.IndexFirstAxisResidual.apply(x, rows)
    dx = torch.autograd.grad(taken.sum() + 2 * residual.sum(), x)[0]
    assert torch.equal(taken, x[rows]) and (dx[rows] == 3).all() and (dx[0] == 2).all()


def test_classes_of_rotary(rng, device):
    cos, sin = tensors(rng, device, (9, 8), (9, 8))
    qkv = tensors(rng, device, (2, 5, 3, 4, 32))[0]
    expected = rotary.apply_rotary_emb_qkv_(qkv.clone(), cos, sin, seqlen_offsets=2)
    assert torch.equal(rotary.ApplyRotaryEmbQKV_.apply(qkv.clone(), cos, sin, None, None, False, 2),
                       expected)
    kv = qkv[:, :, 1:].clone()
    found = rotary.ApplyRotaryEmbKV_.apply(kv.clone(), cos, sin, False, 2)
    assert torch.equal(found[:, :, 0], expected[:, :, 1])


@pytest.mark.parametrize("offset", [2, "tensor"])
def test_rotary_in_place_is_compiled(rng, device, offset):
    """In one graph; the tensor is changed, also if it is a leaf, and gets its gradient."""
    cos, sin = tensors(rng, device, (9, 8), (9, 8))
    if offset == "tensor":
        offset = int32([1, 4], device)
    qkv = tensors(rng, device, (2, 5, 3, 4, 32))[0]

    def function(qkv, kv):
        return (rotary.apply_rotary_emb_qkv_(qkv, cos, sin, seqlen_offsets=offset),
                rotary.apply_rotary_emb_kv_(kv, cos, sin, seqlen_offsets=offset))

    results = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        leaves = [qkv.clone().requires_grad_(), qkv[:, :, 1:].clone().requires_grad_()]
        outputs = call(*leaves)
        for x, y in zip(leaves, outputs):
            assert torch.equal(x, y)
        gradients = torch.autograd.grad([y.square().sum() for y in outputs], leaves)
        results.append((*outputs, *gradients))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()


@pytest.mark.parametrize("scale_base", [None, 512])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rotary_embedding_in_a_model_of_16_bits(device, dtype, scale_base):
    """Frequencies that conversion has rounded would be wrong by whole turns far from the start."""
    exact = rotary.RotaryEmbedding(64, scale_base=scale_base, device=device)
    converted = torch.nn.Sequential(
        rotary.RotaryEmbedding(64, scale_base=scale_base, device=device)).to(dtype)[0]
    assert converted.inv_freq.dtype == dtype
    where = torch.empty(0, device=device).device
    for module in (exact, converted):
        module._update_cos_sin_cache(8000, device=where, dtype=torch.float32)
    names = ["_cos_cached", "_sin_cached"]
    if scale_base is not None:
        names += ["_cos_k_cached", "_sin_k_cached"]
    else:
        assert converted._cos_k_cached is None and converted._sin_k_cached is None
    for name in names:
        assert torch.equal(getattr(converted, name), getattr(exact, name)), name
    assert torch.equal(exact._compute_inv_freq(device=where), exact.inv_freq)
    before = converted._cos_cached
    converted._update_cos_sin_cache(100, device=where, dtype=torch.float32)
    assert converted._cos_cached is before and converted._seq_len_cached == 8000


def test_extension_module(rng, device):
    q, k, v = tensors(rng, device, (2, 7, 4, 32), (2, 9, 2, 32), (2, 9, 2, 32), grad=True)
    expected = flash_attn.flash_attn_func(q, k, v, causal=True, deterministic=True)
    dout = torch.randn_like(expected)
    true_gradients = torch.autograd.grad(expected, (q, k, v), dout)
    out_ = torch.empty_like(q)
    scale = 32 ** -0.5
    q, k, v = q.detach(), k.detach(), v.detach()
    out, lse, probabilities, rng_state = flash_attn_2_cuda.fwd(
        q, k, v, out_, None, 0.0, scale, True, -1, 0, 0.0, False, None)
    assert out is out_ and torch.equal(out, expected) and probabilities.numel() == 0
    gradients = flash_attn_2_cuda.bwd(
        dout, q, k, v, out, lse, None, torch.empty_like(k), None, None, 0.0, scale, True, -1, 0,
        0.0, True, None, rng_state)
    assert gradients[3].shape == (2, 4, 128)
    for a, b in zip(gradients, true_gradients):
        assert torch.equal(a, b)
    ends_q, ends_k = int32([0, 7, 14], device), int32([0, 9, 18], device)
    packed = [x.flatten(0, 1) for x in (q, k, v)]
    out, lse, _, rng_state = flash_attn_2_cuda.varlen_fwd(
        *packed, None, ends_q, ends_k, None, None, None, None, 7, 9, 0.0, scale, False, True, -1, 0,
        0.0, False, None)
    assert_close(out.view_as(expected), expected, device)
    gradients = flash_attn_2_cuda.varlen_bwd(
        dout.flatten(0, 1), *packed, out, lse, None, None, None, ends_q, ends_k, None, 7, 9, 0.0,
        scale, False, True, -1, 0, 0.0, True, None, rng_state)
    for a, b in zip(gradients, true_gradients):
        assert_close(a.view_as(b), b, device)
    filled = int32([4, 9], device)
    out, lse = flash_attn_2_cuda.fwd_kvcache(
        q[:, :1], k, v, None, None, filled, None, None, None, None, None, None, None, scale, True,
        -1, 0, 0.0, True, 0)
    expected, expected_lse = flash_attn.flash_attn_with_kvcache(
        q[:, :1], k, v, cache_seqlens=filled, causal=True, return_softmax_lse=True)
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)
    with pytest.raises(RuntimeError, match="Input tensor must have contiguous last dimension"):
        crooked = q.transpose(-1, -2).contiguous().transpose(-1, -2)
        flash_attn_2_cuda.fwd(crooked, k, v, None, None, 0.0, scale, True, -1, 0, 0.0, False, None)
    with pytest.raises(NotImplementedError, match="gen_ must be None"):
        flash_attn_2_cuda.fwd(q, k, v, None, None, 0.0, scale, True, -1, 0, 0.0, False,
                              torch.Generator())


def test_registered_operators():
    run("""
import flashmha, torch
assert not hasattr(torch.ops.flash_attn, "_flash_attn_forward")
flashmha.install_as_flash_attn()
import flash_attn, flash_attn_2_cuda
from flash_attn.flash_attn_interface import _flash_attn_forward
import flashmha.flash_attn.flash_attn_2_cuda as ours
assert flash_attn_2_cuda is ours
ops = torch.ops.flash_attn
q, k, v, dout = (torch.randn(2, 7, 4, 16) for _ in range(4))
given = (0.0, 0.25, True, -1, 0, 0.0, None)
out, lse, s, state = ops._flash_attn_forward(q, k, v, *given, False)
expected = _flash_attn_forward(q, k, v, *given, False)
assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1])
torch.library.opcheck(ops._flash_attn_forward.default, (q, k, v, *given, False))
gradients = [torch.empty_like(x) for x in (q, k, v)]
d = ops._flash_attn_backward(dout, q, k, v, out, lse, *gradients, *given, False, state)
assert d.shape == (2, 4, 128)
ends = torch.tensor([0, 7, 14], dtype=torch.int32)
flat = [x.flatten(0, 1) for x in (q, k, v)]
packed, lse, s, state = ops._flash_attn_varlen_forward(*flat, ends, ends, 7, 7, 0.0, 0.25, True)
torch.testing.assert_close(packed.view_as(out), out)
others = [torch.empty_like(x) for x in flat]
d = ops._flash_attn_varlen_backward(dout.flatten(0, 1), *flat, packed, lse, *others, ends, ends, 7,
                                    7, *given, False, state)
assert d.shape == (4, 14 + 256)
for a, b in zip(others, gradients):
    torch.testing.assert_close(a.view_as(b), b)
compiled = torch.compile(lambda q, k, v: ops._flash_attn_forward(q, k, v, *given, False)[0],
                         fullgraph=True, backend="aot_eager")
assert torch.equal(compiled(q, k, v), out)
""")


TRANSFORMERS = """
import copy
import torch
{imports}
import transformers.utils.import_utils as known
known.is_torch_cuda_available = lambda: True  # a model on a CPU will do
for cached in (known.is_flash_attn_2_available, transformers.utils.is_flash_attn_2_available):
    getattr(cached, "cache_clear", lambda: None)()
assert transformers.utils.is_flash_attn_2_available()
import flashmha.torch_ops
calls = []
def count(name):
    original = getattr(flashmha.torch_ops, name)
    def counting(*arguments):
        calls.append(name)
        return original(*arguments)
    setattr(flashmha.torch_ops, name, counting)
count("attend")
calls_of_interface = flashmha.flash_attn.flash_attn_interface
calls_of_interface.quick_attend = lambda *arguments: None  # all take the other way
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, pad_token_id=0)
model = transformers.AutoModelForCausalLM.from_config(
    config, dtype=torch.bfloat16, attn_implementation="flash_attention_2").eval().to("{device}")
assert model.config._attn_implementation == "flash_attention_2"
eager = transformers.AutoModelForCausalLM.from_config(
    copy.deepcopy(config), dtype=torch.float32, attn_implementation="eager").eval().to("{device}")
eager.load_state_dict(model.state_dict())
ids = torch.randint(1, 50, (2, 9), device="{device}")
mask = torch.ones_like(ids)
with torch.no_grad():
    torch.testing.assert_close(model(ids).logits.float(), eager(ids).logits, rtol=0.05, atol=0.02)
    assert len(calls) == 2, calls  # one for each layer
    mask[1, :4] = 0
    found, expected = (m(ids, attention_mask=mask).logits.float() for m in (model, eager))
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=0.05, atol=0.02)
"""


@pytest.mark.parametrize("imports", [
    "import flashmha; flashmha.install_as_flash_attn(); import transformers",
    "import transformers, flashmha; flashmha.install_as_flash_attn()",
    "import transformers; transformers.utils.is_flash_attn_2_available(); import flashmha; "
    "flashmha.install_as_flash_attn()",
], ids=["flashmha_first", "transformers_first", "transformers_has_asked"])
def test_transformers_takes_it_for_flash_attn(imports):
    pytest.importorskip("transformers")
    run(TRANSFORMERS.format(imports=imports, device="cpu"))


@pytest.mark.gpu
def test_transformers_runs_on_it_on_a_gpu():
    pytest.importorskip("transformers")
    imports = "import transformers, flashmha; flashmha.install_as_flash_attn()"
    run(TRANSFORMERS.format(imports=imports, device="cuda"))


def test_an_empty_batch_is_refused(device):
    q = torch.zeros(0, 3, 2, 16, device=device, dtype=torch.bfloat16)
    words = "batch size must be positive"
    with pytest.raises(RuntimeError, match=words):
        flash_attn.flash_attn_func(q, q, q)
    with pytest.raises(RuntimeError, match=words):
        flash_attn.flash_attn_with_kvcache(q, q, q)
    with pytest.raises(RuntimeError, match=words):
        flash_attn.flash_attn_varlen_func(q[0:0].flatten(0, 1), q.flatten(0, 1), q.flatten(0, 1),
                                          int32([0], device), int32([0], device), 0, 0)


def test_old_gpus_are_refused_in_words_that_users_know(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    q = types.SimpleNamespace(is_cuda=True, device=torch.device("cuda", 0), dtype=torch.float16,
                              shape=(1, 3, 4, 32))
    assert rules._familiar(q, q, q, None) == "FlashAttention only supports Ampere GPUs or newer"


def test_negative_numbers_mean_none(rng, device):
    q, k, v = tensors(rng, device, *[(1, 9, 2, 32)] * 3)
    expected = flash_attn.flash_attn_func(q, k, v)
    for options in (dict(softcap=-1.0), dict(window_size=(-7, -2))):
        assert torch.equal(flash_attn.flash_attn_func(q, k, v, **options), expected)
        assert_close(flash_attn.flash_attn_with_kvcache(q, k, v, **options), expected, device)


def test_a_cache_has_no_gradient_but_serves_tensors_that_want_one(rng, device):
    q, k, v = tensors(rng, device, (1, 2, 2, 32), *[(1, 9, 2, 32)] * 2, grad=True)
    out = flash_attn.flash_attn_with_kvcache(q, k.detach(), v.detach(), causal=True)
    assert not out.requires_grad
    new = q * 2  # a result of the graph
    out = flash_attn.flash_attn_with_kvcache(new, k.detach(), v.detach(), new.detach(),
                                             new.detach(), cache_seqlens=3, causal=True)
    assert not out.requires_grad


def test_rotary_tables_of_a_cache(rng, device):
    q, k = tensors(rng, device, (1, 1, 2, 32), (1, 16, 2, 32))
    new, cos = q.clone(), torch.ones(15, 8, device=device, dtype=q.dtype)
    call = dict(rotary_cos=cos, rotary_sin=cos, cache_seqlens=2)
    with pytest.raises(RuntimeError, match="seqlen must be at least the seqlen of KV cache"):
        flash_attn.flash_attn_with_kvcache(q, k, k.clone(), new, new, **call)
    with pytest.raises(RuntimeError, match="new key / value to be appended"):
        flash_attn.flash_attn_with_kvcache(q, k, k.clone(), **call)


def test_backward_without_rng_state_draws_the_next(rng, device):
    q, k, v, dout = tensors(rng, device, *[(1, 9, 2, 32)] * 4)
    given = (0.3, 0.2, False, -1, -1, 0.0, None)
    torch.manual_seed(7)
    out, lse, _, state = flash_attn_interface._flash_attn_forward(q, k, v, *given, False)
    results = []
    for known in (state, None):
        torch.manual_seed(7)
        gradients = [torch.full_like(x, math.nan) for x in (q, k, v)]
        flash_attn_interface._flash_attn_backward(dout, q, k, v, out, lse, *gradients, *given, True,
                                                  known)
        results.append(gradients)
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_dropout_follows_the_generator_of_the_device(rng, device):
    q, k, v = tensors(rng, device, *[(1, 33, 2, 32)] * 3)

    def call():
        return flash_attn.flash_attn_func(q, k, v, dropout_p=0.4)

    torch.manual_seed(11)
    first, second = call(), call()
    assert not torch.equal(first, second)
    torch.manual_seed(11)
    assert torch.equal(call(), first) and torch.equal(call(), second)
    torch.manual_seed(11)
    with torch.random.fork_rng():
        call()
    assert torch.equal(call(), first)
    if device == "cuda":  # the other generator is left alone
        before = torch.get_rng_state()
        call()
        assert torch.equal(torch.get_rng_state(), before)
        state = torch.cuda.get_rng_state()
        third = call()
        torch.cuda.set_rng_state(state)
        assert torch.equal(call(), third)


def test_seeds_of_64_bits(device):
    torch.manual_seed(2**64 - 3)
    seed, offset = torch_ops.new_rng_state(torch.empty(1, device=device)).tolist()
    assert -(2**63) <= seed < 2**63 and -(2**63) <= offset < 2**63
