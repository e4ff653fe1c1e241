"""The runtime in C computes, samples, saves and refuses what the Python runtime does; sanitizers watch it read hostile files.

XE_COMPILERS names compilers to build with (default: gcc and clang, where they are), XE_MUTATIONS how many manifests to spoil.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

import xlstm_edge_runtime as xr
from xlstm_edge_runtime.errors import BundleError, StateError
from xlstm_edge_runtime.manifest import Manifest, file_entry
from xlstm_edge_runtime.sampling import Sampler, SamplingOptions
from xlstm_edge_runtime.snapshot import read_snapshot

from ..changed_bundles import edit_json
from ..command import ROOT
from ..conformance import FOLDER as CONFORMANCE
from ..fuzz import mutate
from ..shared import Shared
from ..web_fixtures import sampling_options
from .test_malformed import MANIFESTS, TEXTS

SOURCE, DRIVER = ROOT / "runtime" / "c", Path(__file__).with_name("c_driver.c")
COMPILERS = [name for name in os.environ.get("XE_COMPILERS", "gcc clang").split() if shutil.which(name)]
MUTATIONS = int(os.environ.get("XE_MUTATIONS", "1000"))
LIBRARIES = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.*"))
STRICT = "-std=c99 -Wall -Wextra -Werror -pedantic -ffp-contract=off -ldl -lm".split()
SANITIZED = "-O0 -g -fsanitize=address,undefined -fno-sanitize-recover=all".split()
# onnxruntime throws inside itself, which clang's sanitizer takes for an error where the program has no C++ library.
THROWS = ["-Wl,--no-as-needed", "-lstdc++"] if COMPILERS[-1:] == ["clang"] else []
CODES = {1: xr.InputError, 2: BundleError, 3: StateError, 4: xr.VerificationError}
GOLDEN = json.loads((ROOT / "tests/golden/sampling.json").read_text())["cases"]
pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="the runtime in C is for POSIX systems"),
    pytest.mark.skipif(not COMPILERS, reason="no C compiler"),
    pytest.mark.skipif(not LIBRARIES, reason="onnxruntime's package has no shared library of its own here"),
]


def build(compiler: str, out: Path, *words: str | Path) -> Path:
    """A program; whatever the compiler warns of fails."""
    line = [compiler, *map(str, words), "-I", str(SOURCE), "-o", str(out), *STRICT]
    result = subprocess.run(line, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return out


class Driver:
    """A process that calls the C runtime."""

    def __init__(self, *line: Path | str, **variables: str) -> None:
        environment = {**os.environ, "XLSTM_EDGE_ONNXRUNTIME": str(LIBRARIES[0]), **variables}
        self._process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def __call__(self, *fields: object) -> tuple[int, str]:
        """Code, and what came of it or the sentence."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\t".join(map(str, fields)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"died at {fields}: {self._process.communicate()[1][:3000]}"
        code, _, rest = line.rstrip("\n").partition("\t")
        return int(code), rest

    def ok(self, *fields: object) -> str:
        """What came of a call that must work."""
        code, rest = self(*fields)
        assert code == 0, rest
        return rest

    def refused(self, *fields: object) -> int:
        """The code of a call that fails in one sentence; 0 for one that does not."""
        code, rest = self(*fields)
        if code:
            assert rest.startswith("expected ") and "got" in rest and ";" in rest, rest
            assert rest.isascii() and rest.isprintable() and len(rest) < 1000, rest
        return code

    def logits(self) -> NDArray[np.float32]:
        """Of the last call, bit by bit."""
        return np.frombuffer(bytes.fromhex(self.ok("logits")), ">u4").astype("<u4").view(np.float32)

    def close(self) -> None:
        """Ends well, with nothing left unfreed where the build looks."""
        _, complaints = self._process.communicate()
        assert self._process.returncode == 0, complaints[:3000]


@pytest.fixture(scope="module")
def programs(shared: Shared) -> Path:
    """The command line by every compiler, and the driver, plain and sanitized, built once a run: C99 without a warning."""

    def make(folder: Path) -> None:
        folder.mkdir()
        for compiler in COMPILERS:
            build(compiler, folder / compiler, "-O2", SOURCE / "xlstm_edge.c", SOURCE / "main.c")
        build(COMPILERS[0], folder / "driver", "-O1", DRIVER)
        build(COMPILERS[-1], folder / "sanitized", *SANITIZED, *THROWS, DRIVER)

    return shared.folder("c-runtime", make)


@pytest.fixture(scope="module", params=["driver", "sanitized"])
def driver(programs: Path, request: pytest.FixtureRequest) -> Iterator[Driver]:
    driver = Driver(programs / request.param)
    yield driver
    driver.close()


@pytest.fixture
def sanitized(programs: Path) -> Iterator[Driver]:
    driver = Driver(programs / "sanitized")
    yield driver
    driver.close()


def test_the_header_for_cpp(programs: Path, tmp_path: Path, shipped_bundle: Path) -> None:
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "use.cpp").write_text(CPP)
    build(COMPILERS[0], tmp_path / "xlstm_edge.o", "-O1", "-c", SOURCE / "xlstm_edge.c")
    line = f"{compiler} -std=c++11 -Wall -Wextra -Werror -pedantic -I {SOURCE} use.cpp xlstm_edge.o -o use -ldl -lm"
    subprocess.run(line.split(), cwd=tmp_path, check=True)
    out = subprocess.run(
        [tmp_path / "use", shipped_bundle, LIBRARIES[0]], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    ids = [e.id for e in xr.load(shipped_bundle).session().generate([5, 17], max_tokens=8) if isinstance(e, xr.Token)]
    assert out[0] == " ".join(map(str, ids))
    assert out[1].startswith("2 expected a bundle folder")


CPP = """
#include "xlstm_edge.hpp"
#include <iostream>
int main(int, char **words) {
    xe_options options = xe_options();
    options.onnxruntime = words[2];
    xe::Model model(words[1], options);
    xe::Session session = model.session();
    xe::Sampler sampler(model);
    const float *logits = session.prefill({5, 17});
    for (int i = 0; i < 8; i++) {
        int64_t id = sampler(logits);
        std::cout << (i ? " " : "") << id;
        logits = session.step(id);
    }
    std::cout << std::endl;
    try {
        xe::Model nothing("nowhere");
    } catch (const xe::Error &error) {
        std::cout << error.code() << " " << error.what() << std::endl;
    }
}
"""


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_same_ids_for_a_seed_and_nothing_in_the_home_folder(
    compiler: str, programs: Path, shipped_bundle: Path, tmp_path: Path
) -> None:
    """Without the variables that keep onnxruntime's telemetry silent by themselves."""
    model = xr.load(shipped_bundle, threads=1)
    environment = {"HOME": str(tmp_path), "XLSTM_EDGE_ONNXRUNTIME": str(LIBRARIES[0])}
    for seed, temperature in ((0, 0.0), (7, 0.8), (2**64 - 1, 1.0)):
        options = {"temperature": temperature, "seed": seed} if temperature else {}
        events = model.session().generate([5, 17, 3], max_tokens=64, **options)  # type: ignore[arg-type]
        expected = [event.id for event in events if isinstance(event, xr.Token)]
        words = ["--max-tokens", "64", "--seed", str(seed), "--temperature", str(temperature)]
        line = [str(programs / compiler), str(shipped_bundle), "5", "17", "3", *words]
        result = subprocess.run(line, capture_output=True, text=True, env=environment, check=False)
        assert result.returncode == 0, result.stderr
        assert [int(word) for word in result.stdout.split()] == expected
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["5", "--seed", "-1"],
        ["5", "--seed", ""],
        ["5", "--seed"],
        ["5", "--seed", str(2**64)],
        ["5", "--max-tokens", "-5"],
        ["5", "--max-tokens", "5x"],
        ["5", "--temperature", "nan"],
        ["-5"],
        [""],
        ["5", "--bogus", "5"],
    ],
)
def test_words_that_are_no_numbers_get_the_usage(words: list[str], programs: Path, shipped_bundle: Path) -> None:
    """Not another number: -1 would be a seed of 2^64 - 1."""
    result = subprocess.run(
        [programs / COMPILERS[0], shipped_bundle, *words], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("usage: ")


CASES = [
    ("shipped", {}),
    ("lm-mixed", {"target": "cpu", "chunk": 16}),
    ("large-plain", {"chunk": 16, "all_logits": True}),
    ("lm-mixed", {"target": "genai", "chunk": 16}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_logits_are_those_of_python_bit_by_bit(
    name: str, options: dict[str, Any], driver: Driver, export_of: Callable[..., Path]
) -> None:
    """Chunks, a rest of another length, a rest of one token, then tokens one by one."""
    bundle = export_of(name, **options)
    model = xr.load(bundle, threads=1)
    session = model.session()
    driver.ok("load", bundle)
    for count in (2 * model.chunk + 5, model.chunk + 1, 1, 1, 3):
        ids = np.arange(count) * 7 % model.output_width
        expected = session.prefill(ids)
        driver.ok("prefill", *ids_text(ids))
        np.testing.assert_array_equal(driver.logits(), expected)
    assert int(driver.ok("tokens")) == session.tokens


CHUNKS = {"cpu": 16, "openvino": 8}


def ids_text(ids: Any) -> list[str]:
    return [" ".join(map(str, ids))]


def test_golden_ids(driver: Driver) -> None:
    for case in GOLDEN:
        driver.ok("sampler", sampler_words(case["vocab"], case["options"], case["prompt"]))
        assert driver.ok("golden", f"{case['salt']} {len(case['ids'])}").split() == [str(i) for i in case["ids"]]


def sampler_words(vocab: int, options: dict[str, Any], prompt: list[int]) -> str:
    words = [str(vocab), str(options["seed"])]
    for name, value in options.items():
        if name == "logit_bias":
            words += [f"bias={token}:{bias!r}" for token, bias in value.items()]
        elif name == "banned":
            words += [f"banned={token}" for token in value]
        elif name != "seed":
            words.append(f"{name}={value!r}")
    return " ".join([*words, *(f"prompt={token}" for token in prompt)])


def test_random_options_over_random_logits_sample_as_python_does(driver: Driver, tmp_path: Path) -> None:
    """Ties, minus infinity and tiny temperatures among them."""
    rng = Random("sampling")
    for number in range(60):
        vocab, steps = rng.choice((1, 2, 7, 50, 300)), 12
        numbers = np.random.default_rng(number).standard_normal((steps, vocab)) * rng.choice((0.1, 3, 30))
        z = np.round(numbers, rng.choice((0, 1, 6))).astype(np.float32)
        z[:, :-1][np.random.default_rng(number).random((steps, vocab))[:, :-1] < rng.choice((0, 0.2))] = -np.inf
        options = sampling_options(rng, vocab)
        if options["banned"]:
            z[:, 0] = 0.5
        prompt = [rng.randrange(vocab) for _ in range(5)]
        sampler = Sampler(SamplingOptions(**options), vocab, prompt=prompt)
        (tmp_path / "logits").write_bytes(z.tobytes())
        driver.ok("sampler", sampler_words(vocab, options, prompt))
        assert driver.ok("sample_file", tmp_path / "logits").split() == [str(sampler(row)) for row in z], options


@pytest.mark.parametrize("row", [[np.nan, 1], [np.inf, 1], [-np.inf, -np.inf]])
def test_logits_that_are_no_numbers(row: list[float], driver: Driver, tmp_path: Path) -> None:
    (tmp_path / "logits").write_bytes(np.array(row, np.float32).tobytes())
    driver.ok("sampler", "2 1 temperature=1.0")
    assert driver.ok("sample_file", tmp_path / "logits").split() == ["-4"]


def test_a_token_allocates_nothing(programs: Path, shipped_bundle: Path) -> None:
    driver = Driver(programs / "driver")
    driver.ok("load", shipped_bundle)
    driver.ok("sampler", "2048 3 temperature=0.8 top_k=40 top_p=0.9 repetition_penalty=1.1")
    driver.ok("decode", "1")
    assert driver.ok("allocations", 100) == "0"
    driver.close()


def test_bytes_of_ids(driver: Driver, shipped_bundle: Path) -> None:
    model = xr.load(shipped_bundle)
    ids = np.random.default_rng(5).integers(0, model.output_width, 500)
    driver.ok("load", shipped_bundle)
    text = bytes.fromhex(driver.ok("decode", *ids_text(ids))).decode("utf-8", errors="replace")
    assert text == model.tokenizer.decode([int(i) for i in ids])


def test_threads_that_share_a_model(tmp_path: Path) -> None:
    """And the file of their snapshots; a sanitizer watches what they touch."""
    words = [
        "-O1",
        "-g",
        "-fsanitize=thread",
        "-pthread",
        SOURCE / "xlstm_edge.c",
        Path(__file__).with_name("c_threads.c"),
    ]
    program = build(COMPILERS[0], tmp_path / "threads", *words)
    (tmp_path / "states").mkdir()
    line = [program, CONFORMANCE / "bundles" / "mixed", LIBRARIES[0], tmp_path / "states"]
    result = subprocess.run(line, capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in result.stderr:
        pytest.skip("this kernel places programs where an older ThreadSanitizer cannot be")
    assert (result.returncode, result.stderr) == (0, "")
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["state"]


def change_tokenizer(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_json(bundle / "tokenizer.json", change)
    entry = file_entry(bundle / "tokenizer.json")
    listed = {"bytes": entry.bytes, "sha256": entry.sha256}
    edit_json(bundle / "manifest.json", lambda d: d["files"].update({"tokenizer.json": listed}))


def tokens_of(*added: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """No other tokens than a few of the vocabulary and these, of ids far apart."""

    def change(document: dict[str, Any]) -> None:
        document["model"].update(vocab={"a": 5, "b": 9, "c": 2**31}, merges=[])
        document["added_tokens"] = list(added)
        document["post_processor"] = None

    return change


def added(token: int, content: str, special: bool) -> dict[str, Any]:
    names = ("single_word", "lstrip", "rstrip", "normalized")
    return {"id": token, "content": content, "special": special} | dict.fromkeys(names, False)


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """A bundle with a tokenizer.json."""
    return Path(shutil.copytree(CONFORMANCE / "bundles" / "mixed", tmp_path / "bundle"))


def test_bytes_of_few_ids_far_apart(sanitized: Driver, spoken: Path) -> None:
    change_tokenizer(spoken, tokens_of(added(9, "<b>", True), added(300, "é", False)))
    sanitized.ok("load", spoken)
    for token, text in ((5, "a"), (9, ""), (4, ""), (6, ""), (0, ""), (339, "")):
        assert bytes.fromhex(sanitized.ok("decode", str(token))).decode() == text
    assert bytes.fromhex(sanitized.ok("decode", "300")) == b"\xe9"  # é is a byte to the decoder


def test_a_tokenizer_without_added_tokens(sanitized: Driver, spoken: Path) -> None:
    """The library needs no such member."""
    change_tokenizer(spoken, lambda d: (tokens_of()(d), d.pop("added_tokens")))
    assert xr.load(spoken).tokenizer.decode([5, 9, 5]) == "aba"
    sanitized.ok("load", spoken)
    assert bytes.fromhex(sanitized.ok("decode", "5 9 5")) == b"aba"


def test_a_token_of_half_a_pair_is_no_text(sanitized: Driver, spoken: Path) -> None:
    change_tokenizer(spoken, tokens_of(added(7, "\ud800", False)))
    with pytest.raises(BundleError):
        _ = xr.load(spoken).tokenizer
    sanitized.ok("load", spoken)
    assert sanitized.refused("decode", "7") == 2


def test_any_shortage_of_memory_is_told_as_one(sanitized: Driver, spoken: Path, tmp_path: Path) -> None:
    """Each allocation of each call fails once: XE_MEMORY, nothing left behind, and the next call works."""
    calls = [
        ("load", spoken), ("prefill", "1 2 3"), ("fork",), ("save", tmp_path / "state"), ("restore", tmp_path / "state"),
        ("sampler", "340 1 temperature=1.0 repetition_penalty=1.2 banned=3"), ("decode", "5"),
    ]  # fmt: skip
    for call in calls:
        shortages = 0
        while True:
            if call[0] in ("prefill", "fork", "decode"):
                sanitized.ok("load", spoken)
            if call[0] == "fork":
                sanitized.ok("prefill", "1 2 3")
            sanitized.ok("starve", shortages + 1)
            code = sanitized.refused(*call)
            if sanitized.ok("starve", 0) != "1":
                break
            assert code == 6, (call, shortages)
            shortages += 1
            assert [path.name for path in tmp_path.iterdir() if path != spoken] in ([], ["state"])
            if call[0] == "load":
                sanitized.ok("load", spoken)
        assert code == 0
        assert shortages >= (0 if call[0] == "prefill" else 2), call


def test_a_locale_of_another_decimal_point(programs: Path, copy: Path, tmp_path: Path) -> None:
    """Of more than one byte even; a test that nothing is read in the locale of the app."""
    if shutil.which("localedef") is None or not Path("/usr/share/i18n/locales/ps_AF").exists():
        pytest.skip("no locales to compile on this system")
    (tmp_path / "locales").mkdir()
    line = ["localedef", "--no-archive", "-c", "-i", "ps_AF", "-f", "UTF-8", tmp_path / "locales" / "ps_AF.UTF-8"]
    subprocess.run(line, capture_output=True, check=False)  # it warns, with a code, of what is odd in that locale
    edit_json(copy / "manifest.json", lambda d: d["sampling"].update(temperature=0.75, top_p=0.5))
    driver = Driver(programs / "driver", LOCPATH=str(tmp_path / "locales"), LC_ALL="ps_AF.UTF-8")
    driver.ok("load", copy)
    assert driver.ok("defaults").startswith("temperature=0\u066b75 ")  # the locale is there
    assert "top_p=0\u066b5 " in driver.ok("defaults")
    driver.close()


def test_a_link_to_nothing_stays_a_link(driver: Driver, spoken: Path, tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "first").symlink_to("second")
    (tmp_path / "links" / "second").symlink_to("../there")
    (tmp_path / "links" / "circle").symlink_to("circle")
    driver.ok("load", spoken)
    driver.ok("save", tmp_path / "links" / "first")
    assert (tmp_path / "links" / "first").readlink() == Path("second")
    assert (tmp_path / "there").is_file() and not (tmp_path / "there").is_symlink()
    assert driver.refused("save", tmp_path / "links" / "circle") == 3
    assert (tmp_path / "links" / "circle").is_symlink()


@pytest.mark.skipif(sys.platform != "linux", reason="the driver finds the name of an open file in /proc")
def test_a_new_file_that_is_cleared_away_before_it_is_locked(driver: Driver, spoken: Path, tmp_path: Path) -> None:
    """Another process may take it for a leftover."""
    driver.ok("load", spoken)
    driver.ok("sweep", 3)
    driver.ok("save", tmp_path / "state")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "state"]


def test_tokenizers_of_bytes_and_none(sanitized: Driver, copy: Path) -> None:
    for kind, code in (("byte", 0), ("none", 1)):
        edit_json(copy / "manifest.json", lambda d: d["tokenizer"].update(kind=kind))  # noqa: B023  # called at once
        sanitized.ok("load", copy)
        got = sanitized("decode", "72 42 3")
        assert got[0] == code
        assert code or bytes.fromhex(got[1]) == b"H*\x03"


@pytest.mark.parametrize(("name", "options"), CASES)
def test_snapshots_go_both_ways(
    name: str, options: dict[str, Any], driver: Driver, export_of: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = export_of(name, **options)
    model, ids = xr.load(bundle, threads=1), [1, 2, 3, 4, 5]
    session = model.session()
    session.prefill(ids)
    session.save(tmp_path / "python")
    driver.ok("load", bundle)
    driver.ok("prefill", *ids_text(ids))
    driver.ok("save", tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == (tmp_path / "python").read_bytes()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["c", "python"]
    for dtype in ("float32", "float16"):
        session.save(tmp_path / dtype, dtype=dtype)
        there, back = model.session(), model.session()
        there.load(tmp_path / dtype)
        driver.ok("restore", tmp_path / dtype)
        driver.ok("fork")
        assert driver.ok("tokens") == "5"
        driver.ok("save", tmp_path / "again")
        back.load(tmp_path / "again")
        driver.ok("prefill", "6 7")
        expected = there.prefill([6, 7])
        np.testing.assert_array_equal(driver.logits(), expected)
        np.testing.assert_array_equal(back.prefill([6, 7]), expected)


@pytest.mark.parametrize(("name", "targets"), [("lm-mixed", ("cpu", "openvino")), ("large-plain", ("cpu", "openvino"))])
def test_snapshots_of_other_targets_of_a_checkpoint(
    name: str, targets: tuple[str, ...], sanitized: Driver, export_of: Callable[..., Path], tmp_path: Path
) -> None:
    """Other splits of heads and start values, stabilizers less a constant or none; a graph for prompts, which C leaves out."""
    bundles = [export_of(name, target=target, chunk=CHUNKS[target]) for target in targets]
    models = {bundle: xr.load(bundle, threads=1) for bundle in bundles}
    assert models[bundles[-1]].prompts is not None
    for source in bundles:
        session = models[source].session()
        session.prefill([1, 2, 3])
        session.save(tmp_path / "state")
        for bundle in bundles:
            there = models[bundle].session()
            there.load(tmp_path / "state")
            sanitized.ok("load", bundle)
            sanitized.ok("restore", tmp_path / "state")
            sanitized.ok("prefill", "6 7")
            expected = [there.step(token) for token in (6, 7)] if there.model.prompts else [there.prefill([6, 7])]
            # NumPy's float32 exp and log may end in another bit than the C library's.
            allowed = 1e-6 * np.ptp(expected[-1]) if name == "large-plain" and bundle != source else 0.0
            assert np.abs(sanitized.logits() - expected[-1]).max() <= allowed


def test_what_is_wrong_with_a_call_changes_nothing(driver: Driver, shipped_bundle: Path, tmp_path: Path) -> None:
    driver.ok("load", shipped_bundle)
    driver.ok("prefill", "1 2")
    for words in (["prefill", "3 2048"], ["prefill", "-1"], ["prefill"]):
        assert driver.refused(*words) == 1
    for path in (tmp_path, tmp_path / "nothing", shipped_bundle / "manifest.json"):
        assert driver.refused("restore", path) == 3
    for path in (tmp_path, tmp_path / "no folder" / "state"):
        assert driver.refused("save", path) == 3
    assert driver.ok("tokens") == "2"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def copy(export_of: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(export_of("lm-mixed", target="cpu", chunk=16), tmp_path / "bundle"))


def test_malformed_manifests(sanitized: Driver, copy: Path) -> None:
    """Every named class of them; and the healthy one is taken."""
    sanitized.ok("load", copy)
    original = (copy / "manifest.json").read_bytes()
    contents = dict(TEXTS)
    for name, change in MANIFESTS.items():
        document = json.loads(original)
        change(document)
        contents[name] = json.dumps(document).encode()
    for name, content in contents.items():
        (copy / "manifest.json").write_bytes(content)
        assert sanitized.refused("load", copy) == 2, name


def test_damaged_files(sanitized: Driver, copy: Path, tmp_path: Path) -> None:
    for name in ("model.onnx", "model.onnx.data", "vectors.json"):
        healthy = (copy / name).read_bytes()
        for spoiled in (healthy[:-1], bytes([healthy[0] ^ 1]) + healthy[1:]):
            (copy / name).write_bytes(spoiled)
            assert sanitized.refused("load", copy) == 2
        (copy / name).unlink()
        assert sanitized.refused("load", copy) == 2
        (tmp_path / "elsewhere").write_bytes(healthy)
        (copy / name).symlink_to(tmp_path / "elsewhere")
        assert sanitized.refused("load", copy) == 2
        (copy / name).unlink()
        os.mkfifo(copy / name)
        assert sanitized.refused("load", copy) == 2
        (copy / name).unlink()
        (copy / name).write_bytes(healthy)
    sanitized.ok("load", copy)


def test_large_files_are_hashed_where_that_is_asked_for(copy: Path, programs: Path) -> None:
    driver = Driver(programs / "driver")
    size = (16 << 20) + 1
    (copy / "large").write_bytes(bytes(size))
    edit_json(copy / "manifest.json", lambda d: d["files"].update(large={"bytes": size, "sha256": "0" * 64}))
    driver.ok("load", copy)
    assert driver.refused("load", copy, "hash all") == 2
    driver.close()


def test_links_of_the_hugging_face_cache(sanitized: Driver, copy: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for path in copy.iterdir():
        path.rename(blobs / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    sanitized.ok("load", snapshot)


def test_hashes_of_every_length_of_the_last_block(driver: Driver, tmp_path: Path) -> None:
    for size in (0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 65535, 65536, 200_001):
        (tmp_path / "file").write_bytes(bytes(i * 7 % 251 for i in range(size)))
        assert driver.ok("hash", tmp_path / "file") == file_entry(tmp_path / "file").sha256


def verdict(call: Callable[[], object]) -> int:
    """The code that C gives for what Python says."""
    try:
        call()
    except xr.XlstmEdgeError as error:
        return next(code for code, kind in CODES.items() if isinstance(error, kind))
    return 0


def utf8(content: bytes) -> str:
    """As `read_manifest` does it."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError("expected UTF-8, got other bytes; mend them") from error


def test_mutated_manifests_are_judged_as_in_python(sanitized: Driver, copy: Path, tmp_path: Path) -> None:
    document, path = json.loads((copy / "manifest.json").read_text()), tmp_path / "mutated"
    document["quantization"] = {
        "recipe": {"quantize": "int4", "keep": {"x": 8}, "target_mb": 3, "chunk": 8, "all_logits": False},
        "tensors": {"x": {"bits": 4, "block_size": 64}, "y": {"bits": 8, "block_size": 0}},
    }
    document["sampling"] = {"temperature": 0.5, "top_k": 3, "penalty_window": 9}
    document["compiled"] = {"8gen2": {"file": "model.onnx", "provider": "qnn", "weights": "int8", "prompt": None}}
    document["compiled"]["8gen2"]["file"] = "model.8gen2.onnx"
    document["files"]["model.8gen2.onnx"] = document["files"]["model.onnx"]
    taken = 0
    for number in range(MUTATIONS):
        content = mutate.json_bytes(Random(f"c:{number}"), document)
        path.write_bytes(content)
        expected = verdict(lambda: Manifest.from_json(utf8(content)))  # noqa: B023  # called at once
        assert sanitized.refused("manifest", path) == expected, f"mutation {number}: {content[:300]!r}"
        taken += not expected
    assert 0.02 < taken / MUTATIONS < 0.9


def test_mutated_snapshots_are_judged_as_in_python(sanitized: Driver, copy: Path, tmp_path: Path) -> None:
    model, path = xr.load(copy, threads=1), tmp_path / "mutated"
    session, healthy = model.session(), []
    session.prefill([1, 2, 3])
    for dtype in ("float32", "float16"):
        session.save(path, dtype=dtype)
        healthy.append(path.read_bytes())
    sanitized.ok("load", copy)
    taken = 0
    for number in range(MUTATIONS // 2):
        rng = Random(f"s:{number}")
        path.write_bytes(mutate.safetensors(rng, rng.choice(healthy)))
        expected = verdict(lambda: read_snapshot(path, model.manifest.state, source=model.manifest.source))
        assert sanitized.refused("restore", path) == expected, f"mutation {number}"
        taken += not expected
    assert 0.02 < taken / (MUTATIONS // 2) < 0.9


def test_mutated_graphs_end_in_a_sentence(sanitized: Driver, copy: Path) -> None:
    """Of those that Python's own check of graph files refuses none is opened."""
    from xlstm_edge_runtime.graph_file import check_graph_file

    graph, document = (copy / "model.onnx").read_bytes(), json.loads((copy / "manifest.json").read_text())
    for number in range(max(10, MUTATIONS // 20)):
        (copy / "model.onnx").write_bytes(mutate.protobuf(Random(f"g:{number}"), graph))
        entry = file_entry(copy / "model.onnx")
        document["files"]["model.onnx"] = {"bytes": entry.bytes, "sha256": entry.sha256}
        (copy / "manifest.json").write_text(json.dumps(document))
        got = sanitized.refused("load", copy)
        if verdict(lambda: check_graph_file(copy / "model.onnx", document["files"], 16)):
            assert got == 2, f"mutation {number}"
