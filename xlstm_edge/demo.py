"""The main job on the shipped checkpoint: export, verify, inspect, stream."""

from pathlib import Path

from rich.table import Table
from rich.text import Text

from xlstm_edge_runtime.errors import InputError

from . import facade
from .progress import bars, load_exporters
from .report import facts_table
from .run import RunRequest, run_bundle
from .terminal import err, plain, show, write_foreign, write_out

SHIPPED = Path(__file__).resolve().parent.parent / "examples" / "shakespeare"
PROMPT = "ROMEO.\nWhat light"
OPTIONS = {"max_tokens": 200, "temperature": 0.7, "top_p": 0.9, "seed": 4}


def run_demo(checkpoint: Path | None, output: Path) -> None:
    """Each step as a user would call it, with the command that does the same."""
    checkpoint = checkpoint or SHIPPED
    if not checkpoint.is_dir():
        raise InputError(
            f"expected the shipped checkpoint at {checkpoint}, came none; pass --checkpoint with one of yours"
        )
    _say(f"xlstm-edge export {checkpoint.name} -o {output} --force")
    with bars(err) as progress:
        load_exporters(progress)
        facade.export(checkpoint, output, force=True, progress=progress)
    _say(f"xlstm-edge verify {output} --against {checkpoint.name}")
    with bars(err) as progress:
        checks = facade.verify(output, against=checkpoint, progress=progress)
    table = Table("check", "found")
    for check in checks:
        table.add_row(check.name, plain(check.detail))
    show(table)
    _say(f"xlstm-edge inspect {output}")
    show(facts_table(facade.inspect(output), str(output)))
    _say(f"xlstm-edge run {output} {PROMPT!r} --max-tokens 200 --temperature 0.7 --top-p 0.9 --seed 4 --stats")
    write_out(PROMPT)
    result = run_bundle(RunRequest(bundle=output, prompt=PROMPT, options=dict(OPTIONS)), write_foreign)
    show(
        f"\n{result['usage']['generated_tokens']} tokens at {result['speed']['generated_tokens_per_second']:.0f} a second, "
        f"with {result['state_bytes']:,} bytes of state whatever the length."
    )


def _say(command: str) -> None:
    show(Text(f"\n$ {command}", style="bold"))
