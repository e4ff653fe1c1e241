"""Compile a graph ahead of time for one chip; `compiled.py` reads what comes of it."""

from pathlib import Path

from .compiled import binary_of
from .errors import InputError
from .opening import SPIN, open_graph, session_options
from .providers import Choice

ENABLE, PLACE, EMBED = "ep.context_enable", "ep.context_file_path", "ep.context_embed_mode"


def compile_graph(graph: Path, out: Path, choice: Choice) -> list[Path]:
    """Compile a graph for `choice`; the files written: `out` and its binary beside it.

    DependencyError without the provider's package, InputError or BundleError where it does not take the graph whole.
    """
    options = session_options(None, SPIN)
    for key, value in ((ENABLE, "1"), (PLACE, str(out)), (EMBED, "0")):
        options.add_session_config_entry(key, value)
    before = set(out.parent.iterdir())
    open_graph(graph, options, choice)
    made = sorted(set(out.parent.iterdir()) - before)
    if out not in made or binary_of(out) not in {path.name for path in made}:
        raise InputError(f"expected {choice} to write a compiled graph, got none; check its options")
    return made
