"""Tokenizers of every kind that checkpoints come with, small, trained here by the library."""

from collections.abc import Callable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "the cat sat on the mat. the dog sat on the log, and the cat ran!",
    "naïve café 你好 世界 नमस्ते दुनिया 😀 été",
    "Don't say it's here. A man, a plan; a canal: Panama? 3.14 x 10",
    "def f(x):\n    return x + 1\n\n\tend",
] * 3
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_end|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TEXTS = [
    "the cat", "the cat sat on the mat.", "  two  spaces  ", "naïve café", "नमस्ते दुनिया", "e\u0301te\u0301", "👩‍👩‍👧 x",
    "你好、世界!", "a\nb\n\n c\t", "it's Don't .", "zzz qqq 7", "x",
]  # fmt: skip


def _special(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


def _train(tokenizer: Tokenizer, trainer: object) -> Tokenizer:
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def byte_level() -> Tokenizer:
    """GPT-2, GPT-NeoX, Llama 3."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    return _special(_train(tokenizer, trainer))


def nested_byte_level() -> Tokenizer:
    """The same decoder in a sequence, which the exact way does not take."""
    tokenizer = byte_level()
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("QQ", "Q")])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Llama 2, Mistral, Gemma: Metaspace BPE with a byte for what the vocabulary lacks."""
    scratch = Tokenizer(models.BPE())
    scratch.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=[*SPECIAL, *BYTES], show_progress=False)
    scratch.train_from_iterator(["the cat sat on the mat. the dog sat on the log, and the cat ran!"] * 3, trainer)
    vocabulary = scratch.get_vocab()
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _special(tokenizer)


def unigram() -> Tokenizer:
    """T5, ALBERT, XLNet."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    return _special(_train(tokenizer, trainer))


def word_piece() -> Tokenizer:
    """BERT."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)
    return _special(_train(tokenizer, trainer))


def word_level() -> Tokenizer:
    """Words and punctuation; no decoder: joined by spaces."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _special(_train(tokenizer, trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)))


def without_decoder() -> Tokenizer:
    """BPE over words, joined by spaces."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _special(_train(tokenizer, trainers.BpeTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)))


def suffixed() -> Tokenizer:
    """GPT-1, CLIP: the end of a word is marked."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=150, special_tokens=SPECIAL, end_of_word_suffix="</w>", show_progress=False
    )
    return _special(_train(tokenizer, trainer))


def begins() -> Tokenizer:
    """A post-processor that puts a bos token in front."""
    tokenizer = byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def surrounds() -> Tokenizer:
    """A post-processor as BERT's, with a token at both ends."""
    tokenizer = word_piece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def truncates() -> Tokenizer:
    """As a training script leaves it."""
    tokenizer = begins()
    tokenizer.enable_truncation(6)
    tokenizer.enable_padding(length=40, pad_id=2, pad_token="</s>")
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "ByteLevel": byte_level,
    "ByteLevel in a sequence": nested_byte_level,
    "byte fallback": byte_fallback,
    "Unigram": unigram,
    "WordPiece": word_piece,
    "WordLevel": word_level,
    "BPE without decoder": without_decoder,
    "BPE with suffix": suffixed,
    "post-processor with bos": begins,
    "post-processor at both ends": surrounds,
    "truncation and padding": truncates,
}
