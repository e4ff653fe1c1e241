"""Cases of sampling and of text that need no model: given logits, exact arithmetic, ids to pieces, stop strings."""

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers

from xlstm_edge_runtime.exact_math import SplitMix64, weights
from xlstm_edge_runtime.sampling import Sampler, SamplingOptions
from xlstm_edge_runtime.text import StopMatcher
from xlstm_edge_runtime.tokenizer import ByteTokenizer, HuggingFaceTokenizer, Tokenizer

from ..oracles.tokenizers import SPECIAL, TEXTS, byte_fallback, byte_level

Case = dict[str, Any]
NUMBERS = (
    0.0, -0.0, -1e-300, -5e-324, -1e-9, -0.02166, -0.0217, -0.5, -0.6931471805599453, -1.0, -7.25,
    -23.9, -24.0, -24.000001, -800.0, -1e300,
)  # fmt: skip
SEEDS = (0, 1, 42, 2**32, 2**63, 2**64 - 1)
LIMITS = (1, 2, 3, 10, 2**32, 2**53 - 1)


def exact_cases() -> list[Case]:
    """weight(x) of doubles as hexadecimal text, and random numbers as decimal text."""
    numbers = [*NUMBERS, *(-Random("weights").random() * 24 for _ in range(60))]
    shares = [int(weights(np.array([x]))[0]) for x in numbers]
    cases: list[Case] = [{"kind": "weight", "x": [x.hex() for x in numbers], "weight": [str(w) for w in shares]}]
    for seed in SEEDS:
        random, again = SplitMix64(seed), SplitMix64(seed)
        case = {"kind": "random", "seed": str(seed), "next": [str(random.next()) for _ in range(4)]}
        cases.append(case | {"limits": [str(n) for n in LIMITS], "below": [str(again.below(n)) for n in LIMITS]})
    return cases


BAD_OPTIONS: list[dict[str, Any]] = [
    {"temperature": -0.1}, {"temperature": 10001.0}, {"top_k": -1}, {"top_k": 2**31}, {"top_p": 0.0}, {"top_p": 1.5},
    {"min_p": -0.1}, {"min_p": 1.5}, {"repetition_penalty": 0.0}, {"repetition_penalty": 20000.0},
    {"presence_penalty": -20000.0}, {"frequency_penalty": 20000.0}, {"penalty_window": -1}, {"penalty_window": 2**20},
    {"logit_bias": {"50": 1.0}}, {"logit_bias": {"-1": 1.0}}, {"logit_bias": {"1": 2e6}}, {"banned": [50]}, {"banned": [-1]},
    {"banned": list(range(50))},
]  # fmt: skip


def sampling_cases(folder: Path) -> list[Case]:
    """Ids for given logits: ties, minus infinity, every option at its ends; options and logits that are refused."""
    rng, cases, stored = Random("conformance"), list[Case](), {}
    for number in range(48):
        vocab, steps = rng.choice((1, 2, 7, 50, 130)), 8
        z = np.random.default_rng(number).standard_normal((steps, vocab)) * rng.choice((0.1, 3, 30))
        z = np.round(z, rng.choice((0, 1, 6))).astype(np.float32)
        z[:, 1:][np.random.default_rng(number).random((steps, vocab))[:, 1:] < rng.choice((0, 0.2))] = -np.inf
        options: dict[str, Any] = {
            "temperature": rng.choice((0.0, 1e-3, 0.5, 1.0, 1.7, 1e4)),
            "top_k": rng.choice((0, 1, 5, 60)),
            "top_p": rng.choice((1.0, 0.9, 0.3, 1e-9)),
            "min_p": rng.choice((0.0, 0.05, 1.0)),
            "repetition_penalty": rng.choice((1.0, 1.3, 0.5)),
            "presence_penalty": rng.choice((0.0, -0.7)),
            "frequency_penalty": rng.choice((0.0, 0.1)),
            "penalty_window": rng.choice((0, 3, 64)),
        }
        if rng.random() < 0.3 and vocab > 2:
            options |= {"logit_bias": {"0": 2.5, str(vocab - 1): -1e6}, "banned": [vocab - 1]}
        prompt = [rng.randrange(vocab) for _ in range(5)]
        case: Case = {"vocab": vocab, "options": options, "seed": str(rng.randrange(2**64)), "prompt": prompt}
        sampler = Sampler(options_of(case), vocab, prompt=prompt)
        stored[str(number)] = z
        cases.append(case | {"tensor": str(number), "ids": [sampler(row) for row in z], "error": None})
    for options in BAD_OPTIONS:
        cases.append({"vocab": 50, "options": options, "seed": "0", "prompt": [], "error": "input"})
    for name, row in (("nan", [np.nan, 1]), ("inf", [1, np.inf]), ("minus inf", [-np.inf, -np.inf])):
        stored[name] = np.array([row], np.float32)
        case = {"vocab": 2, "options": {"temperature": 1.0}, "seed": "0", "prompt": []}
        cases.append(case | {"tensor": name, "error": "verification"})
    save_file(stored, folder / "sampling.safetensors")
    return [case | {"file": "sampling.safetensors"} if "tensor" in case else case for case in cases]


def options_of(case: Case) -> SamplingOptions:
    """Keys of JSON are text, and seeds beyond 2^53 too."""
    options = dict(case["options"]) | {"seed": int(case["seed"])}
    if "logit_bias" in options:
        options["logit_bias"] = {int(token): bias for token, bias in options["logit_bias"].items()}
    return SamplingOptions(**options)


LETTERS = sorted({letter for text in TEXTS for letter in text if not letter.isspace()})


def word_piece() -> Library:
    """As BERT's, with a vocabulary that is written down: trainers order what is equally frequent by chance."""
    words = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "cat", "##at", "mat", "naive", "##s"]
    tokenizer = Library(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def suffixed() -> Library:
    """As CLIP's: the end of a word is marked."""
    merges = [("t", "h"), ("th", "e</w>"), ("a", "t</w>"), ("c", "at</w>"), ("o", "n</w>")]
    words = [*SPECIAL, *LETTERS, *(f"{letter}</w>" for letter in LETTERS), *map("".join, merges)]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Library(models.BPE(vocabulary, merges, unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder()
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


STREAMED = {"byte-level": byte_level, "byte-fallback": byte_fallback, "word-piece": word_piece, "suffix": suffixed}


def decode_cases(folder: Path) -> list[Case]:
    """Ids to pieces: texts, random ids, special tokens, ids that nothing has, half characters at the end."""
    (folder / "tokenizers").mkdir()
    cases, rng = list[Case](), Random("decode")
    readers: list[tuple[str, str | None, Tokenizer]] = [("byte", None, ByteTokenizer())]
    for kind, make in STREAMED.items():
        file = f"tokenizers/{kind}.json"
        make().save(str(folder / file), pretty=False)
        readers.append(("huggingface", file, HuggingFaceTokenizer(json.loads((folder / file).read_text()))))
    for kind, file, tokenizer in readers:
        last = tokenizer.vocab_size + 3
        runs = [tokenizer.encode(text) for text in TEXTS[:8]]
        runs += [[rng.randrange(last) for _ in range(20)] for _ in range(6)]
        runs += [tokenizer.encode("é")[:1], tokenizer.encode("\ufeffa"), [last, 0, last], []]
        for ids in runs:
            for prompt in ([], tokenizer.encode("the cat")):
                stream = tokenizer.stream(prompt)
                pieces = [stream.push(token) for token in ids]
                case = {
                    "kind": kind,
                    "file": file,
                    "prompt": prompt,
                    "ids": ids,
                    "pieces": pieces,
                    "rest": stream.flush(),
                }
                cases.append(case)
    return cases


STOPS: list[tuple[list[str], list[str]]] = [
    ([], ["ab", "c"]),
    (["abc"], ["xa", "bd"]),
    (["abc"], ["xa", "b", "c", "d"]),
    (["abcd", "c"], ["xabc", "e"]),
    (["abcd", "c"], ["abc"]),
    (["abcd", "c"], ["abcd"]),
    (["aab"], ["aaab!"]),
    (["ba", "aba"], ["abab"]),
    (["\n\n"], ["one\n", "two\n\n", "three"]),
    (["é😀"], ["caf", "é", "😀!"]),
    (["a", "a"], ["bca"]),
    (["never"], ["nev", "er mind"[:0], "e"]),
]


def stop_cases() -> list[Case]:
    """Pieces in, what may be shown after each of them and at the end; [text, false] takes part and is never shown."""
    inputs: list[tuple[list[str], list[tuple[str, bool]]]]
    inputs = [(stops, [(piece, True) for piece in pieces]) for stops, pieces in STOPS]
    inputs += [
        (["<e>\nUser"], [("Hi", True), ("<e>", False), ("\nUs", True), ("er: ", True)]),
        (["<e>\nUser"], [("<e>", False), ("\nUse it", True)]),
        (["b<e>"], [("ab", True), ("<e>", False), ("c", True)]),
    ]
    cases = []
    for stops, pieces in inputs:
        matcher = StopMatcher(stops)
        shown = [matcher.push(text, visible=visible) for text, visible in pieces]
        rest = matcher.flush()
        case = {
            "stop": stops,
            "pieces": [list(piece) for piece in pieces],
            "shown": shown,
            "rest": rest,
            "hit": matcher.hit,
        }
        cases.append(case)
    return cases
