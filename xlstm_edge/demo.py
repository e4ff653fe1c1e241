"""The main job on the shipped checkpoint: export, verify, inspect, stream."""

from pathlib import Path

from rich.text import Text

from xlstm_edge_runtime import GenerationOptions
from xlstm_edge_runtime.errors import InputError

from . import facade
from .progress import bars, load_exporters
from .run import RunRequest, run_bundle
from .tables import checks_table, facts_table
from .terminal import err, show, write_foreign, write_prompt

SHIPPED = Path(__file__).resolve().parent.parent / "examples" / "shakespeare"
PROMPT = "ROMEO.\nWhat light"
OPTIONS = GenerationOptions(max_tokens=200, temperature=0.7, top_p=0.9, seed=4)


def run_demo(checkpoint: Path | None, output: Path) -> None:
    """Each step as a user would call it, with the command that does the same."""
    checkpoint = checkpoint or SHIPPED
    if not checkpoint.is_dir():
        raise InputError(
            f"expected the shipped checkpoint at {checkpoint}, got none; pass --checkpoint with one of yours"
        )
    source = _short(checkpoint)
    _say(f"xlstm-edge export {source} -o {output} --force")
    with bars(err) as progress:
        load_exporters(progress)
        facade.export(checkpoint, output, force=True, progress=progress)
    _say(f"xlstm-edge verify {output} --against {source}")
    with bars(err) as progress:
        checks = facade.verify(output, against=checkpoint, progress=progress)
    show(checks_table(checks))
    _say(f"xlstm-edge inspect {output}")
    show(facts_table(facade.inspect(output), str(output)))
    _say(f"xlstm-edge run {output} ${PROMPT!r} --max-tokens 200 --temperature 0.7 --top-p 0.9 --seed 4 --stats")
    write_prompt(PROMPT)
    result = run_bundle(RunRequest(bundle=output, prompt=PROMPT, options=OPTIONS), write_foreign)
    show(
        f"\n{result['usage']['generated_tokens']} tokens at {result['speed']['generated_tokens_per_second']:.0f} a second, "
        f"with {result['state_bytes']:,} bytes of state whatever the length.\n"
        "next: the same with a checkpoint of yours; xlstm-edge alone says how."
    )


def _short(path: Path) -> Path:
    """As somebody would type it here."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _say(command: str) -> None:
    show(Text(f"\n$ {command}", style="bold"))
