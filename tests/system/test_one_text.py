"""One bundle, one seed, one text: Python and C here; `runtime/web/test/oneText.test.mjs` is the same in Node and Chromium.

On emulated boards it is `tests/arm64/test_c_on_boards.py`.
"""

import sys
from pathlib import Path

import pytest

from ..one_text import read, told
from .test_c_runtime import COMPILERS, LIBRARIES, Driver, ids_text, programs, sampler_words

__all__ = ["programs"]  # a fixture


def test_python(shipped_bundle: Path) -> None:
    golden = read()
    assert told(shipped_bundle) == golden
    assert len(golden["ids"]) == 64


def c_tells(driver: Driver, bundle: Path) -> tuple[list[str], str]:
    """Ids and text by the runtime in C."""
    golden = read()
    driver.ok("load", bundle)
    driver.ok("prefill", *ids_text(golden["prompt_ids"]))
    options = {name: value for name, value in golden["options"].items() if name != "max_tokens"}
    driver.ok("sampler", sampler_words(len(driver.logits()), options, golden["prompt_ids"]))
    *ids, reason = driver.ok("generate", golden["options"]["max_tokens"]).split()
    assert reason == "length"
    return ids, bytes.fromhex(driver.ok("decode", *ids_text(ids))).decode("utf-8")


@pytest.mark.skipif(
    sys.platform == "win32" or not COMPILERS or not LIBRARIES, reason="no C compiler, or no library of onnxruntime"
)
def test_c(programs: Path, shipped_bundle: Path) -> None:
    golden, driver = read(), Driver(programs / "driver")
    assert c_tells(driver, shipped_bundle) == ([str(token) for token in golden["ids"]], golden["text"])
    driver.close()
