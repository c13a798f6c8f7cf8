#!/usr/bin/env python3
"""Makes checkpoints/: tiny decoders of Transformers as it saves them, with their answers.

    python3 make_checkpoints.py [--out checkpoints]

A folder a model: config.json and model.safetensors, written by save_pretrained;
config.transformers4.json, the same config as Transformers 4 wrote them (checked here: Transformers
reads both to the same config); answers.safetensors.

The answers are computed in float64: the eager models in double precision, with the places where
Transformers falls back to float32 (RMSNorm, softmax, rotary tables) kept in double. The unchanged
models in float32 are run beside them; logits, losses and tokens must agree. No parameter has its
default value, and all are exact in the dtype that they are stored in.

Logits of padded tokens mean nothing and are stored as 0; labels are -100 for padding and for the
first real token of a row (nothing that is real predicts it). Padding is on the left. Padding on the
right must give the same logits, which is checked here, so its answers need no room.

Training: the same batch ten times, torch.optim.AdamW with lr 1e-3, betas (0.9, 0.95), eps 1e-8,
weight decay 0.1 on matrices (the embedding too) and 0 on vectors, no clipping. The loss is the one
before each step.

Beam search: generate of Transformers with the settings that the answers name.
"""

import argparse
import contextlib
import copy
import json
import pathlib

import torch
import transformers
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy, softmax

BASE = {"vocab_size": 40, "hidden_size": 20, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 64, "initializer_range": 0.3, "bos_token_id": None,
        "eos_token_id": None, "pad_token_id": None, "attn_implementation": "eager"}
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
GEMMA3_ROPE = {"full_attention": {"rope_type": "linear", "rope_theta": 100000.0, "factor": 8.0},
               "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0}}
SLIDING, FULL = "sliding_attention", "full_attention"

# name: (class, seed, dtype of the file, config). Windows are shorter than the sequences. With these
# seeds the best logit leads by 0.01 at least, so that rounding cannot change a token.
CHECKPOINTS = {
    "llama2": ("Llama", 2, "bfloat16", {"num_attention_heads": 2, "head_dim": None,
                                        "rope_parameters": DEFAULT_ROPE}),
    "llama3": ("Llama", 3, "float16", {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE,
                                       "rms_norm_eps": 1e-5}),
    "llama_biases": ("Llama", 3, "float32", {"num_hidden_layers": 1, "attention_bias": True,
                                             "mlp_bias": True, "rope_parameters": DEFAULT_ROPE}),
    "mistral": ("Mistral", 1, "bfloat16", {"sliding_window": 5, "rope_parameters": DEFAULT_ROPE}),
    "qwen2": ("Qwen2", 3, "bfloat16", {"num_key_value_heads": 1, "use_sliding_window": True,
                                       "sliding_window": 6, "max_window_layers": 1,
                                       "rope_parameters": DEFAULT_ROPE}),
    "qwen3": ("Qwen3", 5, "bfloat16", {"head_dim": 12, "rms_norm_eps": 1e-5,
                                       "rope_parameters": DEFAULT_ROPE | {"rope_theta": 1e6}}),
    "gemma2": ("Gemma2", 1, "bfloat16", {"num_hidden_layers": 3, "sliding_window": 4,
                                         "query_pre_attn_scalar": 13,
                                         "attn_logit_softcapping": 2.0,
                                         "final_logit_softcapping": 5.0,
                                         "rope_parameters": DEFAULT_ROPE}),
    "gemma3": ("Gemma3", 1, "bfloat16", {"num_hidden_layers": 3, "sliding_window": 5,
                                         "layer_types": [SLIDING, FULL, SLIDING],
                                         "query_pre_attn_scalar": 11,
                                         "rope_parameters": GEMMA3_ROPE}),
}
BATCH, SEQLEN, NUM_PADS, NEW_TOKENS, STEPS = 2, 20, 7, 14, 10
NUM_BEAMS, BEAM_TOKENS = 3, 10
TRAINING = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1,
            "steps": STEPS}


# ---- double precision where Transformers has float32 ---------------------------------------------

def norm_in_double(self, hidden_states):
    eps = self.eps if hasattr(self, "eps") else self.variance_epsilon
    weight = 1.0 + self.weight if type(self).__name__.startswith("Gemma") else self.weight
    return weight * hidden_states * torch.rsqrt(hidden_states.pow(2).mean(-1, keepdim=True) + eps)


def rotary_in_double(self, x, position_ids, layer_type=None):
    inv_freq = self.frequencies[layer_type]
    freqs = position_ids[..., None] * inv_freq
    emb = torch.cat((freqs, freqs), dim=-1)
    return emb.cos(), emb.sin()


def frequencies_of(parameters, float32):
    """Those of the model, or where their formula is short once more in double precision."""
    dim = 2 * len(float32)
    exact = parameters["rope_theta"] ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    exact /= parameters["factor"] if parameters["rope_type"] == "linear" else 1.0
    if parameters["rope_type"] == "llama3":
        return float32.double()
    assert (exact / float32 - 1.0).abs().max() < 1e-6
    return exact


def to_double(model):
    """A copy of the model whose forward is float64 throughout (inside of double_softmax)."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = norm_in_double.__get__(module)
        if kind.endswith("RotaryEmbedding"):
            parameters = module.config.rope_parameters
            if "rope_type" in parameters:
                module.frequencies = {None: frequencies_of(parameters, module.inv_freq)}
            else:
                module.frequencies = {
                    key: frequencies_of(value, getattr(module, f"{key}_inv_freq"))
                    for key, value in parameters.items()}
            module.forward = rotary_in_double.__get__(module)
        if kind.endswith("ScaledWordEmbedding"):
            module.embed_scale.copy_(torch.tensor(module.scalar_embed_scale))
    return model


@contextlib.contextmanager
def double_softmax():
    """Eager attention asks for a softmax in float32: in float64, of float64."""
    def wide(x, dim=None, dtype=None, **options):
        return softmax(x, dim=dim, dtype=None if x.dtype == torch.float64 else dtype, **options)
    try:
        torch.nn.functional.softmax = wide
        yield
    finally:
        torch.nn.functional.softmax = softmax


# ---- one model -----------------------------------------------------------------------------------

def make_model(kind, dtype, config):
    config_class = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    config = getattr(transformers, config_class)(**BASE | config)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms are ones (or zeros) and biases zeros by default
                parameter += 0.2 * torch.randn_like(parameter)
            parameter.copy_(parameter.to(dtype))
    return model


def transformers4(config):
    """config.json of the same model as Transformers 4.40 wrote it."""
    old = config.to_diff_dict()
    rope = old.pop("rope_parameters")
    old["torch_dtype"] = old.pop("dtype")
    if config.model_type == "gemma3_text":
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
        old["sliding_window_pattern"] = 2  # says the same as layer_types
        del old["_sliding_window_pattern"]
    if config.model_type in ("gemma2", "gemma3_text"):
        del old["tie_word_embeddings"]  # the default
    old.pop("layer_types", None)  # follow from what else there is
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if config.model_type == "llama":
        old["pretraining_tp"] = 1
    again = type(config).from_dict(copy.deepcopy(old)).to_dict()
    for key, value in config.to_dict().items():
        assert again[key] == value or key[0] == "_", (key, again[key], value)
    return old


def make_cases(vocab_size):
    input_ids = torch.randint(1, vocab_size, (BATCH, SEQLEN))
    full = torch.ones_like(input_ids)
    padded = full.clone()
    padded[1, :NUM_PADS] = 0
    return {"full": (input_ids, full), "left_padded": (input_ids * padded, padded)}


def positions_of(mask):
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def labels_of(input_ids, mask):
    predictable = mask * torch.nn.functional.pad(mask, (1, 0))[:, :-1]
    return torch.where(predictable > 0, input_ids, -100)


def forward(model, input_ids, mask):
    """Logits, zero where there is padding, and the loss."""
    logits = model(input_ids=input_ids, attention_mask=mask, position_ids=positions_of(mask)).logits
    labels = labels_of(input_ids, mask)
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    return logits * mask[..., None], loss


def check_right_padding(model, input_ids, mask, logits):
    """The rows of a batch that is padded on the left, padded on the right."""
    pads = (1 - mask).sum(dim=1).tolist()
    roll = lambda x: torch.stack([row.roll(-n, 0) for row, n in zip(x, pads)])
    right, _ = forward(model, roll(input_ids), roll(mask))
    assert (right - roll(logits)).abs().max() < 1e-12


def generate(model, input_ids, mask):
    """Greedy tokens through Transformers' generate, and the least lead of a chosen logit."""
    found = model.generate(input_ids, attention_mask=mask, do_sample=False, pad_token_id=0,
                           max_new_tokens=NEW_TOKENS, return_dict_in_generate=True,
                           output_logits=True)
    best = torch.stack(found.logits).topk(2, dim=-1).values
    return found.sequences, (best[..., 0] - best[..., 1]).min().item()


def beam_search(model, input_ids, mask, settings):
    found = model.generate(input_ids, attention_mask=mask, do_sample=False, pad_token_id=0,
                           num_return_sequences=NUM_BEAMS, return_dict_in_generate=True,
                           output_scores=True, **settings)
    return found.sequences, found.sequences_scores


def beam_settings(tokens):
    """The end token is one that greedy search comes upon, so that beams end early."""
    common = {"num_beams": NUM_BEAMS, "max_new_tokens": BEAM_TOKENS}
    return [common | {"length_penalty": 1.0, "early_stopping": False, "eos_token_id": None},
            common | {"length_penalty": 0.5, "early_stopping": False,
                      "eos_token_id": int(tokens[0, SEQLEN + 3])},
            common | {"length_penalty": 2.0, "early_stopping": True,
                      "eos_token_id": int(tokens[1, SEQLEN + 5])}]


def solve_beams(model, double, input_ids, mask, tokens, file):
    described = []
    for index, settings in enumerate(beam_settings(tokens)):
        sequences, scores = beam_search(double, input_ids, mask, settings)
        sequences32, scores32 = beam_search(model, input_ids, mask, settings)
        gap = -scores.view(BATCH, NUM_BEAMS).diff(dim=1).max()  # sorted: falling
        assert torch.equal(sequences, sequences32) and (scores - scores32).abs().max() < 1e-4
        assert gap > 1e-3
        file[f"beam{index}.tokens"], file[f"beam{index}.scores"] = sequences, scores
        described.append(settings)
    return described


def train(model, input_ids, mask):
    model = to_double(model) if model.dtype == torch.float64 else copy.deepcopy(model)
    groups = [{"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        _, loss = forward(model, input_ids, mask)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return losses, model


def solve_case(name, model, double, input_ids, mask, file):
    """Tensors of one batch into the file; what is said about it; the loss; the trained model."""
    logits, loss = forward(double, input_ids, mask)
    logits32, loss32 = forward(model, input_ids, mask)
    assert (logits - logits32).abs().max() < 3e-5 and abs(loss - loss32) < 3e-6
    theirs = model(input_ids=input_ids, attention_mask=mask, position_ids=positions_of(mask),
                   labels=labels_of(input_ids, mask)).loss
    assert abs(theirs - loss32) < 1e-6
    check_right_padding(double, input_ids, mask, logits)
    tokens, margin = generate(double, input_ids, mask)
    tokens32, _ = generate(model, input_ids, mask)
    assert torch.equal(tokens, tokens32) and margin > 0.01, margin
    losses, trained = train(double, input_ids, mask)
    losses32, _ = train(model, input_ids, mask)
    assert max(abs(a - b) for a, b in zip(losses, losses32)) < 2e-4
    file |= {f"{name}.{key}": value for key, value in {
        "input_ids": input_ids, "attention_mask": mask, "position_ids": positions_of(mask),
        "labels": labels_of(input_ids, mask), "tokens": tokens, "logits": logits.detach()}.items()}
    print(f"  {name:<12} loss {loss.item():.6f} (float32 {loss32.item():.6f}), after {STEPS - 1} "
          f"steps {losses[-1]:.6f} ({losses32[-1]:.6f}), least margin {margin:.4f}")
    return {"name": name, "loss": loss.item(), "training_losses": losses}, loss, trained


def stored(tensor):
    """Integers as int32, results as float32: a tenth of what they are compared with."""
    return tensor.to(torch.float32 if tensor.is_floating_point() else torch.int32).contiguous()


def solve(model):
    """The answers of one model."""
    file, about = {}, {"training": TRAINING, "cases": []}
    double = to_double(model)
    for name, (input_ids, mask) in make_cases(model.config.vocab_size).items():
        case, loss, trained = solve_case(name, model, double, input_ids, mask, file)
        about["cases"].append(case)
    # The last case, which has padding, also has gradients, trained weights and beams.
    about["gradients_of"] = name
    parameters = dict(double.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    file |= {f"gradient.{key}": value for key, value in zip(parameters, gradients)}
    file["trained.model.norm.weight"] = trained.model.norm.weight.detach()
    about["beams"] = solve_beams(model, double, input_ids, mask, file[f"{name}.tokens"], file)
    return {key: stored(value) for key, value in file.items()}, about


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="checkpoints", type=pathlib.Path)
    parser.add_argument("--only", help="one of the checkpoints")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    made_by = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"

    for name, (kind, seed, dtype, config) in CHECKPOINTS.items():
        if arguments.only not in (None, name):
            continue
        print(name)
        torch.manual_seed(seed)
        model = make_model(kind, getattr(torch, dtype), config)
        folder = arguments.out / name
        saved = copy.deepcopy(model).to(getattr(torch, dtype))
        saved.save_pretrained(folder)
        (folder / "generation_config.json").unlink()
        (folder / "config.transformers4.json").write_text(
            json.dumps(transformers4(saved.config), indent=2, sort_keys=True) + "\n")
        with double_softmax():
            answers, about = solve(model)
        about = {"made_by": made_by} | about
        save_file(answers, folder / "answers.safetensors",
                  metadata={"truth": json.dumps(about, separators=(",", ":"))})
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"  {sum(p.numel() for p in model.parameters())} parameters, {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
