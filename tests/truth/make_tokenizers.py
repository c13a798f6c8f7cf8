#!/usr/bin/env python3
"""Makes tokenizer_*.json, small BPE tokenizers, and tokenizers.json and sentencepiece.json, difficult
texts with the ids and the decoded text that the `tokenizers` library gives for them.

    python3 make_tokenizers.py

Each tokenizer has the normaliser, pre-tokeniser, added tokens, post-processor and decoder of a
published one (byte-level: gpt2, llama3, qwen2; by SentencePiece: llama2, mistral3, gemma2), or
everything else that such files may say (mixed, splits, prefix; legacy, marks, sparse). They are
trained here, on a few sentences, so that many words stay in pieces; those of SentencePiece by
SentencePiece itself, and their merges are found by Transformers' own converter.
"""

import io
import json
import pathlib
import random

import sentencepiece
from transformers.convert_slow_tokenizer import generate_merges
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                        pre_tokenizers, processors, trainers)

HERE = pathlib.Path(__file__).parent

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

CORPUS = [
    "The attention of every head is computed in blocks, so that the matrix of scores is never stored.",
    "She said that they'll come, he's sure they've left, and I'm told we'd wait; don't you think?",
    "THEY'LL SEE WHAT IT'S WORTH, AND WE'RE HERE.  Two  spaces   and    more     of them.",
    "for (int i = 0; i < 1024; ++i) {\n\tsum += values[i] * 3.14159;\n}\n\n\nreturn sum;\r\n\r\n",
    "모든 머리의 주의는 블록으로 계산되므로 점수 행렬은 저장되지 않는다. 한국어 문장을 토큰으로 나눈다.",
    "注意力分块计算，因此分数矩阵从不存储。日本語の文章も、トークンに分けられます。",
    "Внимание вычисляется блоками, поэтому матрица оценок нигде не хранится.",
    "ध्यान की गणना खंडों में की जाती है। การคำนวณความสนใจเป็นบล็อก। الانتباه يحسب في كتل",
    "In 1984, 2024 and 123456789 there were 3.5 % more; call 555-0199 at 12:30:45.",
    "naïve café résumé über Straße — “quotes” and ‘more’ … it’s THEY’LL 😀 👩‍👩‍👧‍👦 👍🏽",
]

TEXTS = [
    "", " ", "  ", "a", "\n", "\t", "\r\n", "\0", "a\0b", "Hello, world!", "Hello,world", " leading",
    "trailing ", "two  spaces", "a" * 200, " " * 300, "\n" * 100, "\t \t \n \n\t", "  \n  \n  x",
    "x   \n\n  y\r\n\r\n  z", " \u00a0 \u3000 \u2003x\u2028y\u2029z\u0085w", "\u180e \ufeff\u200b \u2060",
    "1", "12", "123", "1234", "12345678901234567890", "3.14159e-10", "1,000,000", "٣٤٥٦٧", "१२३४", "½¾Ⅷ②",
    "it's IT'S It'S they'll THEY'LL we're WE'RE I'm I'M you've he'd 'tis ''s s's", "it’s IT’S they’ll",
    "'S 'T 'RE 'VE 'M 'LL 'D 'ſ", "don't'll've", "한국어 문장을 나눈다.", "\u1112\u1161\u11ab\u1100\u116e\u11a8 각",
    "\u1100\u1161 \uac00\u11a8 \u3131\u314f", "가나다라마바사" * 20, "ㅋㅋㅋㅋ ㅠㅠ 뷁", "中文字符，测试。", "日本語トークナイザー", "が か\u3099 ヴ",
    "😀😃😄", "👩‍👩‍👧‍👦 👨🏽‍💻 👍🏿", "🇰🇷🇫🇷", "☺️ ☺︎ 1️⃣", "e\u0301 é e\u0301\u0323 ạ\u0301", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤a̴̧l̵g̷o̸",
    "\u0344 \u2126 \u212b \u1e9b\u0323 \uf900 \u0958", "مرحبا بالعالم", "السَّلَامُ عَلَيْكُمْ", "नमस्ते दुनिया क्षत्रिय", "สวัสดีชาวโลก",
    "שלום עולם", "Привет, мир!", "Ελληνικά ΐ", "ǅ ǆ ß ẞ ŉ İ ı", "\u0000\u0001\u0007\u001b[31m\u007f\u0080\u009f",
    "\ue000\uf8ff\U000f0000\U0010fffd", "\ufffe\uffff\ufdd0\U0001ffff\U0010ffff", "\ufffd", "\u200d\u200c\u00ad",
    "a\u0300\u0301\u0302 \u0300 x", "snake_case CamelCase kebab-case", "http://a.b/c?d=e&f=%20#g",
    "for (int i = 0; i < 10; ++i) {\n\t\tx[i] = y;\n}\n", "\\n \\u0041 \"quoted\" `code`", "!!!???...;;;", "...\n\n...\r\n",
    " !\n !\r\n\n!", "—–‐‑ “x” ‘y’ «z»", "𝕳𝖊𝖑𝖑𝖔 𝟙𝟚𝟛 ﬁ ﷺ", "\u0d7d\u0e33 \u0f71\u0f72\u0f74", "<|endoftext|>",
    "a<|endoftext|>b", " <|endoftext|> ", "<|endoftext|><|endoftext|>", "<|endoftext", "|endoftext|>", "<<|endoftext|>>",
    "<|endoftext|>\n", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|begin_of_text|>x<|eot_id|>",
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", "<think>\nhm\n</think>\n\nyes", "<tool_call>{}</tool_call>",
    "<mask>", "a <mask> b", "a  <mask>  b", "a<mask>b", "\u00a0<mask>\u3000\n", "<mask> <mask>", "word", "words", "a word.",
    "_word_", "éword wordé", "word word", "wordword", "\u0301word", "word\u200d", "ⓐword", "left  right", "  left", "right  x",
    "café", "cafe\u0301", "CAFÉ cafés", "xcafe\u0301x", "longer long longest", "longe", "a,b,,c", ",,", "x--y-z--", "----",
    "123abc456", "  ,  ,  ", "Ġ Ċ ĠĠ é", "<unk>", "the the the\nthe", "q\u0323\u0307 q\u0307\u0323",
]

MARK_TEXTS = [
    "▁", "▁▁ ▁", " ▁the", "the▁head", "<0x41>", "<0xE2><0x96>", "<s>", "<s>a", "a<s> b </s>", "</s>the head<s>",
    "[INST] the head [/INST]", "[INST][INST] a", "<start_of_turn>user\nHi<end_of_turn>\n", "\n\n\n\n", "a\n\nb\n\n\nc",
    "      x          y", "<b>bold</b>", "<unused0>the<unused0>", "é" * 40, "the" * 60, "é😀the €x中", "plus  minus",
    "xplusx plus x", "a \t b", " the head is computed in every block of the matrix ",
]

FRAGMENTS = [" ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "’t", "the", "The", " of", "1", "42", "2024", "한", "국어", "\u1112\u1161",
             "é", "e\u0301", "\u0323", "😀", "\u200d", "🏽", "中", "。", "ا", "ि", "ก", ".", ",", "--", "(", "_", "<|endoftext|>",
             "<mask>", "word", "<|im_end|>", "<|eot_id|>", "<think>", "\u00a0", "\u3000", "\0", "\ue000", "\uffff", "longest", "cafe"]


def random_texts(count, seed=20261124):
    """Joined fragments and random characters of all planes."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(draw.randrange(1, 12)):
            if draw.random() < 0.8:
                parts.append(draw.choice(FRAGMENTS))
            else:
                code = draw.choice([draw.randrange(0x80), draw.randrange(0x800), draw.randrange(0x10000)])
                parts.append(chr(code) if not 0xD800 <= code < 0xE000 else "?")
        texts.append("".join(parts))
    return texts


def byte_level_bpe(vocab_size, pre_tokenizer, special, normalizer=None, ignore_merges=False):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


def split_then_bytes(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2():
    tokenizer = byte_level_bpe(700, pre_tokenizers.ByteLevel(add_prefix_space=False),
                               ["<|endoftext|>"])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def llama3():
    tokenizer = byte_level_bpe(800, split_then_bytes(LLAMA3),
                               ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>",
                                "<|end_header_id|>", "<|eot_id|>"], ignore_merges=True)
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A",
                                      pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
                                      special_tokens=[("<|begin_of_text|>", begin)])])
    return tokenizer


def qwen2():
    tokenizer = byte_level_bpe(800, split_then_bytes(QWEN2),
                               ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizers.NFC())
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False)
                          for t in ["<tool_call>", "</tool_call>", "<think>", "</think>"]])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def mixed():
    """Added tokens of every kind, normalised or not; digits one by one; a template on both sides."""
    tokenizer = byte_level_bpe(
        600, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                      pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        ["<|endoftext|>", "<s>", "</s>"], normalizers.Sequence([normalizers.NFC()]))
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False)])
    tokenizer.add_tokens([
        AddedToken("word", single_word=True, normalized=False),
        AddedToken("left", lstrip=True, normalized=True),
        AddedToken("right", rstrip=True, normalized=False),
        AddedToken("cafe\u0301", normalized=True),   # found as its NFC
        AddedToken("long", normalized=False), AddedToken("longest", normalized=False),
        AddedToken("  ", normalized=False), AddedToken("é", normalized=False),
        AddedToken("the", normalized=True, single_word=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("<s>", "</s>")])
    return tokenizer


def splits():
    """Every behaviour of Split, with strings and regular expressions, also inverted."""
    split = pre_tokenizers.Split
    return byte_level_bpe(500, pre_tokenizers.Sequence([
        split(",", behavior="removed"), split("-", behavior="merged_with_previous"),
        split(Regex(r"[.!?]"), behavior="merged_with_next"),
        split(Regex(r"\p{N}"), behavior="contiguous"),
        split(Regex(r"\s+|(?<=a)|[^\s]+"), behavior="isolated"),
        split(Regex(r"\w+"), behavior="removed", invert=True),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), ["<|endoftext|>"])


def prefix():
    """A space before every text, no normal form; some bytes are no token; an unknown one."""
    tokenizer = byte_level_bpe(500, pre_tokenizers.ByteLevel(add_prefix_space=True),
                               ["<|endoftext|>", "<mask>"])
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    for name in ["Ł", "Ń", "ł", "q", "ð"]:  # bytes 0xA0, 0xAD, 0x9E, 'q' and 0xF0
        content["model"]["merges"] = [m for m in content["model"]["merges"] if name not in "".join(m)]
        for token in [t for t in vocab if name in t]:
            del vocab[token]
    vocab["<unk>"] = len(vocab) + 1000  # the last
    content["model"]["unk_token"] = "<unk>"
    vocab = {token: i for i, token in enumerate(sorted(vocab, key=vocab.get))}
    content["model"]["vocab"] = vocab
    content["added_tokens"] = [{**t, "id": vocab["<unk>"] + 1 + i}
                               for i, t in enumerate(content["added_tokens"])]
    return Tokenizer.from_str(json.dumps(content))


def by_sentencepiece(vocab_size, special, byte_fallback=True):
    """Vocabulary and merges of a SentencePiece model, in a `tokenizers` model of the same kind."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3), model_writer=file, model_type="bpe", num_threads=1,
        vocab_size=vocab_size, byte_fallback=byte_fallback, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, user_defined_symbols=special, minloglevel=2,
        bos_id=1, eos_id=2, unk_id=0)
    model = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    scores = {piece: model.get_score(i) for piece, i in vocab.items()}
    merges = generate_merges(vocab, scores)
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True,
                                     byte_fallback=byte_fallback))
    tokenizer.add_special_tokens([AddedToken(t, normalized=False)
                                  for t in ("<unk>", "<s>", "</s>")])
    return tokenizer


def begins_with(token, tokenizer):
    return processors.TemplateProcessing(
        single=f"{token}:0 $A:0", pair=f"{token}:0 $A:0 {token}:1 $B:1",
        special_tokens=[(token, tokenizer.token_to_id(token))])


def spaces_come_back(strip=True):
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * strip)


def llama2():
    """Also Mistral 0.1 and 0.2."""
    tokenizer = by_sentencepiece(800, [])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"),
                                                 normalizers.Replace(" ", "▁")])
    tokenizer.post_processor = begins_with("<s>", tokenizer)
    tokenizer.decoder = spaces_come_back()
    return tokenizer


def mistral3():
    """Mistral 0.3, and Llama 2 where it is converted with legacy=False."""
    tokenizer = by_sentencepiece(800, ["[INST]", "[/INST]"])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in ("[INST]", "[/INST]")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.post_processor = begins_with("<s>", tokenizer)
    tokenizer.decoder = spaces_come_back()
    return tokenizer


def gemma2():
    """Also Gemma 3."""
    blanks = ["\n" * n for n in range(2, 6)] + ["▁" * n for n in range(2, 8)]
    special = ["<start_of_turn>", "<end_of_turn>"]
    tokenizer = by_sentencepiece(850, special + ["<unused0>", "<b>", "</b>"] + blanks)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in special])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ["<unused0>", "<b>", "</b>"] + blanks])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = begins_with("<s>", tokenizer)
    tokenizer.decoder = spaces_come_back(strip=False)
    return tokenizer


def legacy():
    """Words as pieces, a mark before each part of a text; added tokens in the normalised text; no
    bytes, and each unknown character by itself."""
    tokenizer = by_sentencepiece(500, [], byte_fallback=False)
    tokenizer.model.fuse_unk = False
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="always", split=True)
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Replace(Regex(r"[\t\u00a0]+"), " "), normalizers.NFC()])
    tokenizer.add_tokens([AddedToken("plus\u00a0", normalized=True),
                          AddedToken("word", single_word=True, normalized=True)])
    tokenizer.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    return tokenizer


def marks():
    """Merges that go on into the next word, added tokens with the mark of Prepend, two strips."""
    tokenizer = by_sentencepiece(600, [])
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    for left, right in [("e", "▁h"), ("the", "▁h"), ("▁", "▁"), ("▁▁", "▁▁"), ("▁th", "e▁h")]:
        if left in vocab and right in vocab:
            vocab.setdefault(left + right, len(vocab))
            content["model"]["merges"].insert(3, [left, right])
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"),
                                                 normalizers.Replace(" ", "▁")])
    tokenizer.add_tokens([AddedToken("<mask>", normalized=True, lstrip=True),
                          AddedToken("plus minus", normalized=True),
                          AddedToken("plus", normalized=True)])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace(Regex("▁"), " "), decoders.Strip("l", 1, 0), decoders.ByteFallback(),
        decoders.Fuse(), decoders.Strip(" ", 2, 0)])
    return tokenizer


def sparse():
    """Some bytes are no token, unknown characters are fused, whole texts may be tokens."""
    tokenizer = by_sentencepiece(700, [])
    content = json.loads(tokenizer.to_str())
    vocab = content["model"]["vocab"]
    for byte in (0x0A, 0x9F, 0xE4):
        del vocab[f"<0x{byte:02X}>"]
    vocab["the▁heads"] = len(vocab) + 100
    content["model"]["ignore_merges"] = True
    content["model"]["merges"] = [" ".join(m) for m in content["model"]["merges"]]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([
        decoders.ByteFallback(), decoders.Metaspace("▁", prepend_scheme="never")])
    return tokenizer


BYTE_LEVEL = (gpt2, llama3, qwen2, mixed, splits, prefix)
SENTENCEPIECE = (llama2, mistral3, gemma2, legacy, marks, sparse)


def save(tokenizer, name):
    content = json.loads(tokenizer.to_str())
    if name == "gpt2":  # older files write a merge as one string
        content["model"]["merges"] = [" ".join(m) for m in content["model"]["merges"]]
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    (HERE / f"tokenizer_{name}.json").write_text(text, encoding="utf-8")
    return Tokenizer.from_str(text)


def answers(tokenizer, text):
    """Ids, ids of the text as plain text, the decoded ids without and with special tokens; null where
    the second are the ids without those of the empty text before them, and for the text itself."""
    ids = tokenizer.encode(text).ids
    tokenizer.encode_special_tokens = True
    plain = tokenizer.encode(text, add_special_tokens=False).ids
    tokenizer.encode_special_tokens = False
    decoded = [tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=False)]
    return [ids, None if tokenizer.encode("").ids + plain == ids else plain,
            *[None if again == text else again for again in decoded]]


def write_truth(name, makers, texts):
    truth = {"texts": texts, "answers": {}, "decoded": {}}
    for make in makers:
        tokenizer = save(make(), make.__name__)
        truth["answers"][make.__name__] = [answers(tokenizer, text) for text in texts]
        draw = random.Random(7)  # ids at random: mostly no UTF-8; some are no token
        rows = [[draw.randrange(tokenizer.get_vocab_size() + 5) for _ in range(12)] for _ in range(40)]
        truth["decoded"][make.__name__] = [[row, tokenizer.decode(row)] for row in rows]
    (HERE / name).write_text(json.dumps(truth, ensure_ascii=True, separators=(",", ":")),
                             encoding="utf-8")


def main():
    texts = TEXTS + random_texts(60)
    write_truth("tokenizers.json", BYTE_LEVEL, texts)
    short = [text for text in texts if len(text) < 100]
    write_truth("sentencepiece.json", SENTENCEPIECE, MARK_TEXTS + short)


if __name__ == "__main__":
    main()
