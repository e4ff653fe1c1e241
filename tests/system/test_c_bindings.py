"""The layers over the C runtime compile where their compiler is, and Java gives the ids that Python gives."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import xlstm_edge_runtime as xr

from ..command import ROOT

C = ROOT / "runtime" / "c"
STRICT = "-std=c99 -Wall -Wextra -Werror -pedantic -ffp-contract=off -O1 -shared -fPIC".split()
LIBRARY = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.*"))
PROMPT = ["5", "17", "3"]


def java_home() -> Path | None:
    """The folder with jni.h of the javac that is on the path."""
    javac = shutil.which("javac")
    home = Path(javac).resolve().parents[1] if javac else None
    return home if home and (home / "include" / "jni.h").exists() else None


@pytest.fixture(scope="module")
def java(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Bundle, tokens, seed, temperature, ids -> the example's process, with every use of JNI checked."""
    home = java_home()
    if home is None or shutil.which("cc") is None:
        pytest.skip("no JDK with jni.h, or no C compiler: the layer for Java was not compiled")
    folder = tmp_path_factory.mktemp("java")
    headers = [f"-I{home}/include", f"-I{home}/include/linux", f"-I{home}/include/darwin"]
    sources = [C / "bindings/java/xlstm_edge_jni.c", C / "xlstm_edge.c"]
    out = folder / "libxlstm_edge_jni.so"
    subprocess.run(["cc", *STRICT, *headers, *sources, "-o", out, "-ldl", "-lm"], check=True)
    classes = sorted((C / "bindings/java").glob("*.java"))
    subprocess.run([home / "bin/javac", "-Xlint:all", "-Werror", "-d", folder, *classes], check=True)
    run = [home / "bin/java", "-Xcheck:jni", f"-Djava.library.path={folder}", "-cp", folder, "Example"]
    return lambda *words: subprocess.run([*run, *map(str, words)], capture_output=True, text=True, check=False)


def test_java_gives_the_same_ids(
    java: Callable[..., subprocess.CompletedProcess[str]], export_of: Callable[..., Path]
) -> None:
    """Of a sampler with a seed, which any other logit would lead elsewhere; JNI's own checks find nothing."""
    bundle = export_of("shipped")
    events = (
        xr.load(bundle, threads=1, tuned=False)
        .session()
        .generate(np.array(PROMPT, np.int64), max_tokens=24, temperature=0.8, seed=7)
    )
    wanted = [str(event.id) for event in events if isinstance(event, xr.Token)]
    done = java(bundle, LIBRARY, 24, 7, 0.8, *PROMPT)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, wanted, "")
    assert len(wanted) == 24


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["nowhere", LIBRARY, 4, 1, 0.8, 5], "expected a bundle folder"),
        (["", LIBRARY, 4, 1, -1, 5], "expected temperature"),
        (["", LIBRARY, 4, 1, 0.8, 99999], "expected token ids"),
    ],
)
def test_java_throws_one_sentence(
    words: list[object],
    sentence: str,
    java: Callable[..., subprocess.CompletedProcess[str]],
    export_of: Callable[..., Path],
) -> None:
    done = java(words[0] or export_of("shipped"), *words[1:])
    assert done.returncode == 1
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1


def test_swift_compiles(tmp_path: Path) -> None:
    swiftc = shutil.which("swiftc")
    if swiftc is None:
        pytest.skip("no swiftc: the layer for Swift was not compiled")
    swift = C / "bindings" / "swift"
    subprocess.run([swiftc, "-typecheck", "-I", swift, swift / "XlstmEdge.swift"], check=True, cwd=tmp_path)
