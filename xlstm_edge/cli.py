"""The command line: arguments in, one verb of the facade called, tables or JSON out.

Exit codes: 0 done; 1 a check failed; 2 bad input or usage; 130 interrupted. Results go to stdout, progress, statistics
and errors to stderr. No logic lives here.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from xlstm_edge_runtime import __version__
from xlstm_edge_runtime.errors import InputError, VerificationError, XlstmEdgeError
from xlstm_edge_runtime.tune import tune_bundle

from . import facade, options
from .bench import bench_bundle, parse_depths
from .bench_report import bench_table, plot_depths
from .demo import run_demo
from .evaluate import evaluate, evaluate_table, plot
from .progress import bars, until_done
from .report import check_plot_path, facts_table, state_table
from .run import RunRequest, read_prompt, run_bundle

app = typer.Typer(
    name="xlstm-edge",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Put a trained xLSTM on a device: export it to ONNX with explicit state, verify it, stream with constant memory.",
)
out, err = Console(), Console(stderr=True)

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads; all cores if left out.")]
INTERRUPTED = 130
BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder.", metavar="BUNDLE")]


@app.command()
def export(
    checkpoint: options.Checkpoint,
    output: options.Output,
    flavour: options.Flavour = None,
    chunk: options.Chunk = None,
    quantize: options.Quantize = None,
    method: options.Method = None,
    calibrate: options.Calibrate = None,
    group_size: options.GroupSize = None,
    embedding_bits: options.EmbeddingBits = None,
    head_bits: options.HeadBits = None,
    keep: options.Keep = None,
    target_mb: options.TargetMB = None,
    target_bpw: options.TargetBPW = None,
    recipe: options.Recipe = None,
    tokenizer: options.Tokenizer = None,
    all_logits: options.AllLogits = None,
    force: options.Force = False,
) -> None:
    """Export a trained checkpoint to a bundle.

    Example: `xlstm-edge export examples/shakespeare -o bundle --quantize int4`
    """
    given = {name: value for name, value in locals().items() if name not in ("checkpoint", "output", "recipe", "force")}
    given |= {"keep": _patterns(keep) if keep else None, "calibrate": str(calibrate) if calibrate else None}
    with bars(err) as progress:
        bundle = facade.export(checkpoint, output, recipe=recipe, force=force, progress=progress, note=_note, **given)
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    err.print(f"{bundle.path}: {bundle.manifest.model.parameters:,} parameters, {size:,} bytes", highlight=False)


@app.command()
def verify(
    bundle: BundleArgument,
    against: Annotated[Path | None, typer.Option(help="Also compare with the checkpoint it came from.")] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a bundle: hashes, graph, test vectors, snapshots; exit code 1 if a check fails.

    Example: `xlstm-edge verify bundle --against examples/shakespeare`
    """
    with bars(err) as progress:
        checks = facade.verify(bundle, against=against, threads=threads, progress=progress)
    if as_json:
        _print_json({"ok": True, "checks": [{"name": c.name, "detail": c.detail} for c in checks]})
        return
    table = Table("check", "found", title=f"{bundle}: all checks passed", title_justify="left")
    for check in checks:
        table.add_row(check.name, check.detail)
    out.print(table)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="Bundle or checkpoint.", metavar="BUNDLE_OR_CHECKPOINT")],
    as_json: JsonOption = False,
) -> None:
    """Show what a bundle or a checkpoint is: family, sizes, state table, files.

    Example: `xlstm-edge inspect bundle --json`
    """
    facts = facade.inspect(path)
    if as_json:
        _print_json(facts)
        return
    out.print(facts_table(facts, f"{path}: a {facts['kind']}"))
    out.print(state_table(facts))


@app.command()
def run(
    bundle: BundleArgument,
    prompt: options.Prompt = None,
    file: options.PromptFile = None,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    stop_id: options.StopId = None,
    ignore_eos: options.IgnoreEos = False,
    threads: ThreadsOption = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print speed and memory to standard error at the end.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt, streaming the text.

    Example: `xlstm-edge run bundle "ROMEO." --max-tokens 100 --temperature 0.8 --seed 1`
    """
    given: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    given |= {"max_tokens": max_tokens, "stop_ids": stop_id, "ignore_eos": ignore_eos}
    request = RunRequest(
        bundle=bundle,
        prompt=read_prompt(prompt, file),
        options=given,
        stop=tuple(stop or ()),
        threads=threads,
    )
    try:
        with until_done(err) as progress:
            result = run_bundle(request, sys.stdout.write if not as_json else None, sys.stdout.flush, progress)
    except BrokenPipeError:  # the reader of our output went away, as `head` does: no error, and nothing more to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None
    if as_json:
        _print_json(result)
    elif stats:
        err.print(_stats_line(result), highlight=False)


@app.command()
def bench(
    bundle: BundleArgument,
    threads: ThreadsOption = None,
    prompt: Annotated[int, typer.Option(min=1, help="Prompt tokens.")] = 256,
    generate: Annotated[int, typer.Option(min=1, help="Generated tokens.")] = 64,
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions.")] = 5,
    depth: Annotated[str | None, typer.Option(help="Also after this many tokens, e.g. 0,1k,100k,1M.")] = None,
    against: Annotated[Path | None, typer.Option(help="Alternate with a second bundle.", metavar="BUNDLE_2")] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Alternate with the original checkpoint in PyTorch.", metavar="CHECKPOINT")
    ] = None,
    roofline: Annotated[bool, typer.Option("--roofline", help="Measure the memory bandwidth and its share.")] = False,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Draw latency and memory over depth.", metavar="FILE.png")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure prompt and generation speed and memory: medians and spread of repeated runs.

    Example: `xlstm-edge bench bundle --threads 1 --prompt 512 --generate 128`
    """
    check_plot_path(plot_file)
    with bars(err) as progress:
        result = bench_bundle(
            bundle,
            threads=threads,
            prompt=prompt,
            generate=generate,
            repeat=repeat,
            depths=parse_depths(depth) if depth is not None else (),
            against=against,
            compare=compare,
            roofline=roofline,
            progress=progress,
        )
    if plot_file is not None:
        plot_depths(result, plot_file)
    if as_json:
        _print_json(result)
    else:
        out.print(bench_table(result))


@app.command()
def tune(bundle: BundleArgument, as_json: JsonOption = False) -> None:
    """Fit a bundle to this machine, once: threads, chunk size, weights in this CPU's layout.

    Example: `xlstm-edge tune bundle`
    """
    with bars(err) as progress:
        tuning = tune_bundle(bundle, progress=progress)
    facts = {name: value for name, value in asdict(tuning).items() if name not in ("key", "files")}
    if as_json:
        _print_json(facts)
        return
    table = Table("setting", "chosen", title=f"{bundle}: tuned for this machine", title_justify="left")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), f"{value:,.0f}" if isinstance(value, float) else str(value))
    out.print(table)


@app.command("eval")
def evaluate_command(
    bundles: Annotated[list[Path], typer.Argument(help="One or more bundles.", metavar="BUNDLE...")],
    against: Annotated[
        Path, typer.Option(help="The float model: a checkpoint or a bundle.", metavar="CHECKPOINT_OR_BUNDLE")
    ],
    text: Annotated[Path, typer.Option(help="Text the models have not seen.", metavar="FILE")],
    tokens: Annotated[int, typer.Option(min=32, help="Tokens of the text to use.")] = 4096,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw size against KL.", metavar="FILE.png")] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what quantization costs: perplexity, KL divergence, agreement with the float model.

    Example: `xlstm-edge eval int8 int4 --against examples/shakespeare --text examples/shakespeare/heldout.txt`
    """
    check_plot_path(plot_file)
    with bars(err) as progress:
        results = evaluate(bundles, against=against, text=text, tokens=tokens, threads=threads, progress=progress)
    if plot_file is not None:
        plot(results, plot_file)
    if as_json:
        _print_json(results)
    else:
        out.print(evaluate_table(results))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to write.")] = Path("demo-bundle"),
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint; the shipped Shakespeare model if left out.")
    ] = None,
) -> None:
    """Run the main job on the shipped checkpoint: export, verify, inspect, stream 200 tokens.

    Example: `xlstm-edge demo`
    """
    run_demo(checkpoint, output, out, err)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Options before the command."""
    if version:
        out.print(f"xlstm-edge {__version__}", highlight=False)
        raise typer.Exit


def run_cli() -> None:
    """Run the app and turn every expected failure into one sentence and an exit code."""
    try:
        app()
    except SystemExit as stop:
        if stop.code == INTERRUPTED:  # typer turns Ctrl-C into this code without a word
            sys.stderr.write("error: interrupted\n")
        raise
    except VerificationError as error:
        _fail(str(error), 1)
    except XlstmEdgeError as error:
        _fail(str(error), 2)


def _note(line: str) -> None:
    err.print(f"note: {line}", highlight=False, markup=False, soft_wrap=True)


def _fail(message: str, code: int) -> None:
    if "--json" in sys.argv:
        _print_json({"ok": False, "error": message, "exit_code": code})
    sys.stderr.write(f"error: {message}\n")
    sys.exit(code)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _patterns(words: list[str]) -> dict[str, int]:
    """PATTERN=BITS words as a mapping; InputError for one that is not."""
    patterns = {}
    for word in words:
        pattern, _, bits = word.rpartition("=")
        if not pattern or not bits.isdecimal():
            raise InputError(f"expected --keep PATTERN=BITS, came {word!r}; write for example 'blocks.0.*=8'")
        patterns[pattern] = int(bits)
    return patterns


def _stats_line(result: dict[str, Any]) -> str:
    usage, speed = result["usage"], result["speed"]
    return (
        f"prompt {usage['prompt_tokens']} tokens, {speed['prompt_tokens_per_second']:.0f}/s; "
        f"generated {usage['generated_tokens']} tokens, {speed['generated_tokens_per_second']:.0f}/s; "
        f"finish {result['finish_reason']}; state {result['state_bytes']:,} bytes; "
        f"peak memory {result['peak_memory_bytes'] / 1e6:.0f} MB"
    )
