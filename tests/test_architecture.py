"""The house holds: floors, sizes, a true map in the README, a runtime that loads nothing it does not need."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import xlstm_edge
import xlstm_edge_runtime

from .conftest import SHIPPED

ROOT = SHIPPED.parent.parent
FLOORS = {
    "runtime/xlstm_edge_runtime": {"numpy", "onnxruntime", "tokenizers", "xlstm_edge_runtime"},
    "exporters/xlstm_edge_exporters": {
        "numpy", "torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "yaml", "xlstm_edge_runtime", "xlstm_edge_exporters",
        "xlstm", "transformers", "tokenizers", "dacite",
    },
    "xlstm_edge": {
        "numpy", "onnxruntime", "typer", "rich", "matplotlib", "xlstm_edge_runtime", "xlstm_edge_exporters", "xlstm_edge",
    },
}  # fmt: skip
TOP_LEVEL = {
    "pyproject.toml", "xlstm_edge", "exporters", "runtime", "tests", "examples", "README.md", "LICENSE", "CHANGELOG.md",
    "CONTRIBUTING.md", "Makefile",
}  # fmt: skip
# Whose own import must stay light: loading these never loads an exporter.
LAZY = {"xlstm_edge"}


def sources(folder: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path, ast.parse(path.read_text())


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("folder", FLOORS)
def test_nothing_imports_upwards(folder: str) -> None:
    allowed = FLOORS[folder] | set(sys.stdlib_module_names)
    for path, tree in sources(folder):
        assert not set(imported(tree)) - allowed, path


def test_the_roof_imports_exporters_only_when_asked() -> None:
    for path, tree in sources("xlstm_edge"):
        top = ast.Module([node for node in tree.body if not isinstance(node, ast.If)], [])
        functions = [n for n in ast.walk(top) if isinstance(n, ast.FunctionDef)]
        inside = {id(n) for f in functions for n in ast.walk(f)}
        at_import = [n for n in ast.walk(top) if isinstance(n, (ast.Import, ast.ImportFrom)) and id(n) not in inside]
        names = {name for node in at_import for name in imported(node)}
        assert not names & {"xlstm_edge_exporters", "torch"}, path


@pytest.mark.parametrize("folder", FLOORS)
def test_modules_and_functions_stay_small(folder: str) -> None:
    for path, tree in sources(folder):
        assert len(path.read_text().splitlines()) <= 350, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno is not None
                body = node.end_lineno - node.lineno + 1
                docstring = ast.get_docstring(node)
                body -= len(docstring.splitlines()) if docstring else 0
                assert body <= 40, f"{path}: {node.name} has {body} lines"


@pytest.mark.parametrize("folder", FLOORS)
def test_everything_public_says_what_it_is(folder: str) -> None:
    for path, tree in sources(folder):
        assert ast.get_docstring(tree), path
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                nested = any(
                    node in ast.walk(f) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f is not node
                )
                assert nested or ast.get_docstring(node), f"{path}: {node.name}"


def test_the_readme_s_map_is_true() -> None:
    text = (ROOT / "README.md").read_text()
    listed = set(re.findall(r"^\s*([\w/]+\.py)\s{2,}\S", text, re.MULTILINE))
    real = {str(path.relative_to(ROOT / folder)) for folder in FLOORS for path, _ in sources(folder)}
    real = {name for name in real if not name.endswith("__init__.py") and name != "__main__.py"}
    assert listed == real


def test_the_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    names = {name.split("/")[0] for name in tracked}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_the_version_is_said_once_and_the_same() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert stated == xlstm_edge_runtime.__version__ == xlstm_edge.__version__


def test_public_names_are_meant() -> None:
    for module in (xlstm_edge, xlstm_edge_runtime):
        code = f"import {module.__name__} as m; [getattr(m, n) for n in m.__all__]; print(*vars(m), *m.__all__)"
        names = set(run_without(set(), code).stdout.split())
        public = {name for name in names if not name.startswith("_")}
        modules = {name for name in public if isinstance(getattr(module, name, None), type(sys))}
        assert public - modules - {"TYPE_CHECKING", "Any"} == set(module.__all__) - {"__version__"}


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError("blocked " + name, name=name.split(".")[0])
sys.meta_path.insert(0, Block())
"""
HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "typer", "rich", "transformers", "safetensors", "yaml", "xlstm"}


def run_without(blocked: set[str], code: str, *words: object) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in which importing these fails as if they were not installed."""
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "exporters", "runtime"))
    return subprocess.run(
        [sys.executable, "-c", BLOCK.format(blocked=blocked) + code, *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,  # the exit code is what is looked at
    )


def test_the_runtime_runs_the_shipped_model_on_numpy_and_onnxruntime_alone(tmp_path: Path) -> None:
    xlstm_edge.export(SHIPPED, tmp_path / "bundle")
    code = """
import xlstm_edge_runtime as xr
session = xr.load(sys.argv[1]).session()
ids = [event.id for event in session.generate([5, 17], max_tokens=5) if isinstance(event, xr.Token)]
from xlstm_edge_runtime.verify import verify_bundle
checks = [check.name for check in verify_bundle(sys.argv[1])]
print(len(ids), len(checks))
"""
    result = run_without(HEAVY | {"tokenizers"}, code, tmp_path / "bundle")
    assert result.stdout.split() == ["5", "5"], result.stderr
    text = "import xlstm_edge_runtime as xr\nnext(xr.load(sys.argv[1]).stream('To be'))"
    result = run_without({"tokenizers"}, text, tmp_path / "bundle")
    assert "DependencyError" in result.stderr
    assert "xlstm-edge[text]" in result.stderr


def test_importing_the_facade_loads_no_torch() -> None:
    result = run_without(HEAVY, "import xlstm_edge; print(xlstm_edge.__version__)")
    assert result.stdout.strip() == xlstm_edge.__version__, result.stderr


@pytest.mark.parametrize(("missing", "extra"), [("typer", "xlstm-edge[cli]"), ("torch", "xlstm-edge[export]")])
def test_a_missing_extra_is_named(missing: str, extra: str) -> None:
    code = "from xlstm_edge.__main__ import main; sys.argv = ['xlstm-edge', 'inspect', sys.argv[1]]; main()"
    result = run_without({missing}, code, SHIPPED)
    assert result.returncode == 2
    assert extra in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("example", ["stream_text.py", "branch_a_session.py", "stream_sensor.py"])
def test_examples_run(example: str, tmp_path: Path) -> None:
    xlstm_edge.export(SHIPPED, tmp_path / "bundle")
    words = {
        "stream_text.py": ["ROMEO."],
        "branch_a_session.py": [tmp_path / "hamlet.safetensors"],
        "stream_sensor.py": [],
    }[example]
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "exporters", "runtime"))
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / example, tmp_path / "bundle", *words],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert len(result.stdout) > 40


@pytest.mark.parametrize("example", ["stream_text.py", "branch_a_session.py"])
def test_examples_say_how_they_are_called(example: str) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / example], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT / "runtime")},
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("usage: ")
    assert len(result.stderr.splitlines()) == 1


def test_the_branch_example_gives_true_scores(tmp_path: Path) -> None:
    xlstm_edge.export(SHIPPED, tmp_path / "bundle")
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "exporters", "runtime"))
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / "branch_a_session.py", tmp_path / "bundle"],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, cwd=tmp_path, check=True,
    )  # fmt: skip
    model = xlstm_edge.load(tmp_path / "bundle")
    prompt = model.encode("HAMLET.\nTo be, or not to be: that is the")
    for line in result.stdout.splitlines():
        option, score = re.fullmatch(r"'(.*)': log p (-[\d.]+),.*", line).groups()  # type: ignore[union-attr]  # matched or it fails
        session, expected = model.session(), 0.0
        logits = session.prefill(prompt)
        for token in model.tokenizer.encode(option, special=False):
            shifted = logits.astype(np.float64) - logits.max()
            expected += shifted[token] - np.log(np.exp(shifted).sum())
            logits = session.step(token)
        assert abs(float(score) - expected) < 0.01
    assert len(result.stdout.splitlines()) == 3
