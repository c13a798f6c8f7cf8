"""Tiny random models of Transformers: attn_implementation="flashmha" against "eager"."""

import copy

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import flashmha.transformers  # noqa: E402
from transformers import masking_utils  # noqa: E402

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


def build(name, seed=0, **changes):
    config_class, options = MODELS[name]
    config = getattr(transformers, config_class)(**{**COMMON, **options, **changes})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)  # attention that looks somewhere
    return model.eval()


def pair(name, **changes):
    """The same model twice: eager and flashmha."""
    eager = build(name, **changes)
    flash = copy.deepcopy(eager)
    flash.set_attn_implementation("flashmha")
    assert flash.config._attn_implementation == "flashmha"
    return eager, flash


def tokens(batch, length):
    return torch.randint(3, VOCABULARY, (batch, length))


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("padding", ["none", "left", "right", "middle"])
@pytest.mark.parametrize("name", MODELS)
def test_padding(name, padding):
    eager, flash = pair(name)
    ids, mask = tokens(3, 14), mask_of(padding, 3, 14)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = eager(ids, attention_mask=mask, position_ids=positions).logits
        found = flash(ids, attention_mask=mask, position_ids=positions).logits
    assert_same(found[mask.bool()], expected[mask.bool()])
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("name", MODELS)
def test_packed_sequences(name):
    """position_ids that start again: each sequence is computed alone, in every row."""
    eager, flash = pair(name)
    ids = tokens(2, 15)
    positions = torch.tensor([[*range(4), *range(9), *range(2)], [*range(8), *range(7)]])
    with torch.no_grad():
        found = flash(ids, position_ids=positions, use_cache=False).logits
        assert_same(found, eager(ids, position_ids=positions, use_cache=False).logits)
        if name == "gpt_oss":  # eager, too, gives something else for a sequence alone
            return
        for row, ends in ((0, [0, 4, 13, 15]), (1, [0, 8, 15])):
            for begin, end in zip(ends, ends[1:]):
                alone = eager(ids[row:row + 1, begin:end]).logits
                assert_same(found[row:row + 1, begin:end], alone)


def test_packed_by_lengths():
    eager, flash = pair("llama")
    ids, ends = tokens(1, 12), torch.tensor([0, 5, 12], dtype=torch.int32)
    lengths = dict(cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q=7, max_length_k=7)
    positions = torch.tensor([[*range(5), *range(7)]])
    with torch.no_grad():
        found = flash(ids, position_ids=positions, use_cache=False, **lengths).logits
        for begin, end in ((0, 5), (5, 12)):
            assert_same(found[:, begin:end], eager(ids[:, begin:end]).logits)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", MODELS)
def test_generation(name, cache):
    eager, flash = pair(name)
    ids, mask = tokens(3, 7), mask_of("left", 3, 7)
    options = dict(attention_mask=mask, max_new_tokens=9, min_new_tokens=9, do_sample=False,
                   cache_implementation=cache, disable_compile=True, output_logits=True,
                   return_dict_in_generate=True)
    expected, found = eager.generate(ids, **options), flash.generate(ids, **options)
    assert torch.equal(found.sequences, expected.sequences)
    for a, b in zip(found.logits, expected.logits):
        assert_same(a, b)


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_beam_search(name):
    eager, flash = pair(name)
    ids, mask = tokens(2, 6), mask_of("left", 2, 6)
    options = dict(attention_mask=mask, max_new_tokens=6, num_beams=3, do_sample=False)
    assert torch.equal(flash.generate(ids, **options), eager.generate(ids, **options))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_oss"])
def test_prefill_in_chunks(name, cache):
    eager, flash = pair(name)
    ids, mask = tokens(2, 12), mask_of("left", 2, 12)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = eager(ids, attention_mask=mask, position_ids=positions).logits
        past = (transformers.DynamicCache(config=flash.config) if cache == "dynamic" else
                transformers.StaticCache(config=flash.config, max_cache_len=20))
        found = [flash(ids[:, a:b], attention_mask=mask[:, :b], position_ids=positions[:, a:b],
                       past_key_values=past).logits
                 for a, b in ((0, 5), (5, 9), (9, 10), (10, 12))]
    assert_same(torch.cat(found, 1)[mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_training(name, checkpointing):
    eager, flash = pair(name)
    ids, mask = tokens(3, 12), mask_of("right", 3, 12)
    labels = ids.masked_fill(mask == 0, -100)
    gradients = []
    for model in (eager, flash):
        model.train()
        if checkpointing and model is flash:
            model.gradient_checkpointing_enable()
        loss = model(ids, attention_mask=mask, labels=labels, use_cache=False).loss
        loss.backward()
        gradients.append({key: p.grad for key, p in model.named_parameters()})
    for key, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], expected, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_compiled_in_one_graph(name, padding):
    eager, flash = pair(name)
    ids, mask = tokens(2, 9), mask_of(padding, 2, 9)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    compiled = torch.compile(flash, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = eager(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
        found = compiled(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    assert_same(found[mask.bool()], expected[mask.bool()])
    torch._dynamo.reset()


def test_custom_masks_of_four_dimensions():
    eager, flash = pair("llama")
    ids = tokens(2, 8)
    seen = torch.rand(2, 1, 8, 8) < 0.5
    seen |= torch.eye(8, dtype=torch.bool)
    added = torch.zeros(2, 1, 8, 8).masked_fill(~seen, torch.finfo(torch.float32).min)
    with torch.no_grad():
        expected = eager(ids, attention_mask=added).logits
        assert_same(flash(ids, attention_mask=added).logits, expected)
        assert_same(flash(ids, attention_mask=seen).logits, expected)


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


@pytest.mark.parametrize("training", [False, True])
def test_t5(training):
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=2, dropout_rate=0.0)
    torch.manual_seed(1)
    eager = transformers.T5ForConditionalGeneration._from_config(config,
                                                                 attn_implementation="eager")
    with torch.no_grad():
        for parameter in eager.parameters():
            parameter.normal_(0, 0.2)
    flash = copy.deepcopy(eager)
    flash.set_attn_implementation("flashmha")
    ids, mask = tokens(2, 9), mask_of("right", 2, 9)
    labels = tokens(2, 9)  # as long as the keys: rows of queries must not be taken for padding
    results = []
    for model in (eager, flash):
        model.train(training)
        output = model(input_ids=ids, attention_mask=mask, labels=labels)
        output.loss.backward()
        name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        results.append((output.logits, dict(model.named_parameters())[name].grad))
    assert_same(results[1][0], results[0][0])
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-4)
    options = dict(attention_mask=mask, max_new_tokens=6, num_beams=2, do_sample=False)
    assert torch.equal(flash.eval().generate(ids, **options),
                       eager.eval().generate(ids, **options))


def test_attention_weights_are_refused_not_made_up():
    _, flash = pair("llama")
    with pytest.raises((ValueError, NotImplementedError)):
        flash(tokens(1, 4), output_attentions=True)
