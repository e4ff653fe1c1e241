"""The command line: arguments in, one verb of the facade called, tables or JSON out.

Results go to stdout, progress, statistics and errors to stderr; exit codes are those of `terminal`. No logic lives here.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from xlstm_edge_runtime import GenerationOptions, __version__
from xlstm_edge_runtime.manifest import has_manifest

from . import facade, measuring, options
from .arguments import check_arguments, provider_words
from .demo import run_demo
from .devices import list_devices
from .progress import bars, load_exporters, until_done
from .run import RunRequest, read_prompt, run_bundle
from .sizing import DEVICES
from .streams import keep_output_ours
from .tables import checks_table, devices_table, facts_table, plan_lines, plan_table, run_line, state_table
from .terminal import BAD_INPUT, err, guarded, note, print_json, show, write_foreign, write_prompt
from .welcome import WELCOME, export_lines

app = typer.Typer(
    name="xlstm-edge",
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Put a trained xLSTM on a device: export it to ONNX with explicit state, verify it, stream with constant memory.",
)


@app.command()
def export(
    checkpoint: options.Checkpoint,
    output: options.Output,
    prefix: options.Prefix = None,
    weights: options.Weights = None,
    target: options.Target = None,
    flavour: options.Flavour = None,
    soc: options.Soc = None,
    ahead_of_time: options.AheadOfTime = None,
    chunk: options.Chunk = None,
    quantize: options.Quantize = None,
    method: options.Method = None,
    calibrate: options.Calibrate = None,
    calibration_tokens: options.CalibrationTokens = None,
    block_size: options.BlockSize = None,
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
    resume: options.Resume = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Export a trained checkpoint to a bundle.

    Example: `xlstm-edge export examples/shakespeare -o bundle --quantize int4`
    """
    asked = facade.ExportOptions(
        target=options.target_of(target, flavour),
        soc=soc,
        ahead_of_time=ahead_of_time,
        chunk=chunk,
        all_logits=all_logits,
        quantize=quantize,
        method=method,
        calibrate=calibrate,
        calibration_tokens=calibration_tokens,
        block_size=group_size if block_size is None else block_size,
        embedding_bits=embedding_bits,
        head_bits=head_bits,
        target_mb=target_mb,
        target_bpw=target_bpw,
        keep=options.patterns(keep) if keep else None,
        tokenizer=tokenizer,
    )
    with bars(err) as progress:
        facade.check_export(output, asked, recipe=recipe, force=force)
        check_arguments(sources=[checkpoint], tokenizer=tokenizer, soc=soc)
        load_exporters(progress)
        bundle = facade.export_with(
            checkpoint,
            output,
            asked,
            prefix=prefix,
            weights=weights,
            recipe=recipe,
            force=force,
            resume=resume,
            progress=progress,
        )
    if as_json:
        print_json({"bundle": str(bundle.path), "notes": list(bundle.notes), **facade.inspect(bundle.path)})
        return
    for line in export_lines(bundle, checkpoint):
        note(line)


@app.command()
def verify(
    bundle: options.Bundle,
    against: Annotated[Path | None, typer.Option(help="Also compare with the checkpoint it came from.")] = None,
    prefix: options.Prefix = None,
    weights: options.Weights = None,
    tokenizer: options.Tokenizer = None,
    threads: options.Threads = None,
    provider: options.Provider = "cpu",
    provider_option: options.ProviderOption = None,
    allow_fallback: options.AllowFallback = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Check a bundle: hashes, graph, test vectors, snapshots; exit code 1 if a check fails.

    Example: `xlstm-edge verify bundle --against examples/shakespeare`
    """
    check_arguments(bundles=[bundle], sources=[against], threads=threads, tokenizer=tokenizer)
    chosen = provider_words(provider, provider_option, allow_fallback)
    with bars(err) as progress:
        if against is not None:
            load_exporters(progress)
        checks = facade.verify(
            bundle,
            against=against,
            prefix=prefix,
            weights=weights,
            tokenizer=tokenizer,
            threads=threads,
            progress=progress,
            **chosen,
        )
    if as_json:
        print_json({"ok": True, "checks": [{"name": c.name, "detail": c.detail} for c in checks]})
        return
    show(checks_table(checks))
    show(f"{bundle}: all {len(checks)} checks passed")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="Bundle or checkpoint.", metavar="BUNDLE_OR_CHECKPOINT")],
    prefix: options.Prefix = None,
    weights: options.Weights = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what a bundle or a checkpoint is: family, sizes, state table, files.

    Example: `xlstm-edge inspect bundle --json`
    """
    with bars(err) as progress:
        if not has_manifest(path):
            check_arguments(sources=[path])
            load_exporters(progress)
        facts = facade.inspect(path, prefix=prefix, weights=weights)
    if as_json:
        print_json(facts)
        return
    show(facts_table(facts, f"{path}: a {facts['kind']}"))
    show(state_table(facts))


@app.command()
def plan(
    checkpoint: options.Checkpoint,
    bandwidth: Annotated[
        str | None, typer.Option(help="Memory bandwidth, e.g. 25GB/s.", show_default="measured here")
    ] = None,
    device: Annotated[str | None, typer.Option(help=f"One of {', '.join(DEVICES)}.", metavar="NAME")] = None,
    prefix: options.Prefix = None,
    weights: options.Weights = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Say what an export will be, before any work or download: sizes, memory, time, speed, what fits where.

    A config alone is enough. Example: `xlstm-edge plan hf:NX-AI/xLSTM-7b --device laptop`
    """
    with bars(err) as progress:
        check_arguments(sources=[checkpoint])
        load_exporters(progress)
        progress("reading", 0, 0)
        facts = facade.plan(checkpoint, prefix=prefix, weights=weights, bandwidth=bandwidth, device=device)
    if as_json:
        print_json(facts)
        return
    show(plan_table(facts, str(checkpoint)))
    for line in plan_lines(facts):
        show(line)


@app.command()
def run(
    bundle: options.Bundle,
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
    threads: options.Threads = None,
    provider: options.Provider = "cpu",
    provider_option: options.ProviderOption = None,
    allow_fallback: options.AllowFallback = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print speed and memory to standard error at the end.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Continue a prompt, streaming the text.

    Example: `xlstm-edge run bundle "ROMEO." --max-tokens 100 --temperature 0.8 --seed 1`
    """
    given = GenerationOptions(
        max_tokens=max_tokens,
        stop_ids=stop_id,
        ignore_eos=ignore_eos,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
    )
    request = RunRequest(
        bundle=bundle,
        prompt=read_prompt(prompt, file),
        options=given,
        stop=tuple(stop or ()),
        threads=threads,
        **provider_words(provider, provider_option, allow_fallback),
        echo=sys.stdout.isatty() if echo is None else echo,
    )
    with until_done(err) as progress:
        result = run_bundle(request, None if as_json else write_foreign, progress, write_prompt=write_prompt)
    if as_json:
        print_json(result)
    elif stats:
        note(run_line(result))


@app.command()
def devices(as_json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Show what this machine can run a bundle on: providers, the packages that bring them, devices.

    Example: `xlstm-edge devices --json`
    """
    keep_output_ours()
    found = list_devices()
    print_json(found) if as_json else show(devices_table(found))


@app.command()
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to write.")] = Path("demo-bundle"),
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint; the shipped Shakespeare model if left out.")
    ] = None,
    quiet: options.Quiet = False,
) -> None:
    """Run the main job on the shipped checkpoint: export, verify, inspect, stream 200 tokens.

    Example: `xlstm-edge demo`
    """
    run_demo(checkpoint, output)


app.command()(measuring.bench)
app.command()(measuring.tune)
app.command("eval")(measuring.evaluate_bundles)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version.")] = False,
) -> None:
    """Options before the command, and what to do without one."""
    if version:
        show(f"xlstm-edge {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        show(WELCOME)
        raise typer.Exit(BAD_INPUT)


def run_cli() -> None:
    """Run the app and turn every failure into one sentence and an exit code."""
    sys.exit(guarded(lambda: app(prog_name="xlstm-edge", standalone_mode=False)))
