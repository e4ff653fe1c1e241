"""Results as tables for people, 80 columns wide."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from xlstm_edge_runtime.verify import Check

from .facts import Facts
from .terminal import plain


def new_table(*headers: str, title: str = "") -> Table:
    """An empty table whose cells fold instead of being cut."""
    table = Table(title=plain(title) if title else None, title_justify="left", show_header=bool(headers))
    for header in headers:
        table.add_column(header, overflow="fold")
    return table


def facts_table(facts: Facts, title: str) -> Table:
    """The facts a person wants first, one a row."""

    table = new_table(title=title)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    counts: Counter[str] = Counter(facts["blocks"])
    blocks = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    rows = {
        "family": facts["family"],
        "blocks": f"{blocks}, width {facts['width']}",
        "vocabulary": "none: float vectors in, float vectors out"
        if facts["vocab_size"] is None
        else facts["vocab_size"],
        "parameters": f"{facts['parameters']:,}" + (" (embedding and head tied)" if facts["tied"] else ""),
        "state": f"{human(facts['state_bytes'])} a session, whatever its length ({len(facts['state'])} tensors)",
    }
    if facts["kind"] == "bundle":
        tokens = f"1 or {facts['chunk']}" if facts["prompt_graph"] else f"up to {facts['chunk']}"
        rows["graph"] = f"{facts['target']}, opset {facts['opset']}, {tokens} tokens a call"
        rows["runtime"] = f"onnxruntime {facts['minimum_onnxruntime']} or newer"
        rows["tokenizer"] = facts["tokenizer"]
    if facts.get("notes"):
        rows["notes"] = "\n".join(facts["notes"])
    rows["files"] = "\n".join(f"{name}  {human(entry['bytes'])}" for name, entry in facts["files"].items())
    for name, value in rows.items():
        table.add_row(name, plain(value))
    return table


def plan_table(facts: Facts, title: str) -> Table:
    """What an export will be: one row a scheme."""
    table = new_table("scheme", "bundle", "tokens/s, at most", "fits into", title=title)
    for scheme, size in facts["bytes"].items():
        places = [name for name, schemes in facts["fits"].items() if scheme in schemes]
        rate = facts["tokens_per_second"][scheme]
        table.add_row(scheme, human(size), f"{rate:,.1f}", ", ".join(places) or "none of the devices known")
    return table


def plan_lines(facts: Facts) -> list[str]:
    """The rest of a plan, in lines."""
    export = facts["export"]
    return [
        f"{facts['parameters']:,} parameters; state {human(facts['state_bytes'])} a session, whatever its length",
        f"export on two cores: int4 in about {export['seconds']:,.0f} s, rounded in {export['seconds_rounded']:,.0f} s",
        f"memory of the export: int4 about {human(export['memory'])}, rounded at most {human(export['memory_rounded'])}",
        f"memory reads {facts['bandwidth'] / 1e9:.1f} GB/s ({facts['bandwidth_source']})",
        *facts["advice"],
    ]


def state_table(facts: Facts) -> Table:
    """The state table, equal shapes of many blocks in one row."""

    table = new_table("state", "shape", "initial", "tensors", title="State, float32")
    counts: Counter[tuple[str, tuple[int, ...], float]] = Counter(
        (row["name"].split(".")[-1], tuple(row["shape"]), row["initial"]) for row in facts["state"]
    )
    for (name, shape, initial), count in counts.items():
        table.add_row(plain(name), " x ".join(map(str, shape)), f"{initial:g}", str(count))
    return table


def checks_table(checks: Sequence[Check]) -> Table:
    """What was looked at, and what was found."""
    table = new_table("check", "found")
    for check in checks:
        table.add_row(check.name, plain(check.detail))
    return table


def devices_table(entries: Sequence[Facts]) -> Table:
    """What this machine can run a bundle on."""
    table = new_table("provider", "package", "devices", "computes in")
    for entry in entries:
        told = entry["devices"]
        found = ", ".join(f"{d['type']} ({d['vendor']})" for d in told or ()) or "none"
        if told is None:
            found = "not told"
        if entry["version"] is None:
            package, found = f"not installed: {entry['install']}", ""
        else:
            package = f"{entry['package']} {entry['version']}"
        table.add_row(entry["provider"], plain(package), plain(entry["problem"] or found), entry["precision"])
    return table


def tuning_table(facts: Facts) -> Table:
    """What a tuning chose."""
    table = new_table("setting", "chosen")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), f"{value:,.0f}" if isinstance(value, float) else str(value))
    return table


def run_line(result: Facts) -> str:
    """Statistics of one generation."""
    usage, speed = result["usage"], result["speed"]
    return (
        f"prompt {usage['prompt_tokens']} tokens, {speed['prompt_tokens_per_second']:.0f}/s; "
        f"generated {usage['generated_tokens']} tokens, {speed['generated_tokens_per_second']:.0f}/s; "
        f"finish {result['finish_reason']}; state {result['state_bytes']:,} bytes; "
        f"peak memory {result['peak_memory_bytes'] / 1e6:.0f} MB"
    )


def bench_table(result: dict[str, Any]) -> Table:
    """Speed and memory."""

    where = result["machine"]
    title = f"{result['bundle']} on {where['cpu']}, {where['threads']} threads, onnxruntime {where['onnxruntime']}"
    table = new_table("measure", "median", "min", "max", title=title)
    rates = [
        (f"prompt of {result['prompt_tokens']}, tokens/s", result["prompt_tokens_per_second"]),
        (f"generate {result['generated_tokens']}, tokens/s", result["generated_tokens_per_second"]),
    ]
    if "baseline" in result:
        rates.append((f"{result['baseline']['name']}, tokens/s", result["baseline"]["generated_tokens_per_second"]))
    for name, values in rates:
        table.add_row(plain(name), *(f"{values[column]:,.0f}" for column in ("median", "min", "max")))
    if "baseline" in result:
        table.add_row("ratio", f"{result['baseline']['ratio']:.2f}")
    latency = result["latency_ms"]
    table.add_row("latency a token, ms", f"{latency['p50']:.3f}", "", f"p99 {latency['p99']:.3f}")
    for row in result.get("depths", []):
        p50, p99, memory = row["latency_ms"]["p50"], row["latency_ms"]["p99"], human(row["resident_memory_bytes"])
        table.add_row(f"after {row['depth']:,} tokens, ms", f"{p50:.3f}", memory, f"p99 {p99:.3f}")
    if "roofline" in result:
        roof = result["roofline"]
        bandwidth = f"of {human(roof['read_bandwidth_bytes_per_second'])}/s read bandwidth"
        table.add_row("share of read bandwidth", f"{roof['share_of_bandwidth']:.0%}", "", bandwidth)
        table.add_row("bytes read a token", human(roof["bytes_per_token"]))
        if "share_of_arithmetic" in roof:
            arithmetic = f"of {roof['products_per_second'] / 1e9:,.0f} billion products/s"
            table.add_row("share of arithmetic", f"{roof['share_of_arithmetic']:.0%}", "", arithmetic)
        table.add_row("products a token", f"{roof['products_per_token'] / 1e6:,.1f} million")
    if result["provider"] != "cpu":
        table.add_row("provider", result["provider"], "", result["precision"])
        for name, count in result["placement"].items():
            table.add_row(f"nodes on {name}", "some" if count is None else f"{count:,}")
    for name, value in (
        ("load, s", f"{result['load_seconds']:.2f}"),
        ("bundle", human(result["bundle_bytes"])),
        ("state a session", human(result["state_bytes"])),
        ("peak memory", human(result["peak_memory_bytes"])),
    ):
        table.add_row(name, value)
    return table


def evaluate_table(results: Sequence[dict[str, Any]]) -> Table:
    """What quantization costs, one row a bundle."""
    title = (
        f"Against the float model, {results[0]['tokens']} tokens, perplexity {results[0]['reference_perplexity']:.3f}"
    )
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("bundle", overflow="fold", min_width=13)
    for column in ("size", "ppl", "change", "KL", "KL p99", "top-1", "delta p, %"):  # these fit 80 columns
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
    table.caption = (
        "ppl: perplexity; top-1: same likeliest token; "
        "delta p: 5 % to 95 % of the changes of the true token's probability"
    )
    return table


def positions_table(result: Facts) -> Table:
    """Perplexity by position of one bundle."""
    window = f"windows of {result['window']:,}"
    table = new_table("positions", "tokens", "one stream", window, title=f"{Path(result['bundle']).name}: perplexity")
    for part in result["ranges"]:
        place = f"{part['first']:,} to {part['last']:,}"
        values = (f"{part[name]:.2f}" for name in ("perplexity", "window_perplexity"))
        table.add_row(place, f"{part['tokens']:,}", *values)
    table.add_section()
    table.add_row("all", f"{result['tokens']:,}", f"{result['perplexity']:.2f}", f"{result['window_perplexity']:.2f}")
    return table


def human(size: float) -> str:
    """Bytes for people: 1,234,567 -> 1.23 MB (decimal units)."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
