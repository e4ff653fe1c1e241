"""Options of the command line that are long or shared: name, type and help of each, one definition a piece."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Checkpoint = Annotated[Path, typer.Argument(help="Checkpoint folder, or a weights file with its config beside it.")]
Prefix = Annotated[
    str | None,
    typer.Option(
        help="Take the model, or the part of a larger net, whose tensors' names begin so; found by itself if one fits.",
        metavar="NAME",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Choose among several models: a weights file of the folder, a key inside a torch file, or FILE:KEY.",
        metavar="NAME",
    ),
]
Compare = Annotated[
    Path | None, typer.Option(help="Alternate with the original checkpoint in PyTorch.", metavar="CHECKPOINT")
]
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
