"""FlashMultiHeadAttention against plain formulas of PyTorch, and against the C++ layer."""

import copy
import json

import pytest

torch = pytest.importorskip("torch")
import flashmha
from flashmha.flash_attn.layers.rotary import apply_rotary_emb_torch

import plain as plain_attention
from test_model import CHECKPOINTS, needs_checkpoints


def build(device="cpu", dtype=torch.float32, **options):
    torch.manual_seed(0)
    layer = flashmha.FlashMultiHeadAttention(48, 6, 2, 16, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(0, 0.3)
    return layer.to(device, dtype)


def tables_of(layer, positions):
    """cos and sin in double precision, by the formula of the plain embedding."""
    pairs = torch.arange(0, 16, 2, dtype=torch.float64, device=positions.device) / 16
    angles = torch.outer(positions.double(), layer.rotary.parameters["rope_theta"] ** -pairs)
    return angles.cos(), angles.sin()


def plain(layer, x, source=None):
    """One sequence [seqlen, hidden], with probabilities in memory, in the layer's own type."""
    causal, source = layer.causal and source is None, x if source is None else source
    q, k, v = (proj(y).unflatten(-1, (-1, 16))[None] for proj, y in
               ((layer.q_proj, x), (layer.k_proj, source), (layer.v_proj, source)))
    if layer.q_norm is not None:
        q, k = layer.q_norm(q), layer.k_norm(k)
    if layer.rotary is not None:
        tables = tables_of(layer, torch.arange(len(x), device=x.device))
        q, k = (apply_rotary_emb_torch(y, *(t.to(y.dtype) for t in tables)) for y in (q, k))
    window = (layer.window - 1, 0 if causal else layer.window - 1) if layer.window else (-1, -1)
    out = plain_attention.attention(q, k, v, causal, window, softcap=layer.softcap,
                                    sinks=layer.sinks)
    return layer.o_proj(out[0].flatten(-2))


OPTIONS = {
    "plain": dict(),
    "rotary": dict(rope_theta=100.0),
    "norms": dict(qk_norm=True, sinks=True, softcap=3.0),
    "window": dict(window=4, qkv_bias=True, out_bias=True),
    "encoder": dict(causal=False, rope_theta=100.0, window=3),
}


@pytest.mark.parametrize("padding", ["none", "left", "middle"])
@pytest.mark.parametrize("case", OPTIONS)
def test_values_and_gradients(place, case, padding):
    """At most twice (gradients: three times) the errors of plain operations in the same type."""
    device, dtype = place
    layer = build(device, dtype, **OPTIONS[case])
    exact = copy.deepcopy(layer).double()
    x = torch.randn(3, 21, 48, device=device).to(dtype)
    mask = torch.ones(3, 21, dtype=torch.long, device=device)
    if padding == "left":
        mask[1, :4] = mask[2, :19] = 0
    elif padding == "middle":
        mask[1, 5:9] = mask[2, 15:] = 0
    real = mask.bool()
    out = layer(x, None if padding == "none" else mask)
    if padding != "none":
        assert torch.equal(layer(x, real), out)
    weight = torch.randn_like(out[real])
    found = torch.autograd.grad((out[real] * weight).sum(), list(layer.parameters()))
    results = []
    for model, inputs in ((layer, x), (exact, x.double())):
        expected = torch.cat([plain(model, inputs[b, real[b]]) for b in range(3)])
        loss = (expected * weight.to(expected.dtype)).sum()
        results.append((expected, torch.autograd.grad(loss, list(model.parameters()))))
    (plain_out, plain_gradients), (true_out, true_gradients) = results
    slack = 1e-4 if dtype == torch.float32 else 0.02
    plain_attention.assert_accurate(out[real], plain_out, true_out, slack=slack)
    for a, b, c in zip(found, plain_gradients, true_gradients):
        plain_attention.assert_accurate(a, b, c, factor=3, slack=slack)


def test_tables_stay_float32_in_a_model_of_16_bits(device):
    layer = build(rope_theta=1e4, max_position_embeddings=64)
    expected = [t.clone() for t in layer.rotary.tables(64, torch.device("cpu"))]
    where = torch.empty(0, device=device).device
    for changed in (layer.to(device).bfloat16(), copy.deepcopy(layer)):
        for table, wanted in zip(changed.rotary.tables(64, where), expected):
            assert table.dtype == torch.float32 and table.device == where
            assert torch.equal(table.cpu(), wanted)
    first = layer.rotary.tables(10, where)
    assert all(a is b for a, b in zip(first, layer.rotary.tables(64, where)))  # made once
    assert layer.rotary.tables(65, where)[0].shape[0] >= 65


@pytest.mark.parametrize("parameters", [
    dict(rope_type="default", rope_theta=5e5), dict(rope_type="linear", factor=4.0),
    dict(rope_type="dynamic", factor=2.0),
    dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
    dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
         original_max_position_embeddings=16),
], ids=lambda parameters: parameters["rope_type"])
def test_rope_types_are_those_of_transformers(parameters):
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=32,
        rope_parameters=dict({"rope_theta": 1e4}, **parameters))
    theirs = LlamaRotaryEmbedding(config)
    layer = flashmha.FlashMultiHeadAttention(
        64, 4, rope_parameters=dict({"rope_theta": 1e4}, **parameters), max_position_embeddings=32)
    for length in (20, 50, 40, 10):  # dynamic: the longest so far counts, until a short one comes
        cos, sin = theirs(torch.zeros(1), torch.arange(length)[None])
        ours = layer.rotary.tables(length, torch.device("cpu"))
        torch.testing.assert_close(ours[0][:length], cos[0, :, :8], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours[1][:length], sin[0, :, :8], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="rope_type must be"):
        flashmha.FlashMultiHeadAttention(64, 4, rope_parameters=dict(rope_type="longrope"))
    with pytest.raises(ValueError, match="parameter is not known"):
        flashmha.FlashMultiHeadAttention(64, 4, rope_parameters=dict(factors=2.0))


def window_of(config, layer):
    kinds = config.get("layer_types")
    slides = kinds[layer] == "sliding_attention" if kinds else True
    return (config.get("sliding_window") or 0) if slides else 0


class Decoder:
    """The model of a directory in plain PyTorch around FlashMultiHeadAttention; no other norms."""

    def __init__(self, directory):
        config = json.loads((directory / "config.json").read_text())
        heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
        self.eps, self.weights = config["rms_norm_eps"], {}
        model = flashmha.Model.load(directory, dtype="float32")
        for name, parameter in model.parameters().items():
            self.weights[name] = torch.from_dlpack(parameter.weight).clone()
        names = self.weights.keys()
        self.layers = []
        for i in range(config["num_hidden_layers"]):
            prefix = f"model.layers.{i}.self_attn."
            layer = flashmha.FlashMultiHeadAttention(
                config["hidden_size"], heads, kv, config.get("head_dim"),
                qkv_bias=prefix + "q_proj.bias" in names, out_bias=prefix + "o_proj.bias" in names,
                qk_norm=prefix + "q_norm.weight" in names, norm_eps=self.eps,
                window=window_of(config, i),
                rope_parameters=config["rope_parameters"],
                max_position_embeddings=config["max_position_embeddings"])
            # Strict: the names of the state are those of the C++ layer, all of them.
            layer.load_state_dict({name[len(prefix):]: weight for name, weight
                                   in self.weights.items() if name.startswith(prefix)})
            self.layers.append(layer)

    def norm(self, x, name):
        return torch.nn.functional.rms_norm(x, x.shape[-1:], self.weights[name + ".weight"],
                                            self.eps)

    def __call__(self, ids, attend):
        w = self.weights
        x = w["model.embed_tokens.weight"][ids]
        for i, layer in enumerate(self.layers):
            prefix = f"model.layers.{i}."
            x = x + attend(i, layer, self.norm(x, prefix + "input_layernorm"))
            y = self.norm(x, prefix + "post_attention_layernorm")
            gate, up = (y @ w[f"{prefix}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
            x = x + (torch.nn.functional.silu(gate) * up) @ w[prefix + "mlp.down_proj.weight"].T
        head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        return self.norm(x, "model.norm") @ head.T


@needs_checkpoints
@pytest.mark.parametrize("name", ["llama2", "llama3", "llama_biases", "mistral", "qwen2", "qwen3"])
def test_the_cpp_layer_computes_the_same(name):
    """Every architecture with its rotary embedding, biases, norms and window: padded, and step by
    step through a cache."""
    directory = CHECKPOINTS / name
    config = json.loads((directory / "config.json").read_text())
    if config.get("mlp_bias") or config["hidden_act"] != "silu":
        pytest.skip("this decoder has no such MLP")
    decoder, model = Decoder(directory), flashmha.Model.load(directory, dtype="float32")
    ids = torch.randint(0, config["vocab_size"], (2, 23))
    mask = torch.ones_like(ids)
    mask[1, :6] = 0
    with torch.no_grad():
        found = decoder(ids, lambda i, layer, x: layer(x, mask))
        expected = model(ids, mask)
        torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], rtol=1e-4, atol=1e-4)
        leftpad = torch.tensor([0, 6], dtype=torch.int32)
        caches = [layer.new_cache(2, 30, leftpad) for layer in decoder.layers]
        steps = [decoder(ids[:, a:b], lambda i, layer, x: layer(x, cache=caches[i]))
                 for a, b in ((0, 9), (9, 10), (10, 14), (14, 15), (15, 23))]
    torch.testing.assert_close(torch.cat(steps, 1)[mask.bool()], expected[mask.bool()], rtol=1e-4,
                               atol=1e-4)


def test_cache(device):
    layer = build(device, torch.float32 if device == "cpu" else torch.bfloat16, rope_theta=100.0,
                  sinks=True, window=5)
    x = torch.randn(2, 12, 48, device=device).to(layer.q_proj.weight.dtype)
    cache = layer.new_cache(2, 12)
    with torch.no_grad():
        expected = layer(x)
        for _ in range(2):
            parts = [layer(x[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 12))]
            tolerance = 1e-5 if device == "cpu" else 0.05
            torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=tolerance,
                                       atol=tolerance)
            assert cache.seqlens.tolist() == [12, 12] and cache.length == cache.capacity == 12
            with pytest.raises(ValueError, match="the cache has 12 slots; 12 are filled"):
                layer(x[:, :1], cache=cache)
            cache.reset()
    with pytest.raises(ValueError, match="new_cache takes leftpad"):
        layer(x, torch.ones(2, 12), cache=cache)


def test_packed_batch(device):
    layer = build(device, torch.float32 if device == "cpu" else torch.bfloat16, rope_theta=50.0)
    x = torch.randn(2, 8, 48, device=device).to(layer.q_proj.weight.dtype)
    ends = torch.tensor([0, 3, 8, 16], dtype=torch.int32, device=device)
    out = layer(x, cu_seqlens=ends).flatten(0, 1)
    assert torch.equal(layer(x, cu_seqlens=ends, max_seqlen=8).flatten(0, 1), out)
    for begin, end in ((0, 3), (3, 8), (8, 16)):
        alone = layer(x.flatten(0, 1)[None, begin:end])[0]
        torch.testing.assert_close(out[begin:end], alone)
    with pytest.raises(ValueError, match="neither with a mask"):
        layer(x, torch.ones(2, 8), cu_seqlens=ends)


def test_positions(device):
    layer = build(device, torch.float32 if device == "cpu" else torch.bfloat16, rope_theta=50.0,
                  max_position_embeddings=8)
    x = torch.randn(2, 6, 48, device=device).to(layer.q_proj.weight.dtype)
    positions = torch.arange(6, device=device) + 100  # the same distances
    found = layer(x, position_ids=positions[None].expand(2, -1))
    tolerance = 1e-4 if device == "cpu" else 0.3
    torch.testing.assert_close(found, layer(x), rtol=tolerance, atol=tolerance)
    again = layer(x, position_ids=positions[None].expand(2, -1), num_positions=106)
    assert torch.equal(again, found)


def test_cross_attention():
    layer = build(dtype=torch.float64)
    x, source = torch.randn(2, 7, 48).double(), torch.randn(2, 9, 48).double()
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 3:] = False
    out = layer(x, mask, encoder_states=source)
    for b in range(2):
        torch.testing.assert_close(out[b], plain(layer, x[b], source[b, mask[b]]))


@pytest.mark.parametrize("case", OPTIONS)
@pytest.mark.parametrize("inputs", ["dense", "padded", "packed"])
def test_compiled_in_one_graph(device, case, inputs):
    torch._dynamo.reset()
    layer = build(device, torch.float32 if device == "cpu" else torch.bfloat16, **OPTIONS[case])
    x = torch.randn(2, 10, 48, device=device).to(layer.q_proj.weight.dtype)
    arguments, real = dict(), torch.ones(2, 10, dtype=torch.bool, device=device)
    if inputs == "padded":
        arguments["attention_mask"] = real.long()
        arguments["attention_mask"][1, 3:6] = 0
        real = arguments["attention_mask"].bool()
    elif inputs == "packed":
        arguments.update(cu_seqlens=torch.tensor([0, 7, 20], dtype=torch.int32, device=device),
                         max_seqlen=13)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    tolerance = 1e-4 if device == "cpu" else 0.1
    results = []
    for function in (layer, compiled):
        out = function(x, **arguments)[real]
        results.append((out, *torch.autograd.grad(out.square().sum(), list(layer.parameters()))))
    largest = max(x.abs().max().item() for x in results[0])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.gpu
def test_nothing_waits_for_a_gpu(monkeypatch):
    layer = build("cuda", torch.bfloat16, rope_theta=1e4, dropout=0.1)
    x = torch.randn(2, 10, 48, device="cuda", dtype=torch.bfloat16)
    ends = torch.tensor([0, 7, 20], dtype=torch.int32, device="cuda")
    mask = torch.ones(2, 10, dtype=torch.long, device="cuda")
    mask[1, 3:6] = 0
    positions = torch.arange(10, device="cuda")[None]
    cache = layer.new_cache(2, 20)
    layer(x, mask)  # finds the rows of this mask, for all layers
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(x).sum().backward()
        layer(x, mask).sum().backward()
        layer(x, cu_seqlens=ends, max_seqlen=13).sum().backward()
        layer(x, position_ids=positions, num_positions=10).sum().backward()
        layer(x, cache=cache)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_dropout_is_for_training():
    layer = build(dtype=torch.float64, dropout=0.5)
    x = torch.randn(1, 9, 48).double()
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="must be a multiple of num_kv_heads"):
        flashmha.FlashMultiHeadAttention(48, 6, 4)
    with pytest.raises(ValueError, match="or head_dim given"):
        flashmha.FlashMultiHeadAttention(50, 6)
