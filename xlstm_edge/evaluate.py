"""What quantization costs: perplexity, KL divergence against the float model, agreement of the likeliest token.

Both models read the same text token by token from the zero state, side by side, so memory does not grow with the text.
Figures are means over tokens; delta p is the change of the probability given to the token that really follows.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xlstm_edge_runtime import Model, Session, load
from xlstm_edge_runtime.errors import InputError
from xlstm_edge_runtime.manifest import read_manifest

from . import facade
from .report import figure, human
from .run import IdText, read_text

if TYPE_CHECKING:
    from rich.table import Table

Progress = Callable[[str, int, int], None]
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
LEAST = 32
LARGEST_TEXT = 64 << 20
MARKERS = "os^vD<>P"


def evaluate(
    bundles: Sequence[str | Path],
    *,
    against: str | Path,
    text: str | Path,
    prefix: str | None = None,
    weights: str | None = None,
    tokens: int = 4096,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """One result a bundle, measured on the first `tokens` tokens of a text file against a bundle or a checkpoint.

    `prefix` and `weights` say which model of a checkpoint is meant, as for the export.
    """
    for bundle in bundles:  # one that is missing is said before minutes of work on the others
        read_manifest(bundle)
    with _reference(against, threads, {"prefix": prefix, "weights": weights}, progress) as reference:
        if progress is not None:
            progress("reading text", 0, 0)
        ids = _read_ids(reference, Path(text), tokens)
        results = []
        for bundle in bundles:
            if progress is not None:
                progress(f"loading {Path(bundle).name}", 0, 0)
            model = load(bundle, threads=threads)
            if model.output_width != reference.output_width or not model.takes_ids:
                raise InputError(
                    f"expected a bundle with {reference.output_width} tokens, came {bundle}; choose another"
                )
            measured = _measure(model.session(), reference.session(), ids, progress)
            size = sum(entry.bytes for entry in model.manifest.files.values())
            results.append({"bundle": str(bundle), "bytes": size, "tokens": len(ids) - 1, **measured})
    return results


def evaluate_table(results: Sequence[dict[str, Any]]) -> "Table":
    """For people."""
    from rich import box  # noqa: PLC0415  # an extra
    from rich.table import Table  # noqa: PLC0415  # same

    from .terminal import plain  # noqa: PLC0415  # same

    title = (
        f"Against the float model, {results[0]['tokens']} tokens, perplexity {results[0]['reference_perplexity']:.3f}"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("bundle", overflow="fold")
    for column in ("size", "perplexity", "change", "KL", "KL p99", "top-1", "delta p, %"):  # these fit 80 columns
        table.add_column(column, justify="right", no_wrap=True)
    for r in results:
        delta = r["delta_p_percentiles"]
        table.add_row(
            plain(Path(r["bundle"]).name),
            human(r["bytes"]),
            f"{r['perplexity']:.3f}",
            f"{r['perplexity_change']:+.2%}",
            f"{r['kl_mean']:.5f}",
            f"{r['kl_p99']:.4f}",
            f"{r['top1_agreement']:.2%}",
            f"{delta['5'] * 100:+.2f} {delta['95'] * 100:+.2f}",
        )
    table.caption = "top-1: same likeliest token; delta p: 5 % to 95 % of the changes of the true token's probability"
    return table


def plot(results: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Size against KL divergence, one point a bundle, as PNG."""
    picture = figure(7, 4.5)
    axes = picture.add_subplot()
    for index, r in enumerate(sorted(results, key=lambda r: -r["kl_mean"])):  # the legend in the order of the points
        label = f"{Path(r['bundle']).name}  ({r['perplexity_change']:+.2%} perplexity)"
        axes.plot(r["bytes"] / 1e6, max(r["kl_mean"], 1e-7), MARKERS[index % len(MARKERS)], markersize=9, label=label)
    axes.legend(fontsize=8)
    axes.set(xlabel="bundle, MB", ylabel="KL divergence from float32, nats a token", yscale="log")
    axes.margins(x=0.1, y=0.15)
    axes.grid(alpha=0.3)
    picture.savefig(str(path), dpi=130, format="png")


def _measure(model: Session, reference: Session, ids: NDArray[np.int64], progress: Progress | None) -> dict[str, Any]:
    count = len(ids) - 1
    kl, nll, reference_nll, delta, same = (np.empty(count) for _ in range(5))
    for index in range(count):
        token, following = int(ids[index]), int(ids[index + 1])
        came, wanted = _log_softmax(model.step(token)), _log_softmax(reference.step(token))
        kl[index] = float((np.exp(wanted) * (wanted - came)).sum())
        nll[index], reference_nll[index] = -came[following], -wanted[following]
        delta[index] = np.exp(came[following]) - np.exp(wanted[following])
        same[index] = came.argmax() == wanted.argmax()
        if progress is not None and (index % 64 == 0 or index == count - 1):
            progress("evaluate", index + 1, count)
    perplexity, reference_perplexity = float(np.exp(nll.mean())), float(np.exp(reference_nll.mean()))
    return {
        "perplexity": perplexity,
        "reference_perplexity": reference_perplexity,
        "perplexity_change": perplexity / reference_perplexity - 1,
        "kl_mean": float(kl.mean()),
        "kl_median": float(np.median(kl)),
        "kl_p99": float(np.percentile(kl, 99)),
        "top1_agreement": float(same.mean()),
        "delta_p_mean": float(delta.mean()),
        "delta_p_rms": float(np.sqrt((delta**2).mean())),
        "delta_p_percentiles": {str(q): float(np.percentile(delta, q)) for q in PERCENTILES},
    }


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - float(logits.max())
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


@contextmanager
def _reference(
    path: str | Path, threads: int | None, place: dict[str, str | None], progress: Progress | None
) -> Iterator[Model]:
    """A bundle as it is; a checkpoint as a float32 bundle made for the occasion."""
    if facade.is_bundle(path):
        model = load(path, threads=threads)
        _check_takes_ids(model)
        yield model
        return
    with tempfile.TemporaryDirectory() as folder:
        facade.export(path, Path(folder) / "float", prefix=place["prefix"], weights=place["weights"], progress=progress)
        model = load(Path(folder) / "float", threads=threads)
        _check_takes_ids(model)
        yield model


def _check_takes_ids(model: Model) -> None:
    if not model.takes_ids:
        raise InputError(
            "expected models that take tokens, came a stack of float vectors; perplexity needs a vocabulary"
        )


def _read_ids(model: Model, path: Path, tokens: int) -> NDArray[np.int64]:
    """The text's first ids, one more than are predicted; spaced ids where the bundle has no tokenizer."""
    content = read_text(path, limit=LARGEST_TEXT)
    has_text = model.manifest.tokenizer.kind != "none"
    ids = model.encode(content) if has_text else IdText(model.output_width).encode(content)
    if len(ids) < LEAST:
        raise InputError(f"expected a text of {LEAST} tokens or more, came {len(ids)}; use a longer one")
    return np.asarray(model.check_inputs(ids[: tokens + 1]))
