"""A model of Transformers on FlashMHA:  python transformers_model.py [name or folder of a model]

Without a name: a small model with random weights, so that nothing has to be downloaded.
"""

import sys

import flashmha.transformers
import torch
import transformers

flashmha.transformers.register()

if len(sys.argv) > 1:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        sys.argv[1], attn_implementation="flashmha")
    tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
    inputs = tokenizer("Attention is", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=30, do_sample=False)
    print(tokenizer.decode(output[0], skip_special_tokens=True))
    sys.exit()

torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=1000, hidden_size=128, intermediate_size=256, num_hidden_layers=4,
    num_attention_heads=8, num_key_value_heads=2, pad_token_id=0)
model = transformers.LlamaForCausalLM(config).eval()
tokens = torch.randint(1, 1000, (2, 20))
mask = torch.ones_like(tokens)
mask[1, :6] = 0  # the second text is shorter: padding on the left

logits = {}
for name in ("eager", "flashmha"):
    model.set_attn_implementation(name)
    with torch.no_grad():
        logits[name] = model(tokens, attention_mask=mask).logits[mask.bool()]
print(f"largest difference: {(logits['eager'] - logits['flashmha']).abs().max():.1e}")
output = model.generate(tokens, attention_mask=mask, max_new_tokens=5, do_sample=False)
print(f"generated with attn_implementation=\"flashmha\": {output[:, 20:].tolist()}")
