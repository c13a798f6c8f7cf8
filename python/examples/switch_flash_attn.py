"""A program written for flash_attn, unchanged but for its first two lines; trains a layer."""

import flashmha

flashmha.install_as_flash_attn()

import torch
from flash_attn import flash_attn_qkvpacked_func
from flash_attn.layers.rotary import RotaryEmbedding

torch.manual_seed(0)
hidden, num_heads = 64, 4
project = torch.nn.Linear(hidden, 3 * hidden)
rotary = RotaryEmbedding(16)
x = torch.randn(2, 50, hidden)
target = torch.roll(x, 1, dims=1)  # what the token before had
optimizer = torch.optim.AdamW(project.parameters(), lr=1e-2)
for step in range(201):
    qkv = rotary(project(x).view(2, 50, 3, num_heads, hidden // num_heads) * 1.0)
    out = flash_attn_qkvpacked_func(qkv, causal=True, window_size=(4, 0)).flatten(2)
    loss = torch.nn.functional.mse_loss(out[:, 1:], target[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step:3d}  loss {loss.item():.4f}")
