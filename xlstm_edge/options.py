"""Options of the command line that are long or shared: name, type and help of each, one definition a piece."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from xlstm_edge_runtime.chips import CHIPS
from xlstm_edge_runtime.errors import InputError, shown
from xlstm_edge_runtime.providers import PROVIDERS

from .terminal import err


def _quiet(value: bool) -> None:
    err.quiet = err.quiet or value


Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print results and errors only.", callback=_quiet, expose_value=False)
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads.", show_default="as tuned, else all cores")]
Provider = Annotated[
    str, typer.Option("--provider", help=f"What runs the graph: {', '.join(PROVIDERS)}.", metavar="NAME")
]
ProviderOption = Annotated[
    list[str] | None,
    typer.Option(
        "--provider-option", help="An option of the provider; may be given several times.", metavar="NAME=VALUE"
    ),
]
AllowFallback = Annotated[
    bool, typer.Option("--allow-fallback", help="Let the CPU take the nodes that the provider does not.")
]
Bundle = Annotated[Path, typer.Argument(help="Bundle folder.", metavar="BUNDLE")]
Checkpoint = Annotated[
    Path,
    typer.Argument(
        help="Checkpoint folder, a weights file with its config beside it, or hf:OWNER/NAME[@REVISION].",
        metavar="CHECKPOINT",
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option(
        help="Take the model, or the part of a larger net, whose tensors' names begin so.",
        metavar="NAME",
        show_default="found by itself if one fits",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Choose among several models: a weights file of the folder, a key inside a torch file, or FILE:KEY.",
        metavar="NAME",
    ),
]
Depth = Annotated[str | None, typer.Option(help="Also after this many tokens, e.g. 0,1k,100k,1M.")]
SecondBundle = Annotated[Path | None, typer.Option(help="Alternate with a second bundle.", metavar="BUNDLE_2")]
Roofline = Annotated[
    bool,
    typer.Option(
        "--roofline",
        help="Measure how fast memory is here and, with the export packages, arithmetic; and the share used.",
    ),
]
DepthPlot = Annotated[
    Path | None, typer.Option("--plot", help="Draw latency and memory over depth.", metavar="FILE.png")
]
Compare = Annotated[
    Path | None, typer.Option(help="Alternate with the original checkpoint in PyTorch.", metavar="CHECKPOINT")
]
FloatModel = Annotated[
    Path | None, typer.Option(help="The float model: a checkpoint or a bundle.", metavar="CHECKPOINT_OR_BUNDLE")
]
Tokens = Annotated[
    int | None, typer.Option(min=32, help="Tokens of the text to use.", show_default="4096; all with --positions")
]
Positions = Annotated[
    bool,
    typer.Option(
        "--positions",
        help="Perplexity by position: one stream over the text, beside windows that begin anew.",
    ),
]
Window = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens of a window of --positions.", show_default="the length of the training"),
]
QualityPlot = Annotated[
    Path | None,
    typer.Option("--plot", help="Draw size against KL, or perplexity over position.", metavar="FILE.png"),
]
Output = Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to write.", metavar="BUNDLE")]
Target = Annotated[
    Literal["cpu", "portable", "web", "coreml", "qnn", "openvino", "litert", "genai"] | None,
    typer.Option(
        help="Where it is to run: **cpu** (onnxruntime), **web** (browsers), **coreml** (Apple), **qnn** (Snapdragon), "
        "**openvino** (Intel), **litert** (Android, other chips), **genai** (apps on onnxruntime-genai), "
        "**portable** (any other ONNX runtime).",
        show_default="cpu",
    ),
]
FLAVOURS = {"ort": "cpu", "portable": "portable"}
Flavour = Annotated[str | None, typer.Option(hidden=True)]  # what targets were called
Soc = Annotated[
    str | None,
    typer.Option(help=f"Compile it ahead of time (qnn), for {', '.join(CHIPS)}.", metavar="CHIP,CHIP..."),
]
AheadOfTime = Annotated[
    bool | None,
    typer.Option("--compile", help="Add the form of the target's own runtime: Core ML's, OpenVINO's or LiteRT's."),
]
Chunk = Annotated[
    int | None,
    typer.Option(
        help="Most tokens of one call. For accelerators more than 1 adds a second graph, which reads prompts in calls of so "
        "many: 32 is a good number.",
        show_default="64; 1 for accelerators and portable, and for web where a model has sLSTM blocks",
    ),
]
Quantize = Annotated[
    Literal["int8", "int4", "mixed", "a16w8"] | None,
    typer.Option(
        help="Integers for the large matrices; **a16w8** for qnn alone, with activations of 16 bits.",
        show_default="float32",
    ),
]
Method = Annotated[
    Literal["rtn", "gptq"] | None,
    typer.Option(help="**rtn** rounds, **gptq** calibrates.", show_default="gptq where there is a calibration"),
]
Calibrate = Annotated[
    str | None,
    typer.Option(
        help="What gptq and mixed learn from: a text like the model's own (a .npy of vectors for a stack), **self** for text "
        "that the model writes, or **none**.",
        metavar="FILE|self|none",
        show_default="self for int4, mixed and a16w8",
    ),
]
CalibrationTokens = Annotated[
    int | None, typer.Option(help="Tokens to calibrate on.", show_default="24,576; fewer for large models")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Keep finished tensors if interrupted, and go on from them the next time.")
]
BlockSize = Annotated[
    int | None,
    typer.Option(
        help="Weights that share a scale, 16 to 256.",
        show_default="gptq 256; rtn 32, int8 128",
    ),
]
GroupSize = Annotated[int | None, typer.Option(hidden=True)]  # what other tools call the block size
EmbeddingBits = Annotated[
    int | None, typer.Option(help="2, 4, 8 or 32 for the embedding.", show_default="as --quantize")
]
HeadBits = Annotated[int | None, typer.Option(help="2, 4, 8 or 32 for the output head.", show_default="as --quantize")]
Keep = Annotated[
    list[str] | None, typer.Option(help="Bits for tensors by name, e.g. 'blocks.0.*=8'.", metavar="PATTERN=BITS")
]
TargetMB = Annotated[
    float | None,
    typer.Option(
        help="Million bytes that mixed may spend on weights; graph, tokenizer and alignment come on top.",
        show_default="30 % of the way from int4 to int8",
    ),
]
TargetBPW = Annotated[float | None, typer.Option(help="The same in bits a weight.")]
Recipe = Annotated[Path | None, typer.Option(help="TOML file with these options.", metavar="FILE")]
AllLogits = Annotated[
    bool | None, typer.Option("--all-logits", help="Return the logits of every token, not only the last.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        help="A tokenizer.json, **byte** (ids are the bytes of UTF-8) or **none**.",
        metavar="FILE|byte|none",
        show_default="the checkpoint's own",
    ),
]

Prompt = Annotated[str | None, typer.Argument(help="Prompt; - reads it from standard input.")]
PromptFile = Annotated[
    str | None, typer.Option("--file", "-f", help="Read the prompt from a file; - is standard input.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", help="Most tokens to generate.")]
Temperature = Annotated[
    float | None, typer.Option("--temperature", "-t", help="0 is greedy.", show_default="the bundle's, else 0")
]
TopK = Annotated[
    int | None, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.", show_default="the bundle's, else 0")
]
TopP = Annotated[
    float | None, typer.Option(help="Keep the likeliest tokens up to this share.", show_default="the bundle's, else 1")
]
MinP = Annotated[
    float | None,
    typer.Option(help="Keep tokens at least this fraction as likely as the best.", show_default="the bundle's, else 0"),
]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable, on any machine.", show_default="random")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop before this text; may be given several times.")]
StopId = Annotated[list[int] | None, typer.Option(help="Stop at this token id, too; may be given several times.")]
Echo = Annotated[
    bool | None,
    typer.Option("--echo/--no-echo", help="Print the prompt before its continuation.", show_default="on a terminal"),
]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Do not stop at the bundle's own stop ids.")]


def target_of(target: str | None, flavour: str | None) -> str | None:
    """The target, also by the names that it had as a flavour; InputError for others, and for both."""
    if flavour is None:
        return target
    if flavour not in FLAVOURS or target is not None:
        got = f"--flavour {shown(flavour)}" + ("" if target is None else " with --target")
        raise InputError(f"expected --target, got {got}; pass --target cpu or --target portable")
    return FLAVOURS[flavour]


def patterns(words: list[str]) -> dict[str, int]:
    """PATTERN=BITS words as a mapping; InputError for one that is not."""
    patterns = {}
    for word in words:
        pattern, _, bits = word.rpartition("=")
        if not pattern or not bits.isdecimal():
            raise InputError(f"expected --keep PATTERN=BITS, got {word!r}; write for example 'blocks.0.*=8'")
        patterns[pattern] = int(bits)
    return patterns
