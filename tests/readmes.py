"""Read the READMEs as a program: their commands, snippets, what they claim to print, and what they point to."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .command import ROOT

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@dataclass(frozen=True)
class Block:
    """A fenced block: `language`, text, and the line of the file it begins on."""

    language: str
    text: str
    line: int


def documents() -> list[Path]:
    """Every Markdown file that git knows or would know, outside of hidden folders."""
    found = (
        path
        for path in ROOT.rglob("*.md")
        if not any(part.startswith(".") or part == "node_modules" for part in path.relative_to(ROOT).parts)
    )
    return sorted(found)


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a document."""
    text = path.read_text(encoding="utf-8")
    return [Block(m[1], m[2], text[: m.start()].count("\n") + 1) for m in FENCE.finditer(text)]


def commands(text: str) -> Iterator[tuple[str, str]]:
    """(command, what the page says it prints) of a console block."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def prints(claimed: str, got: str) -> bool:
    """Whether output is as claimed: `...` stands for anything, alone on a line for any lines; blanks at ends do not count."""
    lines = [line.rstrip() for line in claimed.strip("\n").split("\n")]
    pattern = "".join(r"(?:.*\n)*?" if line == "..." else _line(line) + r"\n" for line in lines)
    shown = "".join(line.rstrip() + "\n" for line in got.strip("\n").split("\n"))
    return re.fullmatch(pattern, shown) is not None


def _line(text: str) -> str:
    return ".*".join(re.escape(part) for part in text.split("..."))


def mentioned(path: Path) -> Iterator[list[str]]:
    """The words of every xlstm-edge command in a document, in fenced blocks or between backticks."""
    text = path.read_text(encoding="utf-8")
    lines = [line.removeprefix("$ ") for block in blocks(path) for line in block.text.split("\n")]
    for candidate in lines + INLINE.findall(FENCE.sub("", text)):
        for part in re.split(r"&&|\|", candidate.split("   #")[0]):
            if part.strip().startswith("xlstm-edge "):
                yield shlex.split(part)


def links(path: Path) -> Iterator[Path]:
    """What a document points to inside the repository."""
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        if "://" not in target:
            yield path.parent / target
