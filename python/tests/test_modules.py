"""FlashMultiHeadAttention against plain formulas of PyTorch."""

import pytest

torch = pytest.importorskip("torch")
import flashmha  # noqa: E402
from flashmha.flash_attn.layers.rotary import apply_rotary_emb_torch  # noqa: E402


def build(**options):
    torch.manual_seed(0)
    layer = flashmha.FlashMultiHeadAttention(48, 6, 2, 16, **options).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.3)
    return layer


def plain(layer, x, source=None, positions=None):
    """One sequence [seqlen, hidden] with probabilities in memory."""
    causal, source = layer.causal and source is None, x if source is None else source
    q, k, v = (proj(y).unflatten(-1, (-1, 16)) for proj, y in
               ((layer.q_proj, x), (layer.k_proj, source), (layer.v_proj, source)))
    if layer.q_norm is not None:
        q, k = layer.q_norm(q), layer.k_norm(k)
    if layer.rope_theta is not None:
        pairs = torch.arange(0, 16, 2) / 16
        angles = torch.outer(torch.arange(len(x)) if positions is None else positions,
                             layer.rope_theta ** -pairs).float().double()
        q, k = (apply_rotary_emb_torch(t[None], angles.cos(), angles.sin())[0] for t in (q, k))
    scores = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(3, 1)) / 4
    if layer.softcap:
        scores = layer.softcap * torch.tanh(scores / layer.softcap)
    i, j = torch.arange(len(x))[:, None], torch.arange(len(source))
    if causal:
        scores = scores.masked_fill(j > i, -torch.inf)
    if layer.window:
        scores = scores.masked_fill(j < i - layer.window + 1, -torch.inf)
    if layer.sinks is not None:
        scores = torch.cat((scores, layer.sinks[:, None, None].expand(-1, len(x), 1)), -1)
    p = scores.softmax(-1)[..., :len(source)]
    return layer.o_proj(torch.einsum("hij,jhd->ihd", p, v.repeat_interleave(3, 1)).flatten(1))


OPTIONS = [dict(), dict(rope_theta=100.0), dict(qk_norm=True, sinks=True, softcap=3.0),
           dict(window=4, qkv_bias=True, out_bias=True), dict(causal=False)]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_values_and_gradients(options, padded):
    # float64 is the reference's type; rotation computes in float32.
    layer = build(**options)
    x = torch.randn(3, 11, 48, dtype=torch.float64)
    mask = torch.ones(3, 11, dtype=torch.bool)
    if padded:
        mask[1, :4], mask[2, 6:] = False, False
    if "rope_theta" in options:
        layer, x = layer.float(), x.float()
    out = layer(x, mask.long() if padded else None)
    expected = torch.cat([plain(layer.double(), x[b, mask[b]].double()) for b in range(3)])
    torch.testing.assert_close(out[mask].double(), expected, rtol=1e-4, atol=1e-4)
    if "rope_theta" in options:
        return
    weight = torch.randn_like(expected)
    parameters = list(layer.parameters())
    for a, b in zip(torch.autograd.grad((layer(x, mask)[mask] * weight).sum(), parameters),
                    torch.autograd.grad((expected * weight).sum(), parameters)):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_packed_batch():
    layer = build(rope_theta=50.0).float()
    x = torch.randn(2, 8, 48)
    ends = torch.tensor([0, 3, 8, 16], dtype=torch.int32)
    out = layer(x, cu_seqlens=ends).flatten(0, 1)
    for begin, end in ((0, 3), (3, 8), (8, 16)):
        torch.testing.assert_close(out[begin:end], layer(x.flatten(0, 1)[None, begin:end])[0])
    with pytest.raises(ValueError, match="neither with a mask"):
        layer(x, torch.ones(2, 8), cu_seqlens=ends)


def test_cross_attention():
    layer = build()
    x, source = torch.randn(2, 7, 48).double(), torch.randn(2, 7, 48).double()
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 3:] = False
    out = layer(x, mask, encoder_states=source)
    for b in range(2):
        torch.testing.assert_close(out[b], plain(layer, x[b], source[b, mask[b]]))


def test_dropout_is_for_training():
    layer = build(dropout=0.5)
    x = torch.randn(1, 9, 48).double()
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="must be a multiple of num_kv_heads"):
        flashmha.FlashMultiHeadAttention(48, 6, 4)
    with pytest.raises(ValueError, match="or head_dim given"):
        flashmha.FlashMultiHeadAttention(50, 6)
