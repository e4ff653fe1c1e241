"""What to say to somebody who does not know what to type next."""

from pathlib import Path

from .facade import Bundle

WELCOME = """\
Put a trained xLSTM on a device. Three commands matter:

  xlstm-edge export CHECKPOINT -o BUNDLE     a checkpoint becomes a bundle
  xlstm-edge verify BUNDLE                   the bundle proves that it is right
  xlstm-edge run BUNDLE "Once upon a time"   the bundle continues a prompt

No checkpoint at hand? "xlstm-edge demo" runs all three on the shipped model.
Smaller: export --quantize int4.  Faster: tune BUNDLE.  How fast: bench BUNDLE.
All commands: xlstm-edge --help.  One of them: xlstm-edge COMMAND --help."""


def export_lines(bundle: Bundle, checkpoint: Path) -> list[str]:
    """What is said at the end of an export: notes, what was made, where it runs, what to type next."""
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    made = f"{bundle.path}: {bundle.manifest.model.parameters:,} parameters, {size:,} bytes"
    return [*(f"note: {line}" for line in bundle.notes), made, *next_steps(bundle, checkpoint)]


def next_steps(bundle: Bundle, checkpoint: Path) -> list[str]:
    """Lines for the end of an export."""
    lines = [f"runs on: {bundle.use}", f"next: xlstm-edge verify {bundle.path} --against {checkpoint}"]
    if bundle.manifest.model.vocab_size is None:
        width = bundle.manifest.model.width
        return [
            *lines,
            f'      xlstm_edge.load("{bundle.path}").session().step(vector)  # Python; {width} floats a step',
        ]
    provider = "" if bundle.provider == "cpu" else f" --provider {bundle.provider}"
    prompt = "5 17 3" if bundle.manifest.tokenizer.kind == "none" else "Once upon a time"
    return [*lines, f'      xlstm-edge run {bundle.path} "{prompt}"{provider}']
