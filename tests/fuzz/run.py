"""Mutate and read, many times; count what comes out.

    python -m tests.fuzz.run --mutations 1000000 --seed 1

Every mutation is made from the seed and its number: `--only N` runs one again, with its traceback. Exit code 1 if anything
but success or an XlstmEdgeError came out, took longer than a second (twice), or made the process grow beyond 200 MB.
"""

import argparse
import contextlib
import faulthandler
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

from xlstm_edge_runtime.errors import XlstmEdgeError

from .targets import Target, targets

SLOW, HANGS, GROWTH = 1.0, 10.0, 200 << 20
REPORTED = 20


class HangError(BaseException):
    """A reader that did not come back."""


@dataclass
class Tally:
    """Counts by target and outcome, and the first faults with how to see them again."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fault(self, seed: int, number: int, target: str, what: str) -> None:
        """Keep a fault."""
        self.counts[target, "FAULT"] += 1
        if len(self.faults) < REPORTED:
            self.faults.append(f"--seed {seed} --only {number}  {target}: {what}"[:400])


def fuzz(
    root: Path, mutations: int, seed: int, *, only: int | None = None, target: str | None = None, every: float = 60.0
) -> Tally:
    """Run `mutations` of them (or one, or of one target) over a corpus made in `root`."""
    chosen, tally = [t for t in targets(root) if target in (None, t.name)], Tally()
    shares = [target.share for target in chosen]
    signal.signal(signal.SIGALRM, _hang)
    peak, said = _peak(), time.monotonic()
    for number in range(mutations) if only is None else [only]:
        rng = Random(f"{seed}:{number}")
        one = rng.choices(chosen, shares)[0]
        _one(tally, one, rng, seed, number, debug=only is not None)
        if (grown := _peak()) > peak + GROWTH:
            tally.fault(seed, number, one.name, f"grew to {grown >> 20} MB")
            peak = grown
        if time.monotonic() - said > every:
            said = time.monotonic()
            sys.stderr.write(f"{number + 1:,} of {mutations:,}, {len(tally.faults)} faults\n")
    return tally


def _one(tally: Tally, target: Target, rng: Random, seed: int, number: int, *, debug: bool) -> None:
    begin, state = time.perf_counter(), rng.getstate()
    outcome = _outcome(target, rng, debug)
    if outcome.startswith("!"):
        tally.fault(seed, number, target.name, outcome)
        return
    if time.perf_counter() - begin > SLOW:  # once more, as the machine may have been busy
        rng.setstate(state)
        begin = time.perf_counter()
        _outcome(target, rng, debug)
        if (seconds := time.perf_counter() - begin) > SLOW:
            tally.fault(seed, number, target.name, f"took {seconds:.1f} s")
            return
    tally.counts[target.name, outcome] += 1


def _outcome(target: Target, rng: Random, debug: bool) -> str:
    """The class of what came out; with a ! before what must not."""
    signal.setitimer(signal.ITIMER_REAL, HANGS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.run(rng)
    except XlstmEdgeError as error:
        if debug:
            traceback.print_exc()
        message = str(error)
        whole = message.isprintable() and len(message) < 1500 and "expected" in message
        return type(error).__name__ if whole else f"! message {message[:200]!r}"
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever else comes out is what is looked for
        if debug:
            traceback.print_exc()
        return f"! {type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return "success"


def _hang(_signal: int, _frame: FrameType | None) -> None:
    raise HangError(f"no answer within {HANGS:g} s")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report(tally: Tally) -> Iterator[str]:
    """A line a target, then the faults."""
    for name in dict.fromkeys(name for name, _ in sorted(tally.counts)):
        row = {outcome: count for (target, outcome), count in sorted(tally.counts.items()) if target == name}
        yield f"{name:<22} {sum(row.values()):>9,}  " + ", ".join(
            f"{outcome} {count:,}" for outcome, count in row.items()
        )
    yield f"{'all':<22} {sum(tally.counts.values()):>9,}  {len(tally.faults)} faults"
    yield from tally.faults


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--target")
    arguments = parser.parse_args()
    faulthandler.enable()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        tally = fuzz(Path(folder), arguments.mutations, arguments.seed, only=arguments.only, target=arguments.target)
    print("\n".join(report(tally)))
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
