"""Results as PNG; matplotlib is an extra, so it is imported where a plot is asked for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlstm_edge_runtime.errors import DependencyError, InputError

MARKERS = "os^vD<>P"


def check_plot_path(path: Path | None) -> None:
    """Before minutes of measuring: InputError unless a PNG can be written there, DependencyError without matplotlib."""
    if path is None:
        return
    if path.suffix.lower() != ".png" or not path.parent.is_dir() or path.is_dir():
        raise InputError(f"expected a plot file FILE.png in a folder that exists, got {path}; choose another")
    figure(1, 1)


def figure(width: float, height: float) -> Any:
    """An empty matplotlib figure in inches; DependencyError without matplotlib."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # an extra
    except ModuleNotFoundError as error:
        raise DependencyError("expected the package matplotlib for a plot, got none; pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def plot_depths(result: dict[str, Any], path: str | Path | None) -> None:
    """Latency and resident memory over depth, as PNG, if a path is given; InputError without a depth sweep."""
    if path is None:
        return
    rows = result.get("depths")
    if not rows:
        raise InputError("expected a depth sweep to plot, got none; pass --depth 0,1k,100k,1M")
    picture = figure(9, 3.6)
    depths = [max(row["depth"], 1) for row in rows]
    left, right = picture.subplots(1, 2)
    for q, marker in (("p50", "o-"), ("p99", "^:")):
        left.plot(depths, [row["latency_ms"][q] for row in rows], marker, label=q)
    left.set(xscale="log", xlabel="tokens read before", ylabel="latency a token, ms", ylim=(0, None))
    left.legend()
    right.plot(depths, [row["resident_memory_bytes"] / 1e6 for row in rows], "o-", label="process")
    right.plot(depths, [row["state_bytes"] / 1e6 for row in rows], "s-", label="state of the session")
    right.set(xscale="log", xlabel="tokens read before", ylabel="memory, MB", ylim=(0, None))
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    picture.savefig(str(path), dpi=130, format="png")


def plot_quality(results: Sequence[dict[str, Any]], path: str | Path) -> None:
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


def plot_positions(results: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Perplexity over position, as PNG: a step a range, the stream beside the windows."""
    picture = figure(7, 4)
    axes = picture.add_subplot()
    for result in results:
        ranges = result["ranges"]
        edges = [ranges[0]["first"], *(part["last"] for part in ranges)]
        name = f"{Path(result['bundle']).name}: " if len(results) > 1 else ""
        window = f"{name}windows of {result['window']} tokens"
        for key, label, style in (("perplexity", f"{name}one stream", "-"), ("window_perplexity", window, "--")):
            axes.stairs([part[key] for part in ranges], edges, label=label, linestyle=style, linewidth=2, baseline=None)
    axes.set(xscale="log", xlabel="position in the text, tokens", ylabel="perplexity", ylim=(0, None))
    axes.set_xlim(left=64)  # the first range begins at 1, which a logarithm would give half of the width
    axes.legend(fontsize=9)
    axes.grid(alpha=0.3)
    picture.savefig(str(path), dpi=130, format="png")
