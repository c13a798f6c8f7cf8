"""The attention problems whose truth is stored: one line each. make_attention.py computes them.

A pattern such as "b1qk" gives the shape of a bias or mask: b batch, h num_heads_q, q (max)
seqlen_q, k (max) seqlen_k, 1 broadcast. Options that are left out have AttentionOptions' defaults,
except softmax_scale: it is always given, rounded to float32, unless default_scale is asked for.
"""

import dataclasses


@dataclasses.dataclass
class Case:
    name: str
    kind: str  # dense, varlen or decode
    heads_q: int
    heads_kv: int
    head_dim: int
    head_dim_v: int = 0  # 0: head_dim
    # dense and decode
    batch: int = 1
    seqlen_q: int = 0
    seqlen_k: int = 0
    # varlen: lengths of the sequences; used_*: only the first so many rows are real
    lengths_q: tuple = ()
    lengths_k: tuple = ()
    used_q: tuple = ()
    used_k: tuple = ()
    # decode: seqlen_k is the capacity of a cache row, or unused with pages
    cache_seqlens: tuple = ()
    seqlen_new: int = 0
    leftpad: tuple = ()
    batch_idx: tuple = ()
    num_rows: int = 0
    page_size: int = 0
    rotary_dim: int = 0
    interleaved: bool = False
    positions: bool = False  # given: slot - leftpad; otherwise the default, the slot
    # options
    causal: bool = False
    top_left: bool = False
    window: tuple = (-1, -1)
    softcap: float = 0.0
    scale: float = 0.0  # 0: 1 / sqrt(head_dim)
    default_scale: bool = False
    alibi: str = ""  # "h" or "bh"
    bias: str = ""
    bias_infinities: str = ""  # "some" entries are -inf, or a whole "row" too
    mask: str = ""
    mask_empty_rows: bool = False
    sinks: bool = False
    dlse: bool = False
    q_factor: float = 1.0  # makes scores large, so that softcap bends and softmax is peaked

    def __post_init__(self):
        self.head_dim_v = self.head_dim_v or self.head_dim
        self.batch = len(self.lengths_q) or self.batch


def dense(name, batch, seqlen_q, seqlen_k, heads, head_dim, **options):
    """heads: "q" or "q/kv"."""
    heads_q, _, heads_kv = str(heads).partition("/")
    return Case(name, "dense", int(heads_q), int(heads_kv or heads_q), head_dim, batch=batch,
                seqlen_q=seqlen_q, seqlen_k=seqlen_k, **options)


def varlen(name, lengths_q, lengths_k, heads, head_dim, **options):
    heads_q, _, heads_kv = str(heads).partition("/")
    return Case(name, "varlen", int(heads_q), int(heads_kv or heads_q), head_dim,
                lengths_q=tuple(lengths_q), lengths_k=tuple(lengths_k), **options)


def decode(name, batch, seqlen_q, capacity, heads, head_dim, **options):
    heads_q, _, heads_kv = str(heads).partition("/")
    return Case(name, "decode", int(heads_q), int(heads_kv or heads_q), head_dim, batch=batch,
                seqlen_q=seqlen_q, seqlen_k=capacity, **options)


RAGGED_Q, RAGGED_K = (3, 0, 6, 1, 4), (5, 2, 6, 0, 9)

CASES = [
    # Sizes of heads, odd ones among them; default and given scale.
    dense("head_dim_1", 2, 5, 7, 2, 1),
    dense("head_dim_3", 1, 6, 5, 2, 3, causal=True),
    dense("head_dim_8", 1, 9, 9, 2, 8, causal=True),
    dense("head_dim_16_default_scale", 2, 5, 8, 2, 16, default_scale=True),
    dense("head_dim_17", 1, 4, 7, 2, 17),
    dense("head_dim_40_default_scale", 1, 5, 6, 2, 40, causal=True, default_scale=True),
    dense("head_dim_63", 1, 3, 9, 1, 63),
    dense("head_dim_64", 1, 6, 6, 2, 64, causal=True),
    dense("head_dim_65", 1, 5, 4, 1, 65),
    dense("head_dim_96", 1, 4, 6, 1, 96, causal=True),
    dense("head_dim_111", 1, 3, 5, 1, 111),
    dense("head_dim_128", 1, 5, 5, 1, 128, causal=True),
    dense("head_dim_192", 1, 3, 4, 1, 192, causal=True),
    dense("head_dim_255", 1, 2, 3, 1, 255),
    dense("head_dim_256", 1, 2, 3, 1, 256, causal=True),
    dense("head_dim_v_narrow", 2, 4, 6, "4/2", 24, head_dim_v=5),
    dense("head_dim_v_wide", 1, 5, 4, 2, 7, head_dim_v=40, causal=True),
    dense("head_dim_192_v_128", 1, 3, 4, 1, 192, head_dim_v=128),
    # One query, one key, long rows that cross tiles.
    dense("one_query", 2, 1, 33, "4/2", 16, causal=True),
    dense("one_key", 2, 7, 1, 2, 16),
    dense("one_by_one", 1, 1, 1, 1, 8, causal=True),
    dense("long_full", 1, 70, 131, 1, 8),
    dense("long_causal", 1, 150, 150, 1, 8, causal=True),
    dense("long_window", 1, 130, 150, "2/1", 4, window=(40, 9)),
    # Causal, both alignments, both ways of unequal lengths. More queries than keys: empty rows.
    dense("causal_more_keys", 2, 5, 12, "4/2", 16, causal=True),
    dense("causal_more_keys_top_left", 2, 5, 12, "4/2", 16, causal=True, top_left=True),
    dense("causal_more_queries", 2, 11, 4, "4/2", 16, causal=True),
    dense("causal_more_queries_top_left", 2, 11, 4, "4/2", 16, causal=True, top_left=True),
    # Windows: both sides, one side, only the diagonal, empty rows, wider than the sequence.
    dense("window_both", 2, 10, 10, 2, 16, window=(3, 2)),
    dense("window_left", 1, 10, 14, 2, 16, window=(2, -1)),
    dense("window_right", 1, 10, 14, 2, 16, window=(-1, 2)),
    dense("window_right_more_queries", 1, 13, 5, 2, 16, window=(-1, 1)),
    dense("window_diagonal", 1, 6, 9, 2, 16, window=(0, 0)),
    dense("window_causal", 2, 12, 12, "4/1", 16, causal=True, window=(4, -1)),
    dense("window_more_queries", 1, 14, 5, 2, 16, window=(2, 1)),
    dense("window_top_left", 1, 6, 11, 2, 16, window=(2, 1), top_left=True),
    dense("window_top_left_more_queries", 1, 12, 5, 2, 16, window=(2, 1), top_left=True),
    dense("window_wider_than_keys", 1, 5, 6, 2, 16, window=(100, 100)),
    # Scores: scale, cap, ALiBi.
    dense("scale_large", 1, 6, 8, 2, 16, scale=1.5),
    dense("scale_tiny", 1, 6, 8, 2, 16, scale=0.015625),
    dense("softcap", 2, 6, 8, 2, 16, softcap=5.0, q_factor=8.0),
    dense("softcap_causal_gqa", 1, 8, 8, "4/2", 16, softcap=2.5, q_factor=8.0, causal=True),
    dense("peaked_softmax", 1, 7, 9, 2, 16, q_factor=16.0),
    dense("alibi", 2, 6, 9, "4/2", 16, alibi="h"),
    dense("alibi_causal_per_batch", 2, 9, 9, 3, 16, alibi="bh", causal=True),
    dense("alibi_more_queries", 2, 9, 5, 2, 16, alibi="bh"),
    dense("alibi_top_left", 1, 5, 9, 2, 16, alibi="h", top_left=True, window=(3, 3)),
    # Groups of heads.
    dense("gqa_6_3", 2, 5, 6, "6/3", 8, causal=True),
    dense("gqa_6_2", 1, 5, 6, "6/2", 8),
    dense("mqa_8_1", 1, 5, 6, "8/1", 8, causal=True),
    # Additive bias and its gradient, every kind of broadcast.
    dense("bias_full", 2, 5, 6, "4/2", 8, bias="bhqk"),
    dense("bias_per_head", 2, 5, 6, 2, 8, bias="1hqk", causal=True),
    dense("bias_per_batch", 2, 5, 6, 2, 8, bias="b1qk"),
    dense("bias_shared", 2, 5, 6, 2, 8, bias="11qk", window=(2, 2)),
    dense("bias_keys_of_head", 2, 5, 6, "4/2", 8, bias="1h1k"),
    dense("bias_keys_of_batch", 2, 5, 6, 2, 8, bias="b11k", causal=True),
    dense("bias_rows", 2, 5, 6, 2, 8, bias="1hq1"),
    dense("bias_scalar", 2, 5, 6, 2, 8, bias="1111"),
    dense("bias_softcap_alibi", 2, 7, 7, 2, 8, bias="bhqk", softcap=4.0, q_factor=4.0, alibi="h",
          causal=True),
    dense("bias_some_minus_infinity", 2, 5, 6, 2, 8, bias="b1qk", bias_infinities="some"),
    dense("bias_row_minus_infinity", 2, 5, 6, 2, 8, bias="b1qk", bias_infinities="row"),
    # Boolean masks; some rows see nothing.
    dense("mask_padding", 2, 5, 8, "4/2", 8, mask="b11k"),
    dense("mask_full", 2, 5, 8, "4/2", 8, mask="bhqk", mask_empty_rows=True),
    dense("mask_shared", 2, 6, 8, 2, 8, mask="11qk", mask_empty_rows=True),
    dense("mask_causal", 2, 8, 8, 2, 8, mask="b1qk", causal=True),
    dense("mask_window_bias", 2, 8, 9, "4/2", 8, mask="b1qk", window=(3, 3), bias="1hqk"),
    dense("mask_per_head_keys", 2, 6, 8, 2, 8, mask="1h1k", alibi="h"),
    # Attention sinks.
    dense("sinks", 2, 6, 8, "4/2", 8, sinks=True),
    dense("sinks_causal", 2, 7, 7, 2, 8, sinks=True, causal=True),
    dense("sinks_window_gqa", 1, 12, 12, "6/2", 8, sinks=True, causal=True, window=(4, -1)),
    dense("sinks_empty_rows", 1, 9, 4, 2, 8, sinks=True, causal=True),
    dense("sinks_mask_softcap", 2, 6, 6, 2, 8, sinks=True, mask="b1qk", mask_empty_rows=True,
          softcap=3.0, q_factor=4.0),
    # The gradient through lse.
    dense("dlse", 2, 6, 8, "4/2", 8, dlse=True),
    dense("dlse_empty_rows", 2, 9, 5, 2, 8, dlse=True, causal=True),
    dense("dlse_everything", 2, 7, 9, "4/2", 12, head_dim_v=6, dlse=True, sinks=True, causal=True,
          window=(5, -1), softcap=4.0, q_factor=2.0, alibi="bh", bias="bhqk", mask="b11k"),
    # Ragged batches: empty sequences, sequences without keys, rows that are not used.
    varlen("varlen", RAGGED_Q, RAGGED_K, "4/2", 8),
    varlen("varlen_causal", RAGGED_Q, RAGGED_K, "4/2", 8, causal=True),
    varlen("varlen_self_causal", (7, 1, 0, 12, 3), (7, 1, 0, 12, 3), 2, 16, causal=True),
    varlen("varlen_window_top_left", RAGGED_Q, RAGGED_K, 2, 8, window=(2, 1), top_left=True),
    varlen("varlen_alibi", RAGGED_Q, RAGGED_K, 2, 8, alibi="bh", causal=True),
    varlen("varlen_bias", RAGGED_Q, RAGGED_K, "4/2", 8, bias="bhqk"),
    varlen("varlen_mask", RAGGED_Q, RAGGED_K, 2, 8, mask="b1qk", mask_empty_rows=True),
    varlen("varlen_sinks_softcap", RAGGED_Q, RAGGED_K, 2, 8, sinks=True, softcap=3.0,
           q_factor=4.0),
    varlen("varlen_dlse", RAGGED_Q, RAGGED_K, "2/1", 8, dlse=True, causal=True, bias="1h1k"),
    varlen("varlen_head_dim_v", (4, 9), (11, 3), "4/2", 12, head_dim_v=5, causal=True),
    varlen("varlen_used", (6, 5, 4), (7, 5, 6), 2, 8, used_q=(4, 5, 0), used_k=(7, 2, 3),
           causal=True),
    # A cache of keys and values. Slots that hold no key are NaN.
    decode("cache", 2, 1, 12, "4/2", 8, cache_seqlens=(5, 12)),
    decode("cache_append_causal", 2, 3, 12, "4/2", 8, cache_seqlens=(0, 7), seqlen_new=3,
           causal=True),
    decode("cache_rows", 2, 2, 10, 2, 8, cache_seqlens=(6, 3), seqlen_new=2, batch_idx=(3, 1),
           num_rows=4, causal=True, window=(3, -1)),
    decode("cache_left_padding", 2, 1, 10, "2/1", 8, cache_seqlens=(7, 9), seqlen_new=1,
           leftpad=(0, 4), sinks=True),
    decode("cache_rotary", 2, 3, 12, "4/2", 16, cache_seqlens=(2, 8), seqlen_new=3, causal=True,
           rotary_dim=16),
    decode("cache_rotary_interleaved_partial", 2, 2, 12, "4/2", 16, cache_seqlens=(2, 8),
           seqlen_new=2, causal=True, rotary_dim=6, interleaved=True),
    decode("cache_rotary_positions", 2, 2, 12, 2, 8, cache_seqlens=(5, 8), seqlen_new=2,
           leftpad=(0, 3), causal=True, rotary_dim=8, positions=True),
    decode("paged_cache", 2, 1, 0, "4/2", 8, cache_seqlens=(9, 3), page_size=4),
    decode("paged_cache_append", 2, 3, 0, "4/2", 8, cache_seqlens=(8, 2), seqlen_new=3,
           page_size=3, causal=True, rotary_dim=8, softcap=3.0, q_factor=4.0),
]

assert len({case.name for case in CASES}) == len(CASES)
