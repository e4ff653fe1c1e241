"""Perplexity by position: how well a model predicts far beyond the length that it was trained on.

One stream reads the whole text from the zero state. Beside it, the same text is read in windows of the training length that
each begin at the zero state: what a model of that context would do. Every token of the text but the first is
predicted exactly once by either, and both columns of a range are over the same tokens. Memory does not grow with the text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from xlstm_edge_runtime import load
from xlstm_edge_runtime.errors import InputError
from xlstm_edge_runtime.manifest import read_manifest
from xlstm_edge_runtime.progress import Progress, no_progress

from .evaluate import check_readable, log_softmax, read_ids

FIRST_RANGE = 256  # tokens; each further range ends at twice the position


class Stream(Protocol):
    """What is needed of a session."""

    def step(self, token: int) -> NDArray[np.float32]:
        """Logits (V,) after one more token."""

    def reset(self) -> None:
        """Back to the zero state."""


@dataclass(frozen=True, slots=True)
class Range:
    """Predicted tokens by their place in the text, counted from 1: `first` to `last`, and how well they were predicted."""

    first: int
    last: int
    perplexity: float
    window_perplexity: float


def evaluate_positions(
    bundles: Sequence[str | Path],
    *,
    text: str | Path,
    tokens: int | None = None,
    window: int | None = None,
    threads: int | None = None,
    provider: str = "cpu",
    provider_options: Mapping[str, str | int | bool] | None = None,
    allow_fallback: bool = False,
    progress: Progress = no_progress,
) -> list[dict[str, Any]]:
    """One result a bundle, on the first `tokens` tokens of a text file (None: all of it).

    `window` None takes the length that the model was trained on, which its checkpoint's config states. InputError where
    neither is known, for a text that is not longer than one window, and for a stack of vectors. `provider` as for `load`.
    """
    for bundle in bundles:  # one that is missing or cannot read the text is said before minutes of work on the others
        check_readable(read_manifest(bundle), Path(text))
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
        ids = read_ids(model, Path(text), tokens)
        width = _window(window, model.manifest.model.context_length, len(ids))
        ranges = measure_positions(model.session(), model.session(), ids, width, progress)
        results.append(
            {
                "bundle": str(bundle),
                "bytes": sum(entry.bytes for entry in model.manifest.files.values()),
                "tokens": len(ids) - 1,
                "window": width,
                **_overall(ranges),
                "ranges": [_as_dict(part) for part in ranges],
            }
        )
    return results


def measure_positions(
    stream: Stream, windowed: Stream, ids: NDArray[np.int64], window: int, progress: Progress = no_progress
) -> list[Range]:
    """Ranges of `ids` (T,), of which all but the first are predicted; both streams in the zero state at the start."""
    count = len(ids) - 1
    ends = range_ends(count)
    sums, parts, first = np.zeros(2), list[Range](), 1
    for index in range(count):
        token, following = int(ids[index]), int(ids[index + 1])
        if index % window == 0:
            windowed.reset()
        for column, one in enumerate((stream, windowed)):
            sums[column] -= log_softmax(one.step(token))[following]
        position = index + 1
        if position == ends[len(parts)]:
            perplexities = np.exp(sums / (position - first + 1))
            parts.append(Range(first, position, float(perplexities[0]), float(perplexities[1])))
            sums[:], first = 0, position + 1
        if position % 64 == 0 or position == count:
            progress("positions", position, count)
    return parts


def range_ends(count: int) -> list[int]:
    """Last positions of the ranges of `count` predicted tokens: 256, 512, 1024 and so on, and the last one."""
    ends, end = [], FIRST_RANGE
    while end < count:
        ends.append(end)
        end *= 2
    return [*ends, count]


def _window(given: int | None, trained: int | None, length: int) -> int:
    width = given if given is not None else trained
    if width is None:
        raise InputError(
            "expected a model whose checkpoint states the length that it was trained on, got one that does not; "
            "pass --window TOKENS"
        )
    if length - 1 <= width:
        raise InputError(
            f"expected a text of more than {width} tokens, the length of a window, got {length - 1} to predict; use a "
            "longer one or pass a smaller --window"
        )
    return width


def _overall(ranges: Sequence[Range]) -> dict[str, float]:
    """Perplexities over all ranges."""
    sizes = np.array([part.last - part.first + 1 for part in ranges])
    return {
        name: float(np.exp((np.log([getattr(part, name) for part in ranges]) * sizes).sum() / sizes.sum()))
        for name in ("perplexity", "window_perplexity")
    }


def _as_dict(part: Range) -> dict[str, float]:
    return {
        "first": part.first,
        "last": part.last,
        "tokens": part.last - part.first + 1,
        "perplexity": part.perplexity,
        "window_perplexity": part.window_perplexity,
    }
