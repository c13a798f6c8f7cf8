"""flash_attn.ops: what other packages import from it."""
