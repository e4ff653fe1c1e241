"""The command: a sample of mutants of chosen modules, or the list of removals; see the package's docstring."""

import argparse
import random
import re
import shutil
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path
from types import CodeType
from typing import Any

from . import judge
from .judge import ROOT, file_of
from .lines import line_map
from .mutants import Mutant, mutants, mutated

WRITERS = "files layout manifest manifest_sections state vectors".split()  # what an export itself is made with
MOST_TESTS, MOST_SECONDS, SECONDS_OF_A_REMOVAL = 40, 8.0, 200.0


def copies_exports(module: str) -> bool:
    """Whether exports may be made without the change: it is in no module that takes part in them."""
    package, _, name = module.partition(".")
    return package == "xlstm_edge_runtime" and name not in WRITERS


def chosen_tests(found: dict[str, Any], file: str, mutant: Mutant) -> tuple[list[str], float]:
    """The cheapest tests that run one of the mutant's lines, or else anything of its module; and their seconds."""
    wanted = {mutant.line, *mutant.lines}
    near = {n: t["seconds"] for n, t in found.items() if wanted & set(t["lines"].get(file, ()))}
    if not near:
        near = {n: t["seconds"] for n, t in found.items() if file in t["lines"]}
    tests, total = [], 0.0
    for name in sorted(near, key=lambda name: near[name]):
        if len(tests) >= MOST_TESTS or total + near[name] > MOST_SECONDS:
            break
        tests.append(name)
        total += near[name]
    return tests, total


def judge_mutant(module: str, mutant: Mutant, found: dict[str, Any], folder: Path) -> str:
    """killed, slow, survived or no test."""
    file = file_of(module)
    tests, seconds = chosen_tests(found, str(file.relative_to(ROOT)), mutant)
    if not tests:
        return "no test"
    code = compile(mutated(file.read_text(), mutant.number), str(file), "exec")
    exports = folder / "exports" if copies_exports(module) else None
    limit = judge.SECONDS + 3 * seconds + (60 if exports is None else 0)
    place = folder / "place"
    status = judge.fork(
        lambda: judge.run_tests(tests, {module: code}, place, exports=exports), limit, folder / "last.log"
    )
    shutil.rmtree(place, ignore_errors=True)
    return {None: "slow", judge.PASSED: "survived"}.get(status, "killed")


def sample(modules: list[str], budget: int, seed: int) -> list[tuple[str, Mutant]]:
    """A fair share of every module's mutants, in the modules' order."""
    every = [(module, mutant) for module in modules for mutant in mutants(file_of(module).read_text())]
    if len(every) > budget:
        every = sorted(
            random.Random(seed).sample(every, budget), key=lambda one: (modules.index(one[0]), one[1].number)
        )
    return every


def run_mutants(modules: list[str], options: argparse.Namespace) -> int:
    """Print survivors as they come, and a table."""
    found = line_map(options.folder / "lines", set(filter(None, options.tests.split(","))))
    begin, counts = time.monotonic(), Counter[tuple[str, str]]()
    for module, mutant in sample(modules, options.budget, options.seed):
        if time.monotonic() - begin > options.minutes * 60:
            print("out of time")
            break
        verdict = judge_mutant(module, mutant, found, options.folder)
        counts[module, verdict] += 1
        if verdict not in ("killed", "slow"):
            line = file_of(module).read_text().splitlines()[mutant.line - 1].strip()
            print(f"{verdict}: {module}:{mutant.line} {mutant.what}: {line}", flush=True)
    columns = ("killed", "slow", "survived", "no test")
    print(f"{'module':32}" + "".join(f"{column:>10}" for column in columns))
    for module in modules:
        print(f"{module:32}" + "".join(f"{counts[module, column]:>10}" for column in columns))
    return 0


def run_removals(folder: Path, words: str, skip: int) -> int:
    """Each protection of the list whose name matches `words` taken out: the number of those that no test saw."""
    unseen = 0
    for removal in tomllib.loads((Path(__file__).parent / "removals.toml").read_text())["removal"][skip:]:
        if not re.search(words, removal["name"]):
            continue
        begin = time.monotonic()
        source, path = file_of(removal["module"]).read_text(), str(file_of(removal["module"]))
        if source.count(removal["old"]) != 1:
            seen, why = False, "what is to be removed is not there: bring the list up to date"
        else:
            code = compile(source.replace(removal["old"], removal["new"]), path, "exec")
            seen, why = judge_removal(removal, code, folder)
        unseen += not seen
        verdict = "seen" if seen else "NOT SEEN"
        print(f"{verdict:8} {removal['name']} [{time.monotonic() - begin:.0f} s] {why}", flush=True)
    return unseen


def judge_removal(removal: dict[str, Any], code: CodeType, folder: Path) -> tuple[bool, str]:
    """Whether a test fell, and which."""
    module, place, log = removal["module"], folder / "place", folder / "last.log"
    exports = folder / "exports" if copies_exports(module) else None
    status = judge.fork(
        lambda: judge.run_tests(removal["tests"], {module: code}, place, exports=exports), SECONDS_OF_A_REMOVAL, log
    )
    shutil.rmtree(place, ignore_errors=True)
    lines = log.read_text(errors="replace").splitlines()
    first = next((line for line in lines if line.startswith(("FAILED", "ERROR"))), f"status {status}")
    return status in (None, judge.FELL) or status < 0, first[:150]


def main() -> int:
    """Parse and go."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("--modules", default="", help="of the runtime, separated by commas; all of it if left out")
    parser.add_argument("--tests", default="", help="files of tests, separated by commas; all that fit if left out")
    parser.add_argument("--budget", type=int, default=300, help="mutants at most")
    parser.add_argument("--minutes", type=float, default=60.0, help="time at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / ".mutation", help="what is kept between runs")
    parser.add_argument("--map", action="store_true", help="only find which test runs which line")
    parser.add_argument(
        "--removals", nargs="?", const="", help="try the list of removals, or those whose name matches this"
    )
    parser.add_argument("--skip", type=int, default=0, help="so many removals at the beginning")
    options = parser.parse_args()
    for name in ("lines", "checkpoints", "exports"):
        (options.folder / name).mkdir(parents=True, exist_ok=True)
    judge.prepare()
    judge.remember_checkpoints(options.folder / "checkpoints")
    if options.map:
        found = line_map(options.folder / "lines", set(filter(None, options.tests.split(","))))
        print(f"{len(found)} tests, {sum(test['seconds'] for test in found.values()):.0f} s")
        return 0
    if options.removals is not None:
        return run_removals(options.folder, options.removals, options.skip)
    runtime = sorted(path.stem for path in judge.SOURCES["xlstm_edge_runtime"].glob("*.py") if path.stem != "__init__")
    modules = options.modules.split(",") if options.modules else runtime
    return run_mutants([m if "." in m else f"xlstm_edge_runtime.{m}" for m in modules], options)


if __name__ == "__main__":
    sys.exit(main())
