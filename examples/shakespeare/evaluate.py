"""Recompute the numbers of this model card from the stored files, with the official `xlstm` package.

    python examples/shakespeare/evaluate.py [--sample 300]

It needs what `examples/train_shakespeare.py` needs, except the corpus; and matplotlib for --plot.

The lesson: what "held-out perplexity" means here. The tokens of heldout.txt, behind one end token, are cut into
windows; each window starts from an empty state and every token of the file is predicted exactly once. A recurrent
runtime that resets its state at the same places must give the same number.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
import yaml
from dacite import from_dict
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional as F
from xlstm import xLSTMLMModel, xLSTMLMModelConfig

END = "<|endoftext|>"


def load(folder: Path) -> tuple[xLSTMLMModel, Tokenizer]:
    """The official model in float32, holding the stored bfloat16 values, and its tokenizer."""
    config: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
    config.pop("type")
    config["slstm_block"]["slstm"] |= {"dtype": "float32", "enable_automatic_mixed_precision": False}
    model = xLSTMLMModel(from_dict(xLSTMLMModelConfig, config))
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    weights["lm_head.weight"] = weights["token_embedding.weight"]
    model.load_state_dict(weights)
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def windows(ids: list[int], size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(inputs, targets), each (windows, size); targets are -100 behind the end of the text."""
    short = -(len(ids) - 1) % size
    inputs = torch.tensor(ids[:-1] + [0] * short).view(-1, size)
    targets = torch.tensor(ids[1:] + [-100] * short).view(-1, size)
    return inputs, targets


@torch.inference_mode()
def nats(model: xLSTMLMModel, ids: list[int], size: int) -> float:
    """Summed cross-entropy, all positions of a window at once (the parallel form)."""
    parts = zip(*(torch.split(part, 8) for part in windows(ids, size)), strict=True)
    return sum(F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item() for x, y in parts)


@torch.inference_mode()
def nats_by_steps(model: xLSTMLMModel, ids: list[int], size: int) -> float:
    """The same sum, token after token, all windows side by side (the recurrent form): size has no limit."""
    inputs, targets = windows(ids, size)
    state, total = None, 0.0
    for x, y in zip(inputs.T, targets.T, strict=True):
        logits, state = model.step(x[:, None], state)
        total += F.cross_entropy(logits[:, 0], y, reduction="sum").item()
    return total


@torch.inference_mode()
def sample(model: xLSTMLMModel, tokenizer: Tokenizer, prompt: str, count: int, temperature: float, seed: int) -> str:
    """The prompt and `count` tokens after it, by the official step; no top-k, no top-p."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = tokenizer.encode(prompt).ids
    state, logits = None, torch.empty(0)
    for token in ids:
        logits, state = model.step(torch.tensor([[token]]), state)
    for _ in range(count):
        token = int(torch.multinomial(torch.softmax(logits[0, 0] / temperature, -1), 1, generator=generator))
        ids.append(token)
        logits, state = model.step(torch.tensor([[token]]), state)
    return str(tokenizer.decode(ids))


def plot(folder: Path) -> None:
    """loss.csv as loss.png."""
    from matplotlib import pyplot as plt  # noqa: PLC0415  # only this needs it

    step, _, training, held_out = torch.tensor(
        [[float(x) for x in line.split(",")] for line in (folder / "loss.csv").read_text().split()[1:]]
    ).T.tolist()
    _, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(step, training, label="training (with dropout)")
    axes.plot(step, held_out, label="held-out (averaged weights)")
    axes.set(xlabel="step", ylabel="loss, nats a token", ylim=(2.7, 6))
    axes.grid(alpha=0.3)
    axes.legend()
    plt.savefig(folder / "loss.png", dpi=110)


def main() -> None:
    """Print tokens, perplexity and bits per byte, and a sample if asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="checkpoint folder")
    parser.add_argument("--window", type=int, default=256, help="tokens from one empty state to the next")
    parser.add_argument("--steps", action="store_true", help="use the recurrent form (needed for longer windows)")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="also sample N tokens")
    parser.add_argument("--prompt", default="HAMLET.\n")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", action="store_true", help="also draw loss.csv as loss.png")
    args = parser.parse_args()
    if args.plot:
        plot(args.folder)
    model, tokenizer = load(args.folder)
    text = (args.folder / "heldout.txt").read_bytes()
    ids: list[int] = tokenizer.encode(END + text.decode()).ids
    loss = (nats_by_steps if args.steps else nats)(model, ids, args.window)
    mean = loss / (len(ids) - 1)
    print(f"{len(text)} bytes, {len(ids) - 1} tokens, window {args.window}, {'steps' if args.steps else 'parallel'}")
    print(
        f"loss {mean:.4f} nats a token, perplexity {math.exp(mean):.2f}, {loss / math.log(2) / len(text):.4f} bits/byte"
    )
    if args.sample:
        print("\n" + sample(model, tokenizer, args.prompt, args.sample, args.temperature, args.seed))


if __name__ == "__main__":
    main()
