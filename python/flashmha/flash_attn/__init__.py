"""The names of flash_attn 2.8.3, served by FlashMHA on CPUs and GPUs.

    from flashmha.flash_attn import flash_attn_func        # instead of: from flash_attn import ...

flashmha.install_as_flash_attn() makes `import flash_attn` itself find this package.
"""

__version__ = "2.8.3"

from .flash_attn_interface import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]
