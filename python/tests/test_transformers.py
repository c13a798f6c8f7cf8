"""Tiny random models of Transformers: attn_implementation="flashmha" against "eager".

On a CPU in float32. On a GPU in bfloat16: at most twice the error that eager attention has there,
against eager attention in float32.
"""

import copy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import flashmha
from transformers import masking_utils

import plain as plain_attention

flashmha.transformers.register()
transformers.logging.set_verbosity_error()

VOCABULARY = 97
COMMON = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
              num_attention_heads=4, num_key_value_heads=2, head_dim=16, pad_token_id=0,
              bos_token_id=1, eos_token_id=2, max_position_embeddings=128)
MODELS = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {}),
    "mistral": ("MistralConfig", dict(sliding_window=5)),
    "gemma2": ("Gemma2Config", dict(sliding_window=5, attn_logit_softcapping=2.0,
                                    query_pre_attn_scalar=9)),
    "gemma3": ("Gemma3TextConfig", dict(sliding_window=5, layer_types=[
        "sliding_attention", "full_attention", "sliding_attention"])),
    "gpt_oss": ("GptOssConfig", dict(sliding_window=5, num_local_experts=2, num_experts_per_tok=1,
                                     layer_types=["sliding_attention", "full_attention",
                                                  "sliding_attention"])),
}


def config_of(name, **changes):
    config_class, options = MODELS[name]
    return getattr(transformers, config_class)(**{**COMMON, **options, **changes})


def build(config, seed=0, make=transformers.AutoModelForCausalLM.from_config):
    torch.manual_seed(seed)
    model = make(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)  # attention that looks somewhere
    return model.eval()


class Models:
    """The same model three times: eager in float32, eager and flashmha in the device's type."""

    def __init__(self, model, device, dtype=None):
        if dtype is None:
            dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.device, self.dtype = device, dtype
        self.flash = copy.deepcopy(model).to(device, dtype)
        self.flash.set_attn_implementation("flashmha")
        assert self.flash.config._attn_implementation == "flashmha"
        self.plain = copy.deepcopy(model).to(device, dtype)
        self.exact = copy.deepcopy(self.plain).float()  # of the same rounded weights
        self.all = (self.flash, self.plain, self.exact)

    def check(self, results, real=None, slack=0.01):
        """What a function of each of the models gave."""
        found, plain, exact = (x if real is None else x[real] for x in results)
        assert torch.isfinite(found).all()
        if self.dtype == torch.float32:
            torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)
        else:
            plain_attention.assert_accurate(found, plain, exact, slack=slack)

    def logits(self, ids, real=None, **arguments):
        """Of flash, checked; arguments go to the device."""
        ids, real = ids.to(self.device), None if real is None else real.to(self.device)
        arguments = {name: x.to(self.device) if isinstance(x, torch.Tensor) else x
                     for name, x in arguments.items()}
        with torch.no_grad():
            results = [model(ids, **arguments).logits for model in self.all]
        self.check(results, real)
        return results[0]


def models(name, device, dtype=None, **changes):
    if name == "gpt_oss" and device == "cuda":
        changes["num_local_experts"] = 1  # no choice that rounding could turn over
    return Models(build(config_of(name, **changes)), device, dtype)


def tokens(batch, length):
    return torch.randint(3, VOCABULARY, (batch, length))


def mask_of(kind, batch, length):
    mask = torch.ones(batch, length, dtype=torch.long)
    for b in range(1, batch):
        if kind == "left":
            mask[b, :2 * b + 1] = 0
        elif kind == "right":
            mask[b, -2 * b - 1:] = 0
        elif kind == "middle":
            mask[b, 3:3 + 2 * b] = 0
    return mask


def positions_of(mask):
    return (mask.cumsum(-1) - 1).clamp(min=0)


@pytest.mark.parametrize("padding", ["none", "left", "right", "middle"])
@pytest.mark.parametrize("name", MODELS)
def test_padding(device, name, padding):
    ids, mask = tokens(3, 14), mask_of(padding, 3, 14)
    models(name, device).logits(ids, mask.bool(), attention_mask=mask,
                                position_ids=positions_of(mask))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_accuracy_of_16_bits(place, name):
    """At most twice the error of eager attention in the same type, end to end."""
    ids, mask = tokens(3, 60), mask_of("left", 3, 60)
    models(name, *place).logits(ids, mask.bool(), attention_mask=mask,
                                position_ids=positions_of(mask))


@pytest.mark.parametrize("name", MODELS)
def test_packed_sequences(device, name):
    """position_ids that start again: each sequence is computed alone, in every row."""
    trio, ids = models(name, device), tokens(2, 15)
    positions = torch.tensor([[*range(4), *range(9), *range(2)], [*range(8), *range(7)]])
    found = trio.logits(ids, position_ids=positions, use_cache=False)
    if name == "gpt_oss":  # eager, too, gives something else for a sequence alone
        return
    for row, ends in ((0, [0, 4, 13, 15]), (1, [0, 8, 15])):
        for begin, end in zip(ends, ends[1:]):
            part = ids[row:row + 1, begin:end].to(device)
            with torch.no_grad():
                plain, exact = (model(part).logits for model in trio.all[1:])
            trio.check((found[row:row + 1, begin:end], plain, exact))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("names", [("max_length_q", "max_length_k"),
                                   ("max_seqlen_q", "max_seqlen_k")])
def test_packed_by_lengths(device, names, compiled):
    trio, ids = models("llama", device), tokens(1, 12).to(device)
    ends = torch.tensor([0, 5, 12], dtype=torch.int32, device=device)
    lengths = dict.fromkeys(names, 7)
    call = trio.flash
    if compiled:  # a mask that is spelt out, and knows nothing of the lengths
        torch._dynamo.reset()
        call = torch.compile(trio.flash, backend="aot_eager")
    positions = None if compiled else torch.tensor([[*range(5), *range(7)]], device=device)
    with torch.no_grad():
        found = call(ids, position_ids=positions, use_cache=False, cu_seq_lens_q=ends,
                     cu_seq_lens_k=ends, **lengths).logits
        for begin, end in ((0, 5), (5, 12)):
            where = torch.arange(begin, end, device=device)[None] if compiled else None
            plain, exact = (model(ids[:, begin:end], position_ids=where).logits
                            for model in trio.all[1:])
            trio.check((found[:, begin:end], plain, exact))
    torch._dynamo.reset()


def check_generated(trio, ids, mask, **options):
    """Generated tokens: equal on a CPU; on a GPU, whose rounding turns ties over, the logits of
    what was generated are those that the models give to it."""
    ids, mask = ids.to(trio.device), mask.to(trio.device)
    result = trio.flash.generate(ids, attention_mask=mask, output_logits=True,
                                 return_dict_in_generate=True, **options)
    if trio.dtype == torch.float32:
        expected = trio.exact.generate(ids, attention_mask=mask, **options)
        assert torch.equal(result.sequences, expected)
    if options.get("num_beams", 1) > 1:
        return
    sequences = result.sequences
    full = torch.nn.functional.pad(mask, (0, sequences.shape[1] - mask.shape[1]), value=1)
    with torch.no_grad():
        plain, exact = (model(sequences, attention_mask=full,
                              position_ids=positions_of(full)).logits for model in trio.all[1:])
    steps = slice(ids.shape[1] - 1, -1)
    trio.check((torch.stack(result.logits, 1), plain[:, steps], exact[:, steps]))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", MODELS)
def test_generation(device, name, cache):
    check_generated(models(name, device), tokens(3, 7), mask_of("left", 3, 7), max_new_tokens=9,
                    min_new_tokens=9, do_sample=False, cache_implementation=cache,
                    disable_compile=True)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_beam_search(device, name):
    check_generated(models(name, device), tokens(2, 6), mask_of("left", 2, 6), max_new_tokens=6,
                    num_beams=3, do_sample=False)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss"])
def test_prefill_in_chunks(device, name, cache, padding):
    """Right padding, too: there the cache has holes, which nobody sees."""
    trio = models(name, device)
    ids, mask = tokens(2, 12).to(device), mask_of("left", 2, 12).to(device)
    if padding == "right":
        mask[:] = 1
        mask[1, 2:5] = 0  # of the first chunk
    positions = positions_of(mask)
    with torch.no_grad():
        plain, exact = (model(ids, attention_mask=mask, position_ids=positions).logits
                        for model in trio.all[1:])
        past = (transformers.DynamicCache(config=trio.flash.config) if cache == "dynamic" else
                transformers.StaticCache(config=trio.flash.config, max_cache_len=20))
        found = [trio.flash(ids[:, a:b], attention_mask=mask[:, :b], position_ids=positions[:, a:b],
                            past_key_values=past).logits
                 for a, b in ((0, 5), (5, 9), (9, 10), (10, 12))]
    trio.check((torch.cat(found, 1), plain, exact), mask.bool())


def gradients_of(model, loss):
    loss.backward()
    return {key: p.grad for key, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_training(device, name, checkpointing):
    trio = models(name, device)
    ids, mask = tokens(3, 12).to(device), mask_of("right", 3, 12).to(device)
    labels = ids.masked_fill(mask == 0, -100)
    gradients = []
    for model in trio.all:
        model.train()
        if checkpointing and model is trio.flash:
            model.gradient_checkpointing_enable()
        gradients.append(gradients_of(model, model(ids, attention_mask=mask, labels=labels,
                                                   use_cache=False).loss))
    for key, exact in gradients[2].items():
        found, plain = gradients[0][key], gradients[1][key]
        if trio.dtype == torch.float32:
            torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4, msg=key)
        else:
            scale = exact.abs().max().item() or 1.0
            plain_attention.assert_accurate(found / scale, plain / scale, exact / scale, factor=3,
                                            slack=0.03)


def test_dropout_is_for_training(device):
    trio = models("llama", device, attention_dropout=0.5)
    ids = tokens(2, 9).to(device)
    trio.logits(ids)
    trio.flash.train()
    first, second = trio.flash(ids).logits, trio.flash(ids).logits
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    first = trio.flash(ids).logits
    torch.manual_seed(1)
    assert torch.equal(trio.flash(ids).logits, first)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_compiled_in_one_graph(device, name, padding):
    torch._dynamo.reset()
    trio = models(name, device)
    ids, mask = tokens(2, 9).to(device), mask_of(padding, 2, 9).to(device)
    arguments = dict(attention_mask=mask, position_ids=positions_of(mask), use_cache=False)
    compiled = torch.compile(trio.flash, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        plain, exact = (model(ids, **arguments).logits for model in trio.all[1:])
        trio.check((compiled(ids, **arguments).logits, plain, exact), mask.bool())
    torch._dynamo.reset()


def test_custom_masks_of_four_dimensions(device):
    trio, ids = models("llama", device), tokens(2, 8)
    seen = torch.rand(2, 1, 8, 8) < 0.5
    seen |= torch.eye(8, dtype=torch.bool)
    added = torch.zeros(2, 1, 8, 8).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        plain, exact = (model(ids.to(device), attention_mask=added.to(device, model.dtype)).logits
                        for model in trio.all[1:])
        for mask in (added.to(trio.dtype), seen):
            found = trio.flash(ids.to(device), attention_mask=mask.to(device)).logits
            trio.check((found, plain, exact))


# ---- masks ---------------------------------------------------------------------------------------


def masks_that_arrive(call):
    """Dimensions of the masks that attention gets: 0 for none."""
    from transformers import AttentionInterface

    arrived = []
    original = flashmha.transformers.attention_forward

    def watching(module, query, key, value, attention_mask, *rest, **options):
        arrived.append(0 if attention_mask is None else attention_mask.dim())
        return original(module, query, key, value, attention_mask, *rest, **options)

    AttentionInterface.register("flashmha", watching)
    try:
        with torch.no_grad():
            call()
    finally:
        flashmha.transformers.register()
    return arrived


@pytest.mark.parametrize("name", MODELS)
def test_usual_masks_are_recognised(name):
    """If Transformers changes how it makes them, they become matrices: right, but not small. This
    is where it shows."""
    flash = models(name, "cpu").flash
    layers = flash.config.num_hidden_layers
    ids, left = tokens(2, 9), mask_of("left", 2, 9)
    packed = torch.tensor([[*range(4), *range(5)], [*range(7), *range(2)]])

    def arrives(**arguments):
        return masks_that_arrive(lambda: flash(ids, **arguments))

    assert arrives() == [0] * layers
    assert arrives(attention_mask=torch.ones(2, 9)) == [0] * layers
    assert arrives(attention_mask=left, position_ids=positions_of(left)) == [2] * layers
    # GPT-OSS does not tell its mask where sequences begin.
    dims = 0 if name == "gpt_oss" else 2
    assert arrives(position_ids=packed, use_cache=False) == [dims] * layers
    for cache in ("dynamic", "static"):
        dims = masks_that_arrive(lambda: flash.generate(
            ids, attention_mask=left, max_new_tokens=3, do_sample=False, disable_compile=True,
            cache_implementation=cache))
        assert set(dims) <= {0, 2}, (cache, dims)


def test_patterns_that_are_not_known_are_spelt_out():
    """A mask function of one's own is honoured, not dropped."""
    call = dict(batch_size=1, q_length=6, kv_length=6, q_offset=0, kv_offset=0,
                device=torch.device("cpu"))
    mask = flashmha.transformers.attention_mask

    def prefix(batch, head, q, kv):
        return kv < 3

    function = masking_utils.or_masks(masking_utils.causal_mask_function, prefix)
    found = mask(mask_function=function, **call)
    expected = torch.ones(6, 6).tril().bool()
    expected[:, :3] = True
    assert torch.equal(found[0, 0], expected)
    assert mask(mask_function=masking_utils.causal_mask_function, **call) is None
    window = masking_utils.sliding_window_causal_mask_function(3)
    assert mask(mask_function=window, **call) is None
    holes = torch.tensor([[1, 1, 0, 0, 1, 1]], dtype=torch.bool)
    assert mask(mask_function=window, attention_mask=holes, **call).shape == (1, 1, 6, 6)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_row_of_padding_alone(device, name):
    """It gives something finite, and does not disturb the others."""
    trio, ids = models(name, device), tokens(3, 9)
    mask = mask_of("left", 3, 9)
    mask[1] = 0
    others = torch.tensor([True, False, True])
    found = trio.logits(ids[others], mask[others].bool(), attention_mask=mask[others],
                        position_ids=positions_of(mask[others]))
    with torch.no_grad():
        logits = trio.flash(ids.to(device), attention_mask=mask.to(device),
                            position_ids=positions_of(mask).to(device)).logits
    assert torch.isfinite(logits).all()
    real = mask[others].bool().to(device)
    tolerance = 1e-5 if device == "cpu" else 0.05
    torch.testing.assert_close(logits[others.to(device)][real], found[real], rtol=tolerance,
                               atol=tolerance)


# ---- the attention function itself ---------------------------------------------------------------


def attend(device, seqlen_q=9, seqlen_k=9, dims=(16, 16), causal=True, **options):
    """attention_forward of random tensors, and these as [batch, seqlen, heads, dim]."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    q, k, v = (torch.randn(3, heads, n, dim, device=device).to(dtype).requires_grad_()
               for heads, n, dim in ((4, seqlen_q, dims[0]), (2, seqlen_k, dims[0]),
                                     (2, seqlen_k, dims[1])))
    module = torch.nn.Module()
    module.is_causal = causal
    options.setdefault("attention_mask", None)
    out, weights = flashmha.transformers.attention_forward(module, q, k, v, **options)
    assert weights is None and out.is_contiguous() and out.dtype == q.dtype
    return out, [x.transpose(1, 2) for x in (q, k, v)], (q, k, v)


def test_rows_of_padding_are_zero(device):
    mask = mask_of("left", 3, 9).bool().to(device)
    out, _, leaves = attend(device, attention_mask=mask)
    assert (out[~mask] == 0).all() and (out[mask] != 0).any(-1).all()
    for gradient in torch.autograd.grad(out.square().sum(), leaves):
        assert (gradient.transpose(1, 2)[~mask] == 0).all()


@pytest.mark.parametrize("dims", [(24, 16), (16, 40), (192, 128)])
def test_values_of_another_width(device, dims):
    out, tensors, _ = attend(device, dims=dims)
    assert out.shape == (3, 9, 4, dims[1])
    exact = [x.detach().double() for x in tensors]
    plain_attention.assert_accurate(out, plain_attention.attention(*tensors, causal=True),
                                    plain_attention.attention(*exact, causal=True))


def test_no_queries_give_nothing(device):
    out, _, _ = attend(device, seqlen_q=0)
    assert out.shape == (3, 0, 4, 16)


def test_a_mask_and_lengths_exclude_each_other(device):
    ends = torch.tensor([0, 9, 18, 27], dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match="cu_seq_lens exclude each other"):
        attend(device, attention_mask=mask_of("left", 3, 9).bool().to(device),
               cu_seq_lens_q=ends, cu_seq_lens_k=ends)


def test_lengths_go_with_a_mask_of_four_dimensions(device):
    ends = torch.tensor([0, 4, 9], dtype=torch.int32, device=device)
    seen = torch.ones(9, 9, dtype=torch.bool, device=device).tril()
    added = torch.zeros(9, 9, device=device).masked_fill(~seen, -torch.inf)
    expected = seen.clone()
    expected[4:, :4] = False
    for mask in (seen, added):
        out, tensors, _ = attend(device, attention_mask=mask[None, None],
                                 cu_seq_lens_q=ends, cu_seq_lens_k=ends)
        exact = [x.detach().double() for x in tensors]
        plain_attention.assert_accurate(out, plain_attention.attention(*tensors, mask=expected),
                                        plain_attention.attention(*exact, mask=expected))


@pytest.mark.parametrize("switch", ["argument", "environment", "pytorch"])
def test_deterministic_switches(monkeypatch, switch):
    from flashmha import _native

    asked = []
    original = _native.attend

    def watching(*arguments, **options):
        if options.get("dout") is not None:
            asked.append(options["deterministic"])
        return original(*arguments, **options)

    monkeypatch.setattr(_native, "attend", watching)

    def backward(**options):
        mask = mask_of("left", 3, 9).bool()
        out, _, _ = attend("cpu", attention_mask=mask, **options)
        out.sum().backward()
        return asked.pop()

    assert not backward()
    if switch == "argument":
        assert backward(deterministic=True)
    elif switch == "environment":
        monkeypatch.setenv("FLASH_ATTENTION_DETERMINISTIC", "1")
        assert backward()
    else:
        torch.use_deterministic_algorithms(True)
        try:
            assert backward()
        finally:
            torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("training", [False, True])
def test_t5(device, training):
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=2, dropout_rate=0.0)
    trio = Models(build(config, 1, transformers.T5ForConditionalGeneration._from_config), device)
    ids, mask = tokens(2, 9).to(device), mask_of("right", 2, 9).to(device)
    labels = tokens(2, 9).to(device)  # as many as keys: queries must not be taken for padding
    results = []
    for model in trio.all:
        model.train(training)
        output = model(input_ids=ids, attention_mask=mask, labels=labels)
        gradients = gradients_of(model, output.loss)
        bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        results.append((output.logits, gradients[bias]))
    trio.check([logits for logits, _ in results])
    scale = results[2][1].abs().max()
    trio.check([gradient / scale for _, gradient in results], slack=0.05)
    for model in trio.all:
        model.eval()
    if device == "cpu":
        options = dict(attention_mask=mask, max_new_tokens=6, num_beams=2, do_sample=False)
        assert torch.equal(trio.flash.generate(ids, **options),
                           trio.exact.generate(ids, **options))


def test_attention_weights_are_refused_not_made_up():
    flash = models("llama", "cpu").flash
    with pytest.raises((ValueError, NotImplementedError)):
        flash(tokens(1, 4), output_attentions=True)
