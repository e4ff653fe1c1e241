"""The commands that measure: bench, tune, eval. `cli` registers them; no logic lives here."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from xlstm_edge_runtime.errors import InputError
from xlstm_edge_runtime.manifest import has_manifest
from xlstm_edge_runtime.reading import LARGEST_TEXT
from xlstm_edge_runtime.tune import tune_bundle

from . import options
from .arguments import check_arguments, provider_words
from .bench import bench_bundle, check_bench
from .evaluate import DEFAULT_TOKENS, evaluate
from .plots import check_plot_path, plot_depths, plot_positions, plot_quality
from .positions import evaluate_positions
from .progress import bars, load_exporters
from .run import read_text
from .tables import bench_table, evaluate_table, positions_table, tuning_table
from .terminal import err, print_json, show


def bench(
    bundle: options.Bundle,
    threads: options.Threads = None,
    prompt: Annotated[int, typer.Option(min=1, help="Prompt tokens.")] = 256,
    generate: Annotated[int, typer.Option(min=1, help="Generated tokens.")] = 64,
    repeat: Annotated[int, typer.Option(min=1, help="Repetitions.")] = 5,
    depth: options.Depth = None,
    against: options.SecondBundle = None,
    compare: options.Compare = None,
    prefix: options.Prefix = None,
    weights: options.Weights = None,
    roofline: options.Roofline = False,
    provider: options.Provider = "cpu",
    provider_option: options.ProviderOption = None,
    allow_fallback: options.AllowFallback = False,
    plot_file: options.DepthPlot = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure prompt and generation speed and memory: medians and spread of repeated runs.

    Example: `xlstm-edge bench bundle --threads 1 --prompt 512 --generate 128`
    """
    check_plot_path(plot_file)
    check_arguments(bundles=[bundle, against], sources=[compare], threads=threads)
    depths = check_bench(depth, against, compare)
    chosen = provider_words(provider, provider_option, allow_fallback)
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
            **chosen,
        )
    plot_depths(result, plot_file)
    print_json(result) if as_json else show(bench_table(result))


def tune(bundle: options.Bundle, as_json: options.Json = False, quiet: options.Quiet = False) -> None:
    """Fit a bundle to this machine, once: threads, chunk size, weights in this CPU's layout.

    Example: `xlstm-edge tune bundle`
    """
    with bars(err) as progress:
        tuning = tune_bundle(bundle, progress=progress)
    facts = {name: value for name, value in asdict(tuning).items() if name not in ("key", "files")}
    if as_json:
        print_json(facts)
        return
    show(tuning_table(facts))
    show(f"{bundle}: tuned for this machine; every load here uses it from now on")


def evaluate_bundles(
    bundles: Annotated[list[Path], typer.Argument(help="One or more bundles.", metavar="BUNDLE...")],
    text: Annotated[Path, typer.Option(help="Text the models have not seen.", metavar="FILE")],
    against: options.FloatModel = None,
    prefix: options.Prefix = None,
    weights: options.Weights = None,
    tokens: options.Tokens = None,
    positions: options.Positions = False,
    window: options.Window = None,
    plot_file: options.QualityPlot = None,
    threads: options.Threads = None,
    provider: options.Provider = "cpu",
    provider_option: options.ProviderOption = None,
    allow_fallback: options.AllowFallback = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure what quantization costs against the float model, or with --positions perplexity far beyond training.

    Example: `xlstm-edge eval int8 int4 --against examples/shakespeare --text examples/shakespeare/heldout.txt`

    Example: `xlstm-edge eval bundle --positions --text examples/shakespeare/heldout.txt`
    """
    check_evaluation(against, prefix, weights, positions, window)
    check_plot_path(plot_file)
    check_arguments(bundles=bundles, sources=[against], threads=threads)
    chosen = provider_words(provider, provider_option, allow_fallback)
    read_text(text, limit=LARGEST_TEXT)
    with bars(err) as progress:
        if against is not None and not has_manifest(against):
            load_exporters(progress)
        if against is None:
            results = evaluate_positions(
                bundles, text=text, tokens=tokens, window=window, threads=threads, progress=progress, **chosen
            )
        else:
            results = evaluate(
                bundles,
                against=against,
                text=text,
                prefix=prefix,
                weights=weights,
                tokens=DEFAULT_TOKENS if tokens is None else tokens,
                threads=threads,
                progress=progress,
                **chosen,
            )
    if plot_file is not None:
        (plot_positions if positions else plot_quality)(results, plot_file)
    if as_json:
        print_json(results)
    elif positions:
        for result in results:
            show(positions_table(result))
    else:
        show(evaluate_table(results))


def check_evaluation(
    against: Path | None, prefix: str | None, weights: str | None, positions: bool, window: int | None
) -> None:
    """InputError for options that do not go together."""
    if positions == (against is not None):
        got = "both" if positions else "neither"
        raise InputError(f"expected --against MODEL or --positions, got {got}; pass one of them")
    if window is not None and not positions:
        raise InputError("expected --window with --positions only, got it without; leave it out")
    if positions and (prefix is not None or weights is not None):
        raise InputError(
            "expected --prefix and --weights for a checkpoint of --against, got them without; leave them out"
        )
