"""What quantization costs: perplexity, KL divergence against the float model, agreement of the likeliest token.

Both models read the same text token by token from the zero state, side by side, so memory does not grow with the text.
Figures are means over tokens; delta p is the change of the probability given to the token that really follows.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xlstm_edge_runtime import Model, Session, load
from xlstm_edge_runtime.errors import InputError
from xlstm_edge_runtime.manifest import Manifest, has_manifest, read_manifest
from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.reading import LARGEST_TEXT

from . import facade
from .run import IdText, read_text

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
LEAST, DEFAULT_TOKENS = 32, 4096


def evaluate(
    bundles: Sequence[str | Path],
    *,
    against: str | Path,
    text: str | Path,
    prefix: str | None = None,
    weights: str | None = None,
    tokens: int = DEFAULT_TOKENS,
    threads: int | None = None,
    provider: str = "cpu",
    provider_options: Mapping[str, str | int | bool] | None = None,
    allow_fallback: bool = False,
    progress: Progress = no_progress,
) -> list[dict[str, Any]]:
    """One result a bundle, measured on the first `tokens` tokens of a text file against a bundle or a checkpoint.

    `prefix` and `weights` say which model of a checkpoint is meant, as for the export. The bundles run on `provider`, what
    they are compared with on the CPU.
    """
    for bundle in bundles:  # one that is missing is said before minutes of work on the others
        read_manifest(bundle)
    with _reference(against, Path(text), threads, prefix, weights, progress) as reference:
        progress("reading text", 0, 0)
        ids = read_ids(reference, Path(text), tokens)
        results = []
        for bundle in bundles:
            progress(f"loading {Path(bundle).name}", 0, 0)
            model = load(
                bundle,
                threads=threads,
                provider=provider,
                provider_options=provider_options,
                allow_fallback=allow_fallback,
            )
            if model.output_width != reference.output_width or not model.takes_ids:
                raise InputError(
                    f"expected a bundle with {reference.output_width} tokens, got {bundle}; choose another"
                )
            measured = _measure(model.session(), reference.session(), ids, progress)
            size = sum(entry.bytes for entry in model.manifest.files.values())
            results.append({"bundle": str(bundle), "bytes": size, "tokens": len(ids) - 1, **measured})
    return results


def _measure(model: Session, reference: Session, ids: NDArray[np.int64], progress: Progress) -> dict[str, Any]:
    count = len(ids) - 1
    kl, nll, reference_nll, delta, same = (np.empty(count) for _ in range(5))
    for index in range(count):
        token, following = int(ids[index]), int(ids[index + 1])
        got, wanted = log_softmax(model.step(token)), log_softmax(reference.step(token))
        kl[index] = float((np.exp(wanted) * (wanted - got)).sum())
        nll[index], reference_nll[index] = -got[following], -wanted[following]
        delta[index] = np.exp(got[following]) - np.exp(wanted[following])
        same[index] = got.argmax() == wanted.argmax()
        if index % 64 == 0 or index == count - 1:
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


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log probabilities (V,), in doubles."""
    shifted = logits.astype(np.float64) - float(logits.max())
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


@contextmanager
def _reference(
    path: str | Path, text: Path, threads: int | None, prefix: str | None, weights: str | None, progress: Progress
) -> Iterator[Model]:
    """A bundle as it is; a checkpoint as a float32 bundle made for the occasion. InputError first if it cannot read `text`."""
    if has_manifest(path):
        check_readable(read_manifest(path), text)
        yield load(path, threads=threads)
        return
    checkpoint = facade.open_checkpoint(path, prefix=prefix, weights=weights)
    from xlstm_edge_exporters.text_assets import no_note, read_text_assets  # noqa: PLC0415  # loads torch

    _check_text(checkpoint.spec.vocab_size, read_text_assets(checkpoint, None, no_note).info.kind, text)
    with tempfile.TemporaryDirectory() as folder:
        facade.export(path, Path(folder) / "float", prefix=prefix, weights=weights, progress=progress)
        yield load(Path(folder) / "float", threads=threads)


def check_readable(manifest: Manifest, text: Path) -> None:
    """Before a bundle is loaded: InputError for a stack of vectors, and without a tokenizer for a text that is no ids."""
    _check_text(manifest.model.vocab_size, manifest.tokenizer.kind, text)


def _check_text(vocab_size: int | None, tokenizer: str, text: Path) -> None:
    if vocab_size is None:
        raise InputError(
            "expected models that take tokens, got a stack of float vectors; perplexity needs a vocabulary"
        )
    if tokenizer == "none":
        IdText(vocab_size).encode(read_text(text, limit=LARGEST_TEXT))


def read_ids(model: Model, path: Path, tokens: int | None) -> NDArray[np.int64]:
    """The text's first ids, one more than are predicted (None: all); spaced ids where the bundle has no tokenizer."""
    content = read_text(path, limit=LARGEST_TEXT)
    has_text = model.manifest.tokenizer.kind != "none"
    ids = model.encode(content) if has_text else IdText(model.output_width).encode(content)
    if len(ids) < LEAST:
        raise InputError(f"expected a text of {LEAST} tokens or more, got {len(ids)}; use a longer one")
    return np.asarray(model.check_inputs(ids if tokens is None else ids[: tokens + 1]))
