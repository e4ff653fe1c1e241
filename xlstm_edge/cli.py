"""The command line: arguments in, one verb of the facade called, tables or JSON out.

Results go to stdout, progress, statistics and errors to stderr; exit codes are those of `terminal`. No logic lives here.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from xlstm_edge_runtime import __version__
from xlstm_edge_runtime.tune import tune_bundle

from . import facade, options
from .bench import bench_bundle, check_bench
from .bench_report import bench_table, plot_depths
from .demo import run_demo
from .early import check_words
from .evaluate import LARGEST_TEXT, evaluate, evaluate_table, plot
from .progress import bars, load_exporters, until_done
from .report import check_plot_path, facts_table, state_table
from .run import RunRequest, read_prompt, read_text, run_bundle
from .terminal import err, guarded, note, plain, print_json, show, write_foreign

app = typer.Typer(
    name="xlstm-edge",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Put a trained xLSTM on a device: export it to ONNX with explicit state, verify it, stream with constant memory.",
)


def _quiet(value: bool) -> None:
    err.quiet = err.quiet or value


JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print results and errors only.", callback=_quiet, expose_value=False)
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads.", show_default="as tuned, else all cores")]
NOT_RECIPE = ("checkpoint", "output", "prefix", "weights", "recipe", "force", "as_json", "quiet")
BundleArgument = Annotated[Path, typer.Argument(help="Bundle folder.", metavar="BUNDLE")]


@app.command()
def export(
    checkpoint: options.Checkpoint,
    output: options.Output,
    prefix: options.Prefix = None,
    weights: options.Weights = None,
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
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Export a trained checkpoint to a bundle.

    Example: `xlstm-edge export examples/shakespeare -o bundle --quantize int4`
    """
    given = {name: value for name, value in locals().items() if name not in NOT_RECIPE}
    given |= {"keep": options.patterns(keep) if keep else None, "calibrate": str(calibrate) if calibrate else None}
    with bars(err) as progress:
        facade.check_export(output, recipe=recipe, force=force, **given)
        check_words(sources=[checkpoint], tokenizer=tokenizer)
        load_exporters(progress)
        bundle = facade.export(
            checkpoint, output, prefix=prefix, weights=weights, recipe=recipe, force=force, progress=progress, **given
        )
    if as_json:
        print_json({"bundle": str(bundle.path), "notes": list(bundle.notes), **facade.inspect(bundle.path)})
        return
    for line in bundle.notes:
        note(f"note: {line}")
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    note(f"{bundle.path}: {bundle.manifest.model.parameters:,} parameters, {size:,} bytes")


@app.command()
def verify(
    bundle: BundleArgument,
    against: Annotated[Path | None, typer.Option(help="Also compare with the checkpoint it came from.")] = None,
    prefix: options.Prefix = None,
    weights: options.Weights = None,
    tokenizer: options.Tokenizer = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check a bundle: hashes, graph, test vectors, snapshots; exit code 1 if a check fails.

    Example: `xlstm-edge verify bundle --against examples/shakespeare`
    """
    check_words(bundles=[bundle], sources=[against], threads=threads, tokenizer=tokenizer)
    with bars(err) as progress:
        if against is not None:
            load_exporters(progress)
        place = {"prefix": prefix, "weights": weights, "tokenizer": tokenizer}
        checks = facade.verify(bundle, against=against, **place, threads=threads, progress=progress)
    if as_json:
        print_json({"ok": True, "checks": [{"name": c.name, "detail": c.detail} for c in checks]})
        return
    table = Table("check", "found", title=plain(f"{bundle}: all checks passed"), title_justify="left")
    for check in checks:
        table.add_row(check.name, plain(check.detail))
    show(table)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="Bundle or checkpoint.", metavar="BUNDLE_OR_CHECKPOINT")],
    prefix: options.Prefix = None,
    weights: options.Weights = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what a bundle or a checkpoint is: family, sizes, state table, files.

    Example: `xlstm-edge inspect bundle --json`
    """
    with bars(err) as progress:
        if not facade.is_bundle(path):
            check_words(sources=[path])
            load_exporters(progress)
        facts = facade.inspect(path, prefix=prefix, weights=weights)
    if as_json:
        print_json(facts)
        return
    show(facts_table(facts, f"{path}: a {facts['kind']}"))
    show(state_table(facts))


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
    echo: options.Echo = None,
    threads: ThreadsOption = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print speed and memory to standard error at the end.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
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
        echo=sys.stdout.isatty() if echo is None else echo,
    )
    with until_done(err) as progress:
        result = run_bundle(request, None if as_json else write_foreign, progress)
    if as_json:
        print_json(result)
    elif stats:
        note(_stats_line(result))


@app.command()
def bench(
    bundle: BundleArgument,
    threads: ThreadsOption = None,
    prompt: Annotated[int, typer.Option(min=1, help="Prompt tokens.")] = 256,
    generate: Annotated[int, typer.Option(min=1, help="Generated tokens.")] = 64,
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions.")] = 5,
    depth: options.Depth = None,
    against: options.SecondBundle = None,
    compare: options.Compare = None,
    prefix: options.Prefix = None,
    weights: options.Weights = None,
    roofline: options.Roofline = False,
    plot_file: options.DepthPlot = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure prompt and generation speed and memory: medians and spread of repeated runs.

    Example: `xlstm-edge bench bundle --threads 1 --prompt 512 --generate 128`
    """
    check_plot_path(plot_file)
    check_words(bundles=[bundle, against], sources=[compare], threads=threads)
    depths = check_bench(depth, against, compare)
    with bars(err) as progress:
        if compare is not None:
            load_exporters(progress)
        result = bench_bundle(
            bundle,
            threads=threads,
            prompt=prompt,
            generate=generate,
            repeat=repeat,
            depths=depths,
            against=against,
            compare=compare,
            prefix=prefix,
            weights=weights,
            roofline=roofline,
            progress=progress,
        )
    plot_depths(result, plot_file)
    print_json(result) if as_json else show(bench_table(result))


@app.command()
def tune(bundle: BundleArgument, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Fit a bundle to this machine, once: threads, chunk size, weights in this CPU's layout.

    Example: `xlstm-edge tune bundle`
    """
    with bars(err) as progress:
        tuning = tune_bundle(bundle, progress=progress)
    facts = {name: value for name, value in asdict(tuning).items() if name not in ("key", "files")}
    if as_json:
        print_json(facts)
        return
    table = Table("setting", "chosen", title=plain(f"{bundle}: tuned for this machine"), title_justify="left")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), f"{value:,.0f}" if isinstance(value, float) else str(value))
    show(table)


@app.command("eval")
def evaluate_command(
    bundles: Annotated[list[Path], typer.Argument(help="One or more bundles.", metavar="BUNDLE...")],
    against: Annotated[
        Path, typer.Option(help="The float model: a checkpoint or a bundle.", metavar="CHECKPOINT_OR_BUNDLE")
    ],
    text: Annotated[Path, typer.Option(help="Text the models have not seen.", metavar="FILE")],
    prefix: options.Prefix = None,
    weights: options.Weights = None,
    tokens: Annotated[int, typer.Option(min=32, help="Tokens of the text to use.")] = 4096,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw size against KL.", metavar="FILE.png")] = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure what quantization costs: perplexity, KL divergence, agreement with the float model.

    Example: `xlstm-edge eval int8 int4 --against examples/shakespeare --text examples/shakespeare/heldout.txt`
    """
    check_plot_path(plot_file)
    check_words(bundles=bundles, sources=[against], threads=threads)
    read_text(text, limit=LARGEST_TEXT)
    with bars(err) as progress:
        if not facade.is_bundle(against):
            load_exporters(progress)
        results = evaluate(
            bundles,
            against=against,
            text=text,
            prefix=prefix,
            weights=weights,
            tokens=tokens,
            threads=threads,
            progress=progress,
        )
    if plot_file is not None:
        plot(results, plot_file)
    if as_json:
        print_json(results)
    else:
        show(evaluate_table(results))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to write.")] = Path("demo-bundle"),
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint; the shipped Shakespeare model if left out.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Run the main job on the shipped checkpoint: export, verify, inspect, stream 200 tokens.

    Example: `xlstm-edge demo`
    """
    run_demo(checkpoint, output)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False) -> None:
    """Options before the command."""
    if version:
        show(f"xlstm-edge {__version__}")
        raise typer.Exit


def run_cli() -> None:
    """Run the app and turn every failure into one sentence and an exit code."""
    sys.exit(guarded(lambda: app(standalone_mode=False)))


def _stats_line(result: dict[str, Any]) -> str:
    usage, speed = result["usage"], result["speed"]
    return (
        f"prompt {usage['prompt_tokens']} tokens, {speed['prompt_tokens_per_second']:.0f}/s; "
        f"generated {usage['generated_tokens']} tokens, {speed['generated_tokens_per_second']:.0f}/s; "
        f"finish {result['finish_reason']}; state {result['state_bytes']:,} bytes; "
        f"peak memory {result['peak_memory_bytes'] / 1e6:.0f} MB"
    )
