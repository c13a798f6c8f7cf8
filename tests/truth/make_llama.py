#!/usr/bin/env python3
"""Makes llama.safetensors: tiny decoders of Transformers with logits, loss, every gradient, greedy
tokens and ten training losses.

    python3 make_llama.py [--out llama.safetensors]

The truth is computed in float64: the models in double precision, with the two places where
Transformers falls back to float32 (RMSNorm, rotary tables) kept in double. The unchanged models in
float32 are run beside them; logits, losses and tokens must agree. Weights are exact in bfloat16.

Padding is on the left. Logits of padded tokens mean nothing and are stored as 0; labels are -100
for padding and for the first real token of a row (nothing that is real predicts it).

Training: the same batch ten times, torch.optim.AdamW with lr 1e-3, betas (0.9, 0.95), eps 1e-8,
weight decay 0.1 on matrices (the embedding too) and 0 on vectors, no clipping. The loss is the one
before each step.
"""

import argparse
import copy
import json

import torch
import transformers
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers.models.llama import modeling_llama
from transformers.models.mistral import modeling_mistral
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

MAIN = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 16}

# name: (model, seed, config). What differs from Llama: qwen2 has biases on q, k and v, qwen3
# normalises the heads of q and k and has head_dim != hidden / heads, mistral has a window. With
# these seeds the best logit leads by 0.01 at least, so that rounding cannot change a token.
VARIANTS = {
    "llama": ("Llama", 5, MAIN),
    "llama_tied_mha": ("Llama", 24, SMALL | {"tie_word_embeddings": True,
                                             "num_key_value_heads": 4}),
    "llama_long_rope": ("Llama", 2, SMALL | {"num_hidden_layers": 1,
                                             "rope_parameters": LLAMA3_ROPE}),
    "qwen2": ("Qwen2", 0, SMALL | {"num_key_value_heads": 1}),
    "qwen3": ("Qwen3", 14, SMALL | {"head_dim": 12}),
    "mistral": ("Mistral", 3, SMALL | {"sliding_window": 5}),
}
BATCH, SEQLEN, NUM_PADS, NEW_TOKENS, STEPS = 2, 24, 7, 16, 10


# ---- double precision where Transformers has float32 ---------------------------------------------

def norm_in_double(self, hidden_states):
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    return self.weight * hidden_states * torch.rsqrt(variance + self.variance_epsilon)


def rotary_in_double(self, x, position_ids):
    freqs = position_ids[..., None] * self.inv_freq
    emb = torch.cat((freqs, freqs), dim=-1)
    return emb.cos() * self.attention_scaling, emb.sin() * self.attention_scaling


def to_double(model):
    """A copy of the model whose forward is float64 throughout."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = norm_in_double.__get__(module)
        if kind.endswith("RotaryEmbedding"):
            module.forward = rotary_in_double.__get__(module)
            if module.rope_type == "default":  # the angles too; scaled ones stay as they are
                dim = 2 * len(module.inv_freq)
                steps = torch.arange(0, dim, 2, dtype=torch.float64) / dim
                module.inv_freq = module.config.rope_parameters["rope_theta"] ** -steps
    return model


# ---- one model -----------------------------------------------------------------------------------

def make_model(kind, config):
    config = getattr(transformers, f"{kind}Config")(
        **{"max_position_embeddings": 64, "initializer_range": 0.15, "bos_token_id": None,
           "eos_token_id": None, "attn_implementation": "sdpa",
           "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}} | config)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms are ones and biases zeros by default
                parameter += 0.2 * torch.randn_like(parameter)
            parameter.copy_(parameter.bfloat16())
    return model


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


def generate(model, input_ids, mask):
    """Greedy tokens through Transformers' generate, and the least lead of a chosen logit."""
    found = model.generate(input_ids, attention_mask=mask, do_sample=False, pad_token_id=0,
                           max_new_tokens=NEW_TOKENS, return_dict_in_generate=True,
                           output_logits=True)
    best = torch.stack(found.logits).topk(2, dim=-1).values
    return found.sequences, (best[..., 0] - best[..., 1]).min().item()


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


def gradients_of(model, loss):
    parameters = dict(model.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()))))


def solve_case(name, model, double, input_ids, mask):
    """Tensors and numbers of one batch, and the checks against the unchanged model in float32."""
    logits, loss = forward(double, input_ids, mask)
    logits32, loss32 = forward(model, input_ids, mask)
    assert (logits - logits32).abs().max() < 2e-5 and abs(loss - loss32) < 2e-6
    theirs = model(input_ids=input_ids, attention_mask=mask, position_ids=positions_of(mask),
                   labels=labels_of(input_ids, mask)).loss
    assert abs(theirs - loss32) < 1e-6
    tokens, margin = generate(double, input_ids, mask)
    tokens32, _ = generate(model, input_ids, mask)
    assert torch.equal(tokens, tokens32) and margin > 0.01
    losses, trained = train(double, input_ids, mask)
    losses32, _ = train(model, input_ids, mask)
    assert max(abs(a - b) for a, b in zip(losses, losses32)) < 1e-4
    tensors = {"input_ids": input_ids, "attention_mask": mask, "position_ids": positions_of(mask),
               "labels": labels_of(input_ids, mask), "tokens": tokens, "logits": logits.detach()}
    numbers = {"loss": loss.item(), "loss_float32": loss32.item(), "training_losses": losses,
               "training_losses_float32": losses32}
    print(f"{name:<28} loss {loss.item():.6f} (float32 {loss32.item():.6f}), after {STEPS - 1} "
          f"steps {losses[-1]:.6f} ({losses32[-1]:.6f}), least margin {margin:.4f}, "
          f"last tokens {tokens[0, -5:].tolist()}")
    return tensors, numbers, gradients_of(double, loss), trained


def config_of(model):
    keys = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps",
            "tie_word_embeddings", "rope_parameters", "max_position_embeddings", "sliding_window"]
    values = {key: getattr(model.config, key, None) for key in keys}
    values["head_dim"] = model.model.layers[0].self_attn.head_dim
    return {key: value for key, value in values.items() if value is not None}


def stored(tensor):
    if not tensor.dtype.is_floating_point:
        return tensor.to(torch.int32).contiguous()
    return tensor.contiguous()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="llama.safetensors")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    file, described = {}, []
    for variant, (kind, seed, config) in VARIANTS.items():
        torch.manual_seed(seed)
        model = make_model(kind, config)
        double = to_double(model)
        about = {"name": variant, "model": kind, "config": config_of(model), "cases": []}
        for name, parameter in model.named_parameters():
            file[f"{variant}.weight.{name}"] = parameter.detach().bfloat16()
        for case, (input_ids, mask) in make_cases(config["vocab_size"]).items():
            tensors, numbers, gradients, trained = solve_case(f"{variant} {case}", model, double,
                                                              input_ids, mask)
            about["cases"].append({"name": case, **numbers})
            for name, tensor in tensors.items():
                file[f"{variant}.{case}.{name}"] = stored(tensor)
            # Gradients of one case: the large model's without padding, the small ones' with.
            if (case == "full") == (variant == "llama"):
                about["gradients_of"] = case
                for name, gradient in gradients.items():
                    file[f"{variant}.gradient.{name}"] = gradient.float()
                after = dict(trained.named_parameters())["model.norm.weight"]
                file[f"{variant}.trained.model.norm.weight"] = after.detach()
        described.append(about)

    made_by = f"torch {torch.__version__.split('+')[0]}, transformers {transformers.__version__}"
    training = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8,
                "weight_decay": 0.1, "steps": STEPS}
    header = {"made_by": made_by, "training": training, "models": described}
    save_file(file, arguments.out, metadata={"truth": json.dumps(header, separators=(",", ":"))})
    size = sum(tensor.numel() * tensor.element_size() for tensor in file.values())
    print(f"{len(file)} tensors, {size / 2**20:.2f} MiB -> {arguments.out}")


if __name__ == "__main__":
    main()
