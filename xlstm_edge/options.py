"""The options of `xlstm-edge export` and `run`: name, type and help of each, one definition a piece."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Checkpoint = Annotated[Path, typer.Argument(help="Checkpoint folder, or a weights file with its config beside it.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="Bundle folder to write.", metavar="BUNDLE")]
Flavour = Annotated[
    Literal["ort", "portable"] | None,
    typer.Option(help="**ort** for onnxruntime (any chunk length), **portable** for other runtimes; ort if left out."),
]
Chunk = Annotated[int | None, typer.Option(help="Most tokens of one call (ort); 64 if left out.")]
Quantize = Annotated[
    Literal["int8", "int4", "mixed"] | None,
    typer.Option(help="Integers for the large matrices; float32 if left out."),
]
Method = Annotated[
    Literal["rtn", "gptq"] | None,
    typer.Option(help="**rtn** rounds, **gptq** calibrates; gptq if there is a text to calibrate on."),
]
Calibrate = Annotated[
    Path | None, typer.Option(help="Text, like the model's own, that gptq and mixed learn from.", metavar="FILE")
]
GroupSize = Annotated[
    int | None,
    typer.Option(help="Weights that share a scale, 16 to 256; if left out 256 for gptq, for rtn 32 (int8: 128)."),
]
EmbeddingBits = Annotated[int | None, typer.Option(help="2, 4, 8 or 32 for the embedding.")]
HeadBits = Annotated[int | None, typer.Option(help="2, 4, 8 or 32 for the output head.")]
Keep = Annotated[
    list[str] | None, typer.Option(help="Bits for tensors by name, e.g. 'blocks.0.*=8'.", metavar="PATTERN=BITS")
]
TargetMB = Annotated[
    float | None,
    typer.Option(help="Million bytes that mixed may spend on weights; graph, tokenizer and alignment come on top."),
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
        help="A tokenizer.json, **byte** (ids are the bytes of UTF-8) or **none**; the checkpoint's own if left out.",
        metavar="FILE|byte|none",
    ),
]

Prompt = Annotated[str | None, typer.Argument(help="Prompt; - reads it from standard input.")]
PromptFile = Annotated[
    str | None, typer.Option("--file", "-f", help="Read the prompt from a file; - is standard input.")
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", "-n", help="Most tokens to generate.")]
Temperature = Annotated[float | None, typer.Option("--temperature", "-t", help="0 is greedy.")]
TopK = Annotated[int | None, typer.Option(help="Keep the k likeliest tokens; 0 keeps all.")]
TopP = Annotated[float | None, typer.Option(help="Keep the likeliest tokens up to this share.")]
MinP = Annotated[float | None, typer.Option(help="Keep tokens at least this fraction as likely as the best.")]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable, on any machine.")]
Stop = Annotated[list[str] | None, typer.Option(help="Stop before this text; may be given several times.")]
StopId = Annotated[list[int] | None, typer.Option(help="Stop at this token id, too; may be given several times.")]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="Do not stop at the bundle's own stop ids.")]
