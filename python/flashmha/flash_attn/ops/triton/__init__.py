"""flash_attn.ops.triton: the rotary embedding (no Triton is used)."""
