"""Record a terminal session as an SVG: the commands of the front page, run in a pseudo-terminal, as they really print.

    python examples/recording/record.py [SESSION.svg]

Needs a system with pseudo-terminals (Linux, macOS) and `xlstm-edge[all]`. What a line leaves on the screen is kept; what it
overwrote on the way, as progress bars do, is not. Drawn with rich, in whatever monospaced font the viewer has.
"""

import io
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parents[2]
COLUMNS, LINES = 80, 24
COMMANDS = (
    "xlstm-edge export examples/shakespeare -o bundle",
    "xlstm-edge verify bundle",
    'xlstm-edge run bundle "ROMEO." --max-tokens 60 --temperature 0.7 --seed 1 --stats',
)
THEME = TerminalTheme((24, 26, 31), (214, 218, 224), [
    (50, 54, 62), (224, 108, 117), (152, 195, 121), (229, 192, 123), (97, 175, 239), (198, 120, 221), (86, 182, 194),
    (214, 218, 224),
])  # fmt: skip
MOVES = re.compile(r"\x1b\[(\d*)A|\x1b\[\?25[lh]|\x1b\[\d*[BCDGJKH]|\x1b\]8;[^\x1b]*\x1b\\")


def run(command: str, folder: str) -> str:
    """What a command writes to a terminal, escapes included."""
    words = shlex.split(command)
    assert words[0] == "xlstm-edge"
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "exporters", "runtime"))
    size = {"COLUMNS": str(COLUMNS), "LINES": str(LINES), "TERM": "xterm-256color"}
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "xlstm_edge", *words[1:]],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env={**os.environ, **size, "PYTHONPATH": paths},
    )  # fmt: skip
    os.close(theirs)
    output = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    if process.wait():
        sys.exit(f"error: expected {command} to succeed, got status {process.returncode}")
    return output.decode("utf-8", "replace").replace("\r\n", "\n")


def _read(descriptor: int) -> bytes:
    """More output; nothing at its end, which Linux tells by an error."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


def screen(output: str) -> str:
    """The lines that are left on the screen: a line that the cursor went back to shows what was written last."""
    lines: list[str] = [""]
    row = 0
    for part in re.split(r"(\n|\r|\x1b\[\d*A|\x1b\[2K)", output):
        if part == "\n":
            row += 1
            if row == len(lines):
                lines.append("")
        elif match := re.fullmatch(r"\x1b\[(\d*)A", part):
            row = max(0, row - int(match[1] or 1))
        elif part == "\x1b[2K":
            lines[row] = ""
        elif part != "\r":
            lines[row] += MOVES.sub("", part)
    return "\n".join(lines).strip("\n")


def main() -> None:
    """Run all, draw."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("session.svg")).resolve()
    nowhere = io.StringIO()  # what is recorded need not be seen
    console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "examples").symlink_to(ROOT / "examples")
        for command in COMMANDS:
            console.print(Text.assemble(("$ ", "green"), (command, "bold")))
            console.print(Text.from_ansi(screen(run(command, folder))))
            console.print()
    svg = console.export_svg(title="xlstm-edge", theme=THEME)
    # No font from the network: whatever monospaced font is there.
    svg = re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL).replace(
        "Fira Code", "ui-monospace, Menlo, Consolas"
    )
    out.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
