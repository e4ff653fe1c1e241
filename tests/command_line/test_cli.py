"""The command line as scripts call it."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console
from safetensors.numpy import load_file

from xlstm_edge import facade, run
from xlstm_edge.bench import _summary, bench_bundle
from xlstm_edge.progress import until_done
from xlstm_edge.roofline import bytes_per_token, products_per_token
from xlstm_edge.tables import bench_table
from xlstm_edge_runtime import DependencyError, GenerationOptions, Token, load

from ..command import ROOT, Command, assert_nothing_written, assert_one_sentence
from ..conftest import BY_NAME, SHIPPED
from ..oracles.cases import Case


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_run_streams_the_same_text_from_everywhere(
    shipped_bundle: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--max-tokens", 12, "--temperature", 0.8, "--top-k", 40, "--top-p", 0.95, "--min-p", 0.01, "--seed", 3)
    first = command("run", shipped_bundle, "To be", *options)
    assert first.code == 0
    assert len(first.out) > 12
    (tmp_path / "prompt.txt").write_text("To be")
    assert command("run", shipped_bundle, "--file", tmp_path / "prompt.txt", *options).out == first.out
    for words in ((), ("-",), ("--file", "-")):
        feed(monkeypatch, b"To be")
        assert command("run", shipped_bundle, *words, *options).out == first.out
    document = json.loads(command("run", shipped_bundle, "To be", *options, "--json").out)
    assert document["text"] + "\n" == first.out
    assert document["usage"] == {"prompt_tokens": 2, "generated_tokens": 12}
    assert document["finish_reason"] == "length"
    stop = first.out[5:8]
    stopped = json.loads(command("run", shipped_bundle, "To be", *options, "--stop", stop, "--json").out)
    assert stopped["finish_reason"] == "stop"
    assert stopped["text"] == first.out[: first.out.index(stop)]


def test_stats_go_to_standard_error(shipped_bundle: Path, command: Command) -> None:
    result = command("run", shipped_bundle, "To be", "--max-tokens", 3, "--stats", "--threads", 1)
    nbytes = load(shipped_bundle).manifest.state.nbytes
    wanted = (
        rf"prompt 2 tokens, \d+/s; generated 3 tokens, \d+/s; finish length; state {nbytes:,} bytes; peak memory \d+ MB"
    )
    assert re.search(wanted, " ".join(result.err.split()))
    assert "tokens" not in result.out


def test_bench_tells_rates_and_latencies_of_what_it_timed() -> None:
    """Three runs of 20 tokens read in 2, 4 and 1 seconds, and of 4 generated at 10, 20 and 40 ms each."""
    runs = [(2.0, np.full(4, 0.010)), (4.0, np.full(4, 0.020)), (1.0, np.full(4, 0.040))]
    summary = _summary(runs, 20, 4)
    assert summary["prompt_tokens_per_second"] == {"median": 10.0, "min": 5.0, "max": 20.0}
    assert summary["generated_tokens_per_second"] == pytest.approx({"median": 50, "min": 25, "max": 100})
    assert summary["latency_ms"] == pytest.approx({"p50": 20, "p90": 40, "p99": 40})


def test_a_bundle_without_a_tokenizer_takes_and_gives_ids(
    bundle_of: Callable[[Case, str], Path], command: Command
) -> None:
    bundle = bundle_of(BY_NAME["lm-mixed"], "cpu")
    result = command("run", bundle, "5, 17 3", "--max-tokens", 4)
    assert result.code == 0
    assert all(part.isdecimal() for part in result.out.split())
    assert len(result.out.split()) == 4
    assert_one_sentence(command("run", bundle, "To be"), 2)


def test_a_stack_cannot_continue_text(bundle_of: Callable[[Case, str], Path], command: Command) -> None:
    assert_one_sentence(command("run", bundle_of(BY_NAME["stack-mixed"], "cpu"), "1 2"), 2)


@pytest.mark.parametrize(
    "words",
    [
        ("--temperature", "-1"), ("--top-p", "0"), ("--min-p", "7"), ("--max-tokens", "-3"), ("--stop", ""),
        ("--file", "nowhere.txt"), ("--top-k", "-1"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_bad_run_options(words: tuple[str, ...], shipped_bundle: Path, command: Command) -> None:
    prompt = () if "--file" in words else ("To be",)
    assert_one_sentence(command("run", shipped_bundle, *prompt, *words), 2)


def test_prompts_that_are_none(
    shipped_bundle: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, b"")
    assert_one_sentence(command("run", shipped_bundle), 2)
    assert_one_sentence(command("run", shipped_bundle, ""), 2)
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    assert_one_sentence(command("run", shipped_bundle, "--file", tmp_path / "x"), 2)
    assert_one_sentence(command("run", shipped_bundle, "a", "--file", tmp_path / "x"), 2)


def test_prompts_without_an_end_are_refused(
    shipped_bundle: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")  # nobody writes: opening it would wait for ever
    assert_one_sentence(command("run", shipped_bundle, "--file", tmp_path / "pipe"), 2)
    assert_one_sentence(command("run", shipped_bundle, "--file", "/dev/zero"), 2)
    assert_one_sentence(command("run", shipped_bundle, "--file", tmp_path), 2)
    assert_one_sentence(command("run", shipped_bundle, "--file", "a\0b"), 2)
    monkeypatch.setattr(run, "LARGEST_PROMPT", 1000)
    (tmp_path / "long").write_bytes(b"a" * 1001)
    assert_one_sentence(command("run", shipped_bundle, "--file", tmp_path / "long"), 2)
    (tmp_path / "fits").write_bytes(b"a" * 1000)
    assert command("run", shipped_bundle, "--file", tmp_path / "fits", "--max-tokens", 1).code == 0
    with Path("/dev/zero").open("rb") as endless:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(endless.raw)))  # type: ignore[attr-defined]  # a FileIO
        assert_one_sentence(command("run", shipped_bundle), 2)


def test_stop_ids_from_the_command_line(shipped_bundle: Path, command: Command) -> None:
    words = ("run", shipped_bundle, "To be", "--max-tokens", 8, "--json")
    assert_one_sentence(command(*words[:-1], "--stop-id", 10**6), 2)  # no id of this vocabulary
    free = json.loads(command(*words).out)
    assert free["usage"]["generated_tokens"] == 8
    model = load(shipped_bundle)
    ids = [
        event.id for event in model.session().generate(model.encode("To be"), max_tokens=8) if isinstance(event, Token)
    ]
    stopped = json.loads(command(*words, "--stop-id", 2047, "--stop-id", ids[5]).out)
    assert stopped["finish_reason"] == "eos"
    assert stopped["usage"]["generated_tokens"] == ids.index(ids[5])
    assert free["text"].startswith(stopped["text"])
    end = "<|endoftext|>"
    forced = json.loads(command(*words, "--stop", end).out)
    assert forced["text"] == free["text"]
    assert_one_sentence(command("run", shipped_bundle, end, "--max-tokens", -1), 2)


def test_long_prompts_show_how_far_they_are() -> None:
    text, console = io.StringIO(), None
    console = Console(file=text, force_terminal=True, width=80)
    with until_done(console) as report:
        report("prompt", 0, 200)
        report("prompt", 200, 200)
        text.seek(0)
        text.truncate()
        console.print("after")
        assert "prompt" not in text.getvalue()  # the terminal is free again
    text.seek(0)
    text.truncate()
    with until_done(console) as report:
        report("prompt", 10, 20)
    assert "10/20" in text.getvalue()


def test_a_long_prompt_reports_and_a_short_one_does_not(shipped_bundle: Path) -> None:
    told: list[tuple[str, int, int]] = []
    for prompt in ("word " * 200, "To be"):
        request = run.RunRequest(bundle=shipped_bundle, prompt=prompt, options=GenerationOptions(max_tokens=1))
        result = run.run_bundle(request, None, lambda *words: told.append(words))
    assert result["usage"]["generated_tokens"] == 1
    assert told[0][:2] == ("prompt", 0)
    assert told[-1][1] == told[-1][2] > 200
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


@pytest.mark.parametrize(
    "words", [("export",), ("fly",), ("run", "--no-such"), ("export", "a", "-o", "b", "--target", "tflite")]
)
def test_usage_errors(words: tuple[str, ...], command: Command) -> None:
    result = command(*words)
    assert_one_sentence(result, 2)
    assert "--help" in result.err


@pytest.mark.parametrize("name", ["export", "verify", "inspect", "run", "bench", "demo"])
def test_help_shows_an_example(name: str, command: Command) -> None:
    result = command(name, "--help")
    assert result.code == 0
    assert f"xlstm-edge {name}" in " ".join(result.out.split())
    assert "Example" in result.out


def test_inspect_of_a_bundle_and_of_its_checkpoint_agree(shipped_bundle: Path, command: Command) -> None:
    bundle = json.loads(command("inspect", shipped_bundle, "--json").out)
    checkpoint = json.loads(command("inspect", SHIPPED, "--json").out)
    shared = ("family", "width", "vocab_size", "blocks", "parameters", "state", "state_bytes", "tied")
    assert {key: bundle[key] for key in shared} == {key: checkpoint[key] for key in shared}
    assert sum(4 * _size(row["shape"]) for row in bundle["state"]) == bundle["state_bytes"]
    assert "opset 23" in command("inspect", shipped_bundle).out


def _size(shape: list[int]) -> int:
    size = 1
    for number in shape:
        size *= number
    return size


def test_bench_reports_what_it_measured(shipped_bundle: Path, command: Command) -> None:
    words = ("--prompt", 20, "--generate", 5, "--repeat", 2, "--threads", 1)
    document = json.loads(command("bench", shipped_bundle, *words, "--json").out)
    for key in ("prompt_tokens_per_second", "generated_tokens_per_second"):
        assert 0 < document[key]["min"] <= document[key]["median"] <= document[key]["max"]
    assert document["machine"]["threads"] == 1
    slowest, fastest = (1e3 / document["generated_tokens_per_second"][key] for key in ("min", "max"))
    assert fastest / 5 <= document["latency_ms"]["p50"] <= 5 * slowest
    assert "tokens/s" in command("bench", shipped_bundle, *words).out


def test_bench_compares_and_goes_deep(shipped_bundle: Path, command: Command, tmp_path: Path) -> None:
    words = ("--prompt", 8, "--generate", 8, "--repeat", 1, "--threads", 1, "--json")
    document = json.loads(command("bench", shipped_bundle, *words, "--against", shipped_bundle).out)
    ours, other = document["generated_tokens_per_second"], document["baseline"]
    assert other["ratio"] == pytest.approx(ours["median"] / other["generated_tokens_per_second"]["median"])
    assert 1 / 10 < other["ratio"] < 10  # against itself
    compared = json.loads(command("bench", shipped_bundle, *words, "--compare", SHIPPED).out)["baseline"]
    assert compared["ratio"] > 1  # PyTorch's step of the same checkpoint
    plot = ("--depth", "0,1k,2000", "--roofline", "--plot", tmp_path / "depth.png")
    deep = json.loads(command("bench", shipped_bundle, *words, *plot).out)
    assert [row["depth"] for row in deep["depths"]] == [0, 1000, 2000]
    assert len({row["state_bytes"] for row in deep["depths"]}) == 1
    roof, rate = deep["roofline"], deep["generated_tokens_per_second"]["median"]
    bandwidth, needed = roof["read_bandwidth_bytes_per_second"], roof["bytes_per_token"]
    assert roof["share_of_bandwidth"] == pytest.approx(rate * needed / bandwidth)
    assert 1 / 20 < bandwidth / read_rate() < 20  # another unit is a factor of a thousand away
    products, work = roof["products_per_second"], roof["products_per_token"]
    assert roof["share_of_arithmetic"] == pytest.approx(rate * work / products)
    assert 1 / 50 < products / product_rate() < 50
    assert (tmp_path / "depth.png").read_bytes().startswith(b"\x89PNG")
    assert_one_sentence(command("bench", shipped_bundle, "--depth", "deep"), 2)
    assert_one_sentence(command("bench", shipped_bundle, *words[:-1], "--plot", tmp_path / "x.png"), 2)


def test_the_roofline_of_a_device_has_the_memory_s_share(shipped_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch there is nothing to write a graph of a product with."""

    def without() -> None:
        raise DependencyError("expected the package torch, got none; install it")

    monkeypatch.setattr(facade, "load_exporters", without)
    found = bench_bundle(shipped_bundle, threads=1, prompt=4, generate=4, repeat=1, roofline=True)
    assert found["roofline"]["share_of_bandwidth"] > 0
    assert "share_of_arithmetic" not in found["roofline"]
    assert any(cell == "share of read bandwidth" for cell in bench_table(found).columns[0].cells)


def product_rate() -> float:
    """Products a second of one thread that multiplies square matrices."""
    square = np.ones((1024, 1024), np.float32)
    begin = time.perf_counter()
    assert (square @ square)[0, 0] == len(square)
    return float(len(square)) ** 3 / (time.perf_counter() - begin)


def read_rate() -> float:
    """Bytes a second of one thread that counts zeros in 256 MB."""
    data = np.ones(1 << 25)
    begin = time.perf_counter()
    assert np.count_nonzero(data) == len(data)
    return data.nbytes / (time.perf_counter() - begin)


@pytest.mark.parametrize("options", [{}, {"quantize": "int4", "method": "rtn"}], ids=str)
@pytest.mark.parametrize("name", ["large-wide-vocab", "hf-tied"])
def test_bytes_of_a_token_are_its_weights_and_twice_its_state(
    name: str, options: dict[str, str], checkpoint_of: Callable[[Case], Path], export_of: Callable[..., Path]
) -> None:
    """Of an embedding that is not the head too, one row is read."""
    bundle = export_of(name, chunk=8, **options)
    model = load(bundle, threads=1)
    graph, tied = onnx.load(bundle / "model.onnx", load_external_data=False).graph, model.manifest.model.tied
    places = {t.name: {entry.key: entry.value for entry in t.external_data} for t in graph.initializer}
    embedding = sum(int(p["length"]) for n, p in places.items() if n.startswith("embedding.weight"))
    size = (bundle / "model.onnx.data").stat().st_size
    wanted = size if tied else size - embedding * (1 - 1 / model.output_width)
    weights = bytes_per_token(model) - 2 * sum(array.nbytes for array in model.session().state.values())
    assert abs(weights - wanted) <= 0.02 * embedding  # a row of integers is rounded up to whole groups
    files = checkpoint_of(BY_NAME[name]).glob("*.safetensors")
    multiplied = sum(array.size for file in files for array in load_file(file).values())
    multiplied -= 0 if tied else model.output_width * model.manifest.model.width
    assert products_per_token(model) == multiplied + 2 * sum(a.size for a in model.session().state.values())


def test_an_existing_bundle_is_not_overwritten(
    checkpoint_of: Callable[[Case], Path], tmp_path: Path, command: Command
) -> None:
    checkpoint = checkpoint_of(BY_NAME["large-wide-vocab"])
    assert command("export", checkpoint, "-o", tmp_path / "bundle").code == 0
    manifest = (tmp_path / "bundle" / "manifest.json").read_bytes()
    assert_one_sentence(command("export", checkpoint, "-o", tmp_path / "bundle"), 2)
    assert (tmp_path / "bundle" / "manifest.json").read_bytes() == manifest
    assert command("export", checkpoint, "-o", tmp_path / "bundle", "--force", "--chunk", 8).code == 0
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["graph"]["chunk"] == 8
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    assert_one_sentence(command("export", checkpoint, "-o", tmp_path / "precious", "--force"), 2)
    assert_one_sentence(command("export", checkpoint, "-o", tmp_path / "none" / "bundle"), 2)
    assert_one_sentence(command("export", checkpoint, "-o", tmp_path / "other", "--chunk", 0), 2)
    assert_nothing_written(tmp_path, {"bundle", "precious"})


@pytest.mark.parametrize("stage", ["tracing", "weights", "reference"])
def test_an_interrupted_export_leaves_nothing(
    stage: str, checkpoint_of: Callable[[Case], Path], tmp_path: Path
) -> None:
    def interrupt(name: str, done: int, total: int) -> None:
        if name == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        facade.export(checkpoint_of(BY_NAME["lm-mixed"]), tmp_path / "bundle", progress=interrupt)
    assert_nothing_written(tmp_path, set())


def start(*words: object) -> subprocess.Popen[str]:
    paths = os.pathsep.join(str(ROOT / part) for part in (".", "exporters", "runtime"))
    command = [sys.executable, "-m", "xlstm_edge", *map(str, words)]
    # A shell may have started the tests with Ctrl-C ignored; a person's terminal has not.
    restore = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        preexec_fn=restore,  # noqa: PLW1509  # the parent runs no other thread here
    )


def test_ctrl_c_ends_a_stream_with_130(shipped_bundle: Path) -> None:
    process = start("run", shipped_bundle, "To be", "--max-tokens", 10_000_000)
    assert process.stdout is not None
    process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "error: interrupted"


def test_a_reader_that_goes_away_is_no_error(shipped_bundle: Path) -> None:
    process = start("run", shipped_bundle, "To be", "--max-tokens", 10_000_000)
    assert process.stdout is not None
    process.stdout.read(20)
    process.stdout.close()
    assert process.stderr is not None
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.returncode == 0
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


def test_version(command: Command) -> None:
    assert command("--version").out.startswith("xlstm-edge 0.")
    assert command("-V").out == command("--version").out


def test_echo_puts_the_prompt_in_front(
    bundle_of: Callable[[Case, str], Path], shipped_bundle: Path, command: Command
) -> None:
    """Of a bundle of ids, a space too: prompt and pieces are the ids."""
    bundle = bundle_of(BY_NAME["lm-mixed"], "cpu")
    ids = command("run", bundle, "5 17 3", "-n", 4, "--no-echo").out
    assert command("run", bundle, "5 17 3", "-n", 4, "--echo").out == "5 17 3 " + ids
    text = command("run", shipped_bundle, "To be", "-n", 4).out
    assert command("run", shipped_bundle, "To be", "-n", 4, "--echo").out == "To be" + text
