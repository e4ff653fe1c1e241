"""The architecture holds: import directions, no circles, sizes, true maps, a runtime that loads nothing it does not need."""

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

from ..command import ROOT
from ..conftest import SHIPPED

PACKAGES = {
    "runtime/xlstm_edge_runtime": {"numpy", "onnxruntime", "tokenizers", "xlstm_edge_runtime"},
    "exporters/xlstm_edge_exporters": {
        "numpy", "torch", "onnx", "onnx_ir", "onnxscript", "safetensors", "yaml", "xlstm_edge_runtime", "xlstm_edge_exporters",
        "xlstm", "transformers", "tokenizers", "dacite", "huggingface_hub", "coremltools", "openvino", "nncf",
        "litert_torch",
    },
    "xlstm_edge": {
        "numpy", "onnxruntime", "typer", "rich", "matplotlib", "xlstm_edge_runtime", "xlstm_edge_exporters", "xlstm_edge",
    },
}  # fmt: skip
TOP_LEVEL = {
    "pyproject.toml", "xlstm_edge", "exporters", "runtime", "tests", "examples", "README.md", "LICENSE", "CHANGELOG.md",
    "CONTRIBUTING.md", "SECURITY.md", "Makefile",
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


@pytest.mark.parametrize("folder", PACKAGES)
def test_nothing_imports_upwards(folder: str) -> None:
    allowed = PACKAGES[folder] | set(sys.stdlib_module_names)
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


def import_graph() -> dict[str, set[str]]:
    """Module -> our modules that it imports, anywhere in it: at the top, inside functions, for types alone."""
    trees: dict[str, tuple[str, ast.Module]] = {}
    for folder in PACKAGES:
        for path, tree in sources(folder):
            name = ".".join((folder.rpartition("/")[2], *path.relative_to(ROOT / folder).with_suffix("").parts))
            package = name.rpartition(".")[0]
            trees[name.removesuffix(".__init__")] = (package, tree)
    graph: dict[str, set[str]] = {name: set() for name in trees}
    for name, (package, tree) in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & trees.keys()
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                source = ".".join([*above, *([node.module] if node.module else [])])
                for alias in node.names:
                    inner = f"{source}.{alias.name}"
                    graph[name] |= {inner if inner in trees else source} & trees.keys()
    return graph


def test_no_module_imports_itself_on_a_detour() -> None:
    graph, order = import_graph(), list[str]()
    while free := [name for name, needs in graph.items() if name not in order and not needs - {*order} - {name}]:
        order += free
    assert not (circle := graph.keys() - {*order}), sorted(circle)
    assert len(order) > 90  # the graph was really read
    assert "xlstm_edge_runtime.state" in graph["xlstm_edge_runtime.snapshot"]


def test_every_import_inside_a_function_has_its_reason_beside_it() -> None:
    for folder in PACKAGES:
        for path, tree in sources(folder):
            lines = path.read_text().splitlines()
            for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
                for node in ast.walk(function):
                    if isinstance(node, (ast.Import, ast.ImportFrom)):
                        assert re.search(r"# noqa: .*PLC0415  # \S", lines[node.lineno - 1]), f"{path}:{node.lineno}"


@pytest.mark.parametrize("folder", PACKAGES)
def test_modules_and_functions_stay_small(folder: str) -> None:
    """Of a function the statements count, not its parameters and its docstring."""
    for path, tree in sources(folder):
        assert len(path.read_text().splitlines()) <= 350, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                lines = (node.end_lineno or 0) - first.lineno + 1
                assert lines <= 40, f"{path}: {node.name} has {lines} lines"


# Classes that implement a protocol, which says what their methods do; a docstring there is only for what is special.
IMPLEMENTATIONS = {
    "Reference", "Parallel", "Rounded", "Jittered", "Recording", "Quantizing", "Ort", "Portable", "ByteTokenizer",
    "HuggingFaceTokenizer", "IdText", "Accelerator", "Web", "CPU",
}  # fmt: skip


@pytest.mark.parametrize("folder", PACKAGES)
def test_everything_public_says_what_it_is(folder: str) -> None:
    for path, tree in sources(folder):
        assert ast.get_docstring(tree), path
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                inside = [n for n in ast.walk(tree) if n is not node and node in ast.walk(n)]
                nested = any(isinstance(n, ast.FunctionDef) for n in inside)
                implements = any(isinstance(n, ast.ClassDef) and n.name in IMPLEMENTATIONS for n in inside)
                assert nested or implements or ast.get_docstring(node), f"{path}: {node.name}"


@pytest.mark.parametrize("folder", PACKAGES)
def test_the_map_in_each_package_s_readme_is_true(folder: str) -> None:
    readme = ROOT / (folder if folder == "xlstm_edge" else folder.partition("/")[0]) / "README.md"
    listed = re.findall(r"^    ([\w/]+\.py)\s{2,}\S", readme.read_text(), re.MULTILINE)
    real = [str(path.relative_to(ROOT / folder)) for path, _ in sources(folder)]
    assert sorted(listed) == sorted(name for name in real if not name.endswith("__init__.py") and name != "__main__.py")


TESTS_OF = {
    "runtime/xlstm_edge_runtime": "runtime",
    "exporters/xlstm_edge_exporters": "exporters",
    "xlstm_edge": "command_line",
}


def named_elsewhere() -> dict[str, list[str]]:
    """Module -> the files that tests/README.md names for it."""
    table = (ROOT / "tests/README.md").read_text().partition("## Modules without a file of their own")[2]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    names = {}
    for modules, files in rows:
        for module in re.findall(r"`([^`]+)`", modules):
            names.setdefault(module, []).extend(re.findall(r"`([^`]+)`", files))
    return names


@pytest.mark.parametrize("folder", TESTS_OF)
def test_the_tests_of_a_module_are_found_by_its_name(folder: str) -> None:
    place, elsewhere = ROOT / "tests" / TESTS_OF[folder], named_elsewhere()
    found = {str(path.relative_to(place)) for path in place.rglob("test_*.py")}
    modules, used = [path.relative_to(ROOT / folder) for path, _ in sources(folder)], set[str]()
    for module in modules:
        stem = str(module.with_name(f"test_{module.stem}"))
        own = {name for name in found if name == f"{stem}.py" or name.startswith(f"{stem}_")}
        used |= own
        if module.name not in ("__init__.py", "__main__.py") and not own:
            files = elsewhere.get(str(module), [])
            assert files, f"{folder}/{module}"
            assert all((ROOT / "tests" / file).is_file() for file in files), files
    packages = {
        str(module.parent) for module in modules if module.name == "__init__.py"
    }  # tests of a package as a whole
    named = {f"{package}/test_{package.rpartition('/')[2]}" for package in packages}
    assert not {name for name in found - used if not any(name.startswith(start) for start in named)}


def test_every_removal_still_applies() -> None:
    """What a protection's removal would change is in the source, and the tests that must fall exist."""
    for removal in tomllib.loads((ROOT / "tests/mutation/removals.toml").read_text())["removal"]:
        package, _, rest = removal["module"].partition(".")
        folder = next(folder for folder in PACKAGES if folder.rpartition("/")[2] == package)
        path = ROOT / folder / (rest.replace(".", "/") + ".py")
        path = path if path.is_file() else path.with_suffix("") / "__init__.py"
        assert path.read_text().count(removal["old"]) == 1, removal["name"]
        compile(path.read_text().replace(removal["old"], removal["new"]), removal["name"], "exec")
        for test in removal["tests"]:
            file, _, name = test.partition("::")
            assert f"def {name.partition('[')[0]}" in (ROOT / file).read_text(), test


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


def test_the_runtime_runs_the_shipped_model_on_numpy_and_onnxruntime_alone(shipped_bundle: Path) -> None:
    code = """
import xlstm_edge_runtime as xr
session = xr.load(sys.argv[1]).session()
ids = [event.id for event in session.generate([5, 17], max_tokens=5) if isinstance(event, xr.Token)]
from xlstm_edge_runtime.verify import verify_bundle
checks = [check.name for check in verify_bundle(sys.argv[1])]
print(len(ids), len(checks))
"""
    result = run_without(HEAVY | {"tokenizers"}, code, shipped_bundle)
    assert result.stdout.split() == ["5", "5"], result.stderr
    text = "import xlstm_edge_runtime as xr\nnext(xr.load(sys.argv[1]).stream('To be'))"
    result = run_without({"tokenizers"}, text, shipped_bundle)
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
def test_examples_run(example: str, shipped_bundle: Path, tmp_path: Path) -> None:
    words = {
        "stream_text.py": ["ROMEO."],
        "branch_a_session.py": [tmp_path / "hamlet.safetensors"],
        "stream_sensor.py": [],
    }[example]
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "exporters", "runtime"))
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / example, shipped_bundle, *words],
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


def test_the_branch_example_gives_true_scores(shipped_bundle: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "exporters", "runtime"))
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / "branch_a_session.py", shipped_bundle],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, cwd=tmp_path, check=True,
    )  # fmt: skip
    model = xlstm_edge.load(shipped_bundle)
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
