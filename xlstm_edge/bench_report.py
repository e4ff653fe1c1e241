"""Bench results as a table, and depth sweeps as a plot."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlstm_edge_runtime.errors import InputError

from .report import figure, human

if TYPE_CHECKING:
    from rich.table import Table


def bench_table(result: dict[str, Any]) -> "Table":
    """For people."""
    from rich.table import Table  # noqa: PLC0415  # an extra

    from .terminal import plain  # noqa: PLC0415  # same

    where = result["machine"]
    title = f"{result['bundle']} on {where['cpu']}, {where['threads']} threads, onnxruntime {where['onnxruntime']}"
    table = Table("measure", "median", "min", "max", title=plain(title), title_justify="left")
    rates = [
        (f"prompt of {result['prompt_tokens']}, tokens/s", result["prompt_tokens_per_second"]),
        (f"generate {result['generated_tokens']}, tokens/s", result["generated_tokens_per_second"]),
    ]
    if "rival" in result:
        rates.append((f"{result['rival']['name']}, tokens/s", result["rival"]["generated_tokens_per_second"]))
    for name, values in rates:
        table.add_row(plain(name), *(f"{values[column]:,.0f}" for column in ("median", "min", "max")))
    if "rival" in result:
        table.add_row("ratio", f"{result['rival']['ratio']:.2f}")
    latency = result["latency_ms"]
    table.add_row("latency a token, ms", f"{latency['p50']:.3f}", "", f"p99 {latency['p99']:.3f}")
    for row in result.get("depths", []):
        p50, p99, memory = row["latency_ms"]["p50"], row["latency_ms"]["p99"], human(row["resident_memory_bytes"])
        table.add_row(f"after {row['depth']:,} tokens, ms", f"{p50:.3f}", memory, f"p99 {p99:.3f}")
    if "roofline" in result:
        roof = result["roofline"]
        bandwidth = f"of {human(roof['read_bandwidth_bytes_per_second'])}/s read bandwidth"
        table.add_row("share of the memory wall", f"{roof['share_of_bandwidth']:.0%}", "", bandwidth)
        table.add_row("bytes read a token", human(roof["bytes_per_token"]))
    for name, value in (
        ("load, s", f"{result['load_seconds']:.2f}"),
        ("bundle", human(result["bundle_bytes"])),
        ("state a session", human(result["state_bytes"])),
        ("peak memory", human(result["peak_memory_bytes"])),
    ):
        table.add_row(name, value)
    return table


def plot_depths(result: dict[str, Any], path: str | Path | None) -> None:
    """Latency and resident memory over depth, as PNG, if a path is given; InputError without a depth sweep."""
    if path is None:
        return
    rows = result.get("depths")
    if not rows:
        raise InputError("expected a depth sweep to plot, came none; pass --depth 0,1k,100k,1M")
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
