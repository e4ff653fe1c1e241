"""Bundles for onnxruntime-genai: what is written and refused, and what genai's own API makes of it beside our runtime.

`make devices-genai` brings the package; without it the part that runs genai is skipped.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import xlstm_edge
import xlstm_edge_runtime as xr
from xlstm_edge_exporters.checkpoints import open_checkpoint
from xlstm_edge_exporters.targets import genai_folder
from xlstm_edge_exporters.targets.genai import LONGEST
from xlstm_edge_exporters.verify import verify_against
from xlstm_edge_runtime.manifest import read_manifest

from ...changed_bundles import edit_json, rehash
from ...command import ROOT, Command, assert_nothing_written, assert_one_sentence
from ...conftest import BY_NAME, SHIPPED, sequence_for
from ...oracles.cases import CASES, Case
from ...oracles.tokenizers import KINDS

needs_genai = pytest.mark.skipif(
    find_spec("onnxruntime_genai") is None, reason="onnxruntime-genai is not installed: make devices-genai"
)
ExportOf = Callable[..., Path]
CheckpointOf = Callable[[Case], Path]
TOKENS = [case for case in CASES if case.family != "xlstm_stack"]
STACKS = [case for case in CASES if case.family == "xlstm_stack"]
CHUNK, GREEDY = 16, 64
NEAR_TIE = 1e-4  # of the range of the logits: float32's own error
FILES = ["genai_config.json", "model.genai.onnx", "tokenizer_config.json"]


def settings(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "genai_config.json").read_text())


def weight_places(graph: Path) -> dict[str, list[tuple[str, str]]]:
    """File, offset and length of each weight of a graph."""
    tensors = onnx.load(graph, load_external_data=False).graph.initializer
    return {t.name: [(entry.key, entry.value) for entry in t.external_data] for t in tensors if t.external_data}


# What is written


def test_the_folder_is_a_bundle_with_three_files_more(export_of: ExportOf) -> None:
    """All hashed; the graph reads the bundle's weights where they lie."""
    bundle = export_of("shipped", target="genai")
    manifest, plain = read_manifest(bundle), read_manifest(export_of("shipped"))
    assert sorted(manifest.files.keys() - plain.files.keys()) == FILES
    assert sorted(path.name for path in bundle.iterdir()) == sorted([*manifest.files, "manifest.json"])
    assert {name: entry.file for name, entry in manifest.compiled.items()} == {"genai": "model.genai.onnx"}
    assert manifest.files["model.onnx.data"] == plain.files["model.onnx.data"]
    places = [weight_places(bundle / name) for name in ("model.onnx", "model.genai.onnx")]
    assert places[0] == places[1]
    assert sum(map(len, places)) > 50


def test_its_settings_are_the_bundle_s(export_of: ExportOf) -> None:
    bundle = export_of("shipped", target="genai")
    graph = onnx.load(bundle / "model.genai.onnx", load_external_data=False).graph
    model, search = settings(bundle)["model"], settings(bundle)["search"]
    decoder = model["decoder"]
    assert (model["vocab_size"], model["eos_token_id"], model["bos_token_id"]) == (2048, [0], 0)
    assert model["context_length"] == LONGEST > 1 << 29
    assert decoder["session_options"]["session.intra_op.spin_duration_us"] == "20"  # as our runtime's
    names = {value.name for value in (*graph.input, *graph.output)}
    for index in range(decoder["num_hidden_layers"]):
        for template in (decoder["inputs"]["past_key_names"], decoder["outputs"]["present_key_names"]):
            assert template.endswith(".%d.key")
            names -= {template.replace("%d.key", f"{index}.{kind}") for kind in ("conv_state", "recurrent_state")}
    assert names == {decoder["inputs"]["input_ids"], decoder["outputs"]["logits"]}
    assert search == {
        "do_sample": False, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0,
        "max_length": 1 << 16, "chunk_size": 64, "past_present_share_buffer": False,
    }  # fmt: skip


def test_every_running_maximum_reaches_as_far_as_a_stream_may_be(export_of: ExportOf) -> None:
    """So that a call of any length is exact, whatever chunk genai is told."""
    for name in ("model.onnx", "model.genai.onnx"):
        graph = onnx.load(export_of("shipped", target="genai") / name, load_external_data=False).graph
        pools = [node for node in graph.node if node.op_type == "MaxPool"]
        assert len(pools) == 5
        for node in pools:
            assert next(a.ints[0] for a in node.attribute if a.name == "kernel_shape") == LONGEST + 1


SAMPLED = {"do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.9}


@pytest.mark.parametrize(
    ("given", "search", "line"),
    [
        (SAMPLED, SAMPLED, None),
        ({"do_sample": True}, {"do_sample": True, "temperature": 1.0, "top_k": 50, "top_p": 1.0}, None),
        ({"do_sample": True, "min_p": 0.1}, {"do_sample": True}, "has no min_p"),
        ({"repetition_penalty": 1.3}, {"do_sample": False, "repetition_penalty": 1.3}, None),
    ],
)
def test_sampling_defaults_of_the_checkpoint(
    given: dict[str, Any], search: dict[str, Any], line: str | None, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    source = with_generation(
        checkpoint_of(BY_NAME["lm-mixed"]), tmp_path / "checkpoint", given | {"eos_token_id": [7, 3]}
    )
    bundle = xlstm_edge.export(source, tmp_path / "b", target="genai", chunk=CHUNK)
    assert settings(tmp_path / "b")["search"].items() >= search.items()
    assert settings(tmp_path / "b")["model"]["eos_token_id"] == [7, 3]
    assert settings(tmp_path / "b")["model"]["vocab_size"] == 97
    assert [text for text in bundle.notes if "min_p" in text] == (
        [] if line is None else [f"onnxruntime-genai {line}: its sampling is without"]
    )
    assert [text for text in bundle.notes if "pass it token ids" in text]


def with_generation(checkpoint: Path, folder: Path, document: dict[str, Any]) -> Path:
    """A copy of a checkpoint with a generation_config.json."""
    shutil.copytree(checkpoint, folder)
    (folder / "generation_config.json").write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize(("quantize", "weights"), [("int8", "int8"), ("int4", "int4"), ("mixed", "int4")])
def test_integers_are_those_of_the_bundle(quantize: str, weights: str, export_of: ExportOf, tmp_path: Path) -> None:
    method = {} if quantize == "mixed" else {"method": "rtn"}
    bundle = export_of("lm-mixed", target="genai", chunk=CHUNK, quantize=quantize, **method)
    graph = onnx.load(bundle / "model.genai.onnx", load_external_data=False).graph
    assert "MatMulNBits" in {node.op_type for node in graph.node}
    assert read_manifest(bundle).compiled["genai"].weights == weights


@pytest.mark.parametrize("kind", ["WordLevel", "BPE with suffix", None])
def test_what_it_would_read_wrong_it_does_not_get(
    kind: str | None, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    """Said at the export; our own runtime has the tokenizer all the same."""
    tokenizer = "none"
    if kind is not None:
        KINDS[kind]().save(str(tmp_path / "t.json"))
        tokenizer = str(tmp_path / "t.json")
    bundle = xlstm_edge.export(
        checkpoint_of(BY_NAME["large-wide-vocab"]), tmp_path / "b", target="genai", tokenizer=tokenizer
    )
    assert (tmp_path / "b" / "tokenizer.json").exists() == (kind is not None)
    assert not (tmp_path / "b" / "tokenizer_config.json").exists()
    assert [line for line in bundle.notes if line.startswith("onnxruntime-genai gets no tokenizer, as ")]


def test_a_bundle_is_replaced_whole(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    source = checkpoint_of(BY_NAME["lm-mixed"])
    xlstm_edge.export(source, tmp_path / "b", target="genai")
    xlstm_edge.export(source, tmp_path / "b", target="cpu", force=True)
    assert not (tmp_path / "b" / "genai_config.json").exists()


# What is refused


@pytest.mark.parametrize("case", STACKS, ids=str)
def test_stacks_of_vectors_are_refused(
    case: Case, checkpoint_of: CheckpointOf, command: Command, tmp_path: Path
) -> None:
    done = command("export", checkpoint_of(case), "-o", tmp_path / "b", "--target", "genai")
    assert_one_sentence(done, 2)
    assert "expected a language model for the target genai" in done.err
    assert_nothing_written(tmp_path, set())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chunk": 1}, "a chunk of 2 to 4096 tokens for genai, got 1"),
        ({"ahead_of_time": True}, "expected --compile for a target of"),
        ({"quantize": "a16w8"}, "int4 or int8 or mixed for the target genai"),
    ],
)
def test_options_that_it_does_not_have(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(xr.InputError, match=words):
        xlstm_edge.export("nowhere", tmp_path / "b", target="genai", **options)


def test_a_graph_that_computes_something_else_is_no_bundle(
    checkpoint_of: CheckpointOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(genai_folder.PackStates):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            """A norm with an epsilon that is not small."""
            result = super().call(model)
            node = next(node for node in model.graph if node.op_type == "LayerNormalization")
            node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.1)
            return result

    monkeypatch.setattr(genai_folder, "PackStates", Wrong)
    with pytest.raises(xr.CheckpointError, match="graph for onnxruntime-genai to compute the bundle's outputs"):
        xlstm_edge.export(checkpoint_of(BY_NAME["lm-mixed"]), tmp_path / "b", target="genai", chunk=CHUNK)
    assert_nothing_written(tmp_path, set())


@pytest.mark.parametrize(
    ("name", "options"), [("lm-mixed", {}), ("large-plain", {"quantize": "int4", "method": "rtn"})]
)
def test_verify_makes_the_files_again(
    name: str, options: dict[str, Any], export_of: ExportOf, checkpoint_of: CheckpointOf
) -> None:
    bundle = export_of(name, target="genai", chunk=CHUNK, **options)
    checks = {
        check.name: check.detail for check in verify_against(bundle, open_checkpoint(checkpoint_of(BY_NAME[name])))
    }
    assert checks["structure, genai"] == "2 files as the bundle's graph makes them, over the same weights"


def other_eos(folder: Path) -> None:
    edit_json(folder / "genai_config.json", lambda document: document["model"].update(eos_token_id=[1]))


def other_epsilon(folder: Path) -> None:
    model = onnx.load(folder / "model.genai.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    next(attribute for attribute in node.attribute if attribute.name == "epsilon").f = 0.1
    onnx.save(model, folder / "model.genai.onnx")


def other_weights(folder: Path) -> None:
    """Two matrices of one shape change places."""
    model = onnx.load(folder / "model.genai.onnx", load_external_data=False)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    one, two = (tensors[f"blocks.{block}.mixer.up.weight"].external_data for block in (0, 2))
    one[1].value, two[1].value = two[1].value, one[1].value
    assert one[1].key == "offset"
    onnx.save(model, folder / "model.genai.onnx")


def a_tokenizer(folder: Path) -> None:
    """One that genai would read wrong."""
    (folder / "tokenizer_config.json").write_text("{}")
    edit_json(folder / "manifest.json", lambda document: document["files"].update({"tokenizer_config.json": {}}))


def no_settings(folder: Path) -> None:
    edit_json(folder / "manifest.json", lambda document: document["files"].pop("genai_config.json"))


def no_form(folder: Path) -> None:
    edit_json(folder / "manifest.json", lambda document: document.update(compiled={}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_eos, "expected genai_config.json as an export writes it"),
        (other_epsilon, "expected the graph that this version traces"),
        (other_weights, r"expected one blocks\.[02]\.mixer\.up\.weight for all graphs"),
        (a_tokenizer, r"expected tokenizer_config\.json where an export writes it"),
        (no_settings, r"expected genai_config\.json where an export writes it"),
        (no_form, "expected the forms that an export makes"),
    ],
)
def test_verify_sees_other_files(
    change: Callable[[Path], None], words: str, export_of: ExportOf, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(export_of("lm-mixed", target="genai", chunk=CHUNK), tmp_path / "b"))
    change(copied)
    rehash(copied)
    with pytest.raises(xr.VerificationError, match=words):
        list(verify_against(copied, open_checkpoint(checkpoint_of(BY_NAME["lm-mixed"]))))


# What genai makes of it


class GenAI:
    """A bundle in genai's own API, and in our runtime."""

    def __init__(self, bundle: Path) -> None:
        import onnxruntime_genai

        self.api = onnxruntime_genai
        self.bundle, self.ours = bundle, xr.load(bundle, threads=1)
        self.model = onnxruntime_genai.Model(str(bundle))

    def generator(self, ids: Any, tokens: int = GREEDY, **options: Any) -> Any:
        """A generator that has read `ids` and generates so many tokens at most."""
        made = self.api.GeneratorParams(self.model)
        made.set_search_options(**{"max_length": len(ids) + tokens} | options)
        generator = self.api.Generator(self.model, made)
        generator.append_tokens([int(token) for token in ids])
        return generator

    def is_greedy(self, prompt: Any, generated: list[int], tokens: int = GREEDY, near_tie: float = NEAR_TIE) -> bool:
        """Whether our runtime takes these tokens too, so many or until one that ends a text; a near-tie may go either way."""
        session = self.ours.session()
        logits = session.prefill(np.array(prompt))
        for token in generated:
            if logits.max() - logits[token] > near_tie * np.ptp(logits):
                return False
            logits = session.step(token)
        stops = list(self.ours.manifest.special_tokens.stop)
        return len(generated) == tokens or logits.max() - logits[stops].max() <= near_tie * np.ptp(logits)


def finished(generator: Any) -> list[int]:
    """All tokens, the prompt's too."""
    while not generator.is_done():
        generator.generate_next_token()
    return generator.get_sequence(0).tolist()


@pytest.fixture(scope="module")
def genai_of(export_of: ExportOf) -> Callable[..., GenAI]:
    """Name of a case, or `shipped`, and export options -> the bundle in genai."""

    @cache
    def make(name: str, **options: Any) -> GenAI:
        return GenAI(export_of(name, target="genai", **options))

    return make


@pytest.fixture
def shipped(genai_of: Callable[..., GenAI]) -> GenAI:
    return genai_of("shipped")


INTEGERS: list[dict[str, Any]] = [{"quantize": "int8"}, {"quantize": "int4", "method": "rtn"}]


@needs_genai
@pytest.mark.parametrize("case", TOKENS, ids=str)
@pytest.mark.parametrize("chunk_size", [CHUNK, 0, 7])
def test_it_generates_the_greedy_tokens_of_our_runtime(
    case: Case, chunk_size: int, genai_of: Callable[..., GenAI]
) -> None:
    """After prompts longer than the bundle's chunk too, also where genai reads them in one call."""
    genai = genai_of(case.name, chunk=CHUNK)
    for length in (1, CHUNK, 150):
        prompt = sequence_for(case, length).tolist()
        generated = finished(genai.generator(prompt, chunk_size=chunk_size))[length:]
        assert genai.is_greedy(prompt, generated)


@needs_genai
@pytest.mark.parametrize("options", [{}, *INTEGERS], ids=lambda options: options.get("quantize", "float32"))
def test_it_generates_the_shipped_model_s_text(options: dict[str, Any], genai_of: Callable[..., GenAI]) -> None:
    genai = genai_of("shipped", **options)
    for prompt in ("ROMEO.\n", "To be, or not to be, that is the question: " * 20):
        ids = genai.ours.encode(prompt)
        generated = finished(genai.generator(ids, 200))[len(ids) :]
        stops = genai.ours.manifest.special_tokens.stop
        wanted = [
            event.id for event in genai.ours.session().generate(ids, max_tokens=200) if isinstance(event, xr.Token)
        ]
        assert generated[-1] in stops or len(generated) == 200
        assert generated[: len(wanted)] == wanted


@needs_genai
@pytest.mark.parametrize("options", [{}, *INTEGERS], ids=lambda options: options.get("quantize", "float32"))
@pytest.mark.parametrize("name", ["lm-five-heads", "large-three-heads", "hf-odd-widths"])
def test_its_logits_are_our_runtime_s(name: str, options: dict[str, Any], genai_of: Callable[..., GenAI]) -> None:
    genai, prompt = genai_of(name, chunk=CHUNK, **options), sequence_for(BY_NAME[name], 40)
    session, generator = genai.ours.session(), genai.generator(prompt)
    wanted = session.prefill(prompt)
    for _ in range(20):
        logits = generator.get_logits().reshape(-1)[: wanted.size]
        np.testing.assert_allclose(logits, wanted, atol=1e-5 * np.ptp(wanted))
        generator.generate_next_token()
        wanted = session.step(generator.get_sequence(0)[-1])


@needs_genai
def test_it_stops_where_the_bundle_says(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """At the first of the model's tokens that end a text, which is no part of the sequence."""
    source = checkpoint_of(BY_NAME["lm-mixed"])
    xlstm_edge.export(source, tmp_path / "free", target="genai")
    free = GenAI(tmp_path / "free")
    tokens = finished(free.generator([1, 2, 3], 40))[3:]
    assert len(tokens) == 40  # no token ends a text: none is taken for one
    stop = tokens[12]
    xlstm_edge.export(
        with_generation(source, tmp_path / "checkpoint", {"eos_token_id": [96, stop]}), tmp_path / "b", target="genai"
    )
    stopped = finished(GenAI(tmp_path / "b").generator([1, 2, 3], 40))[3:]
    assert stopped == tokens[: tokens.index(stop)]


@needs_genai
def test_a_generator_has_the_length_that_it_was_given(shipped: GenAI) -> None:
    generator = shipped.generator([5, 17, 3], 4)
    assert len(finished(generator)) == 7
    with pytest.raises(RuntimeError, match="max_length"):
        generator.generate_next_token()
    with pytest.raises(RuntimeError, match="exceeds max length"):
        shipped.generator([5, 17, 3], 0, max_length=2)
    with pytest.raises(RuntimeError, match="cannot be greater than model context_length"):
        shipped.generator([5, 17, 3], 0, max_length=LONGEST + 1)


@needs_genai
def test_it_begins_anew_and_goes_back_no_other_way(shipped: GenAI) -> None:
    generator = shipped.generator([5, 17, 3])
    first = finished(generator)
    generator.rewind_to(0)
    generator.append_tokens([5, 17, 3])
    assert finished(generator) == first
    with pytest.raises(RuntimeError, match="Recurrent states cannot be partially rewound"):
        generator.rewind_to(10)


@needs_genai
def test_generators_do_not_touch_each_other(shipped: GenAI) -> None:
    prompts = [[5, 17, 3], list(range(100, 190))]
    wanted = [finished(shipped.generator(prompt)) for prompt in prompts]
    both = [shipped.generator(prompt) for prompt in prompts]
    for _ in range(GREEDY):
        for generator in both:
            if not generator.is_done():
                generator.generate_next_token()
    assert [generator.get_sequence(0).tolist() for generator in both] == wanted


@needs_genai
def test_a_prompt_may_come_in_parts(shipped: GenAI) -> None:
    """Once tokens were generated, the last one of them was not fed: it comes first of what is appended."""
    generator = shipped.generator([5, 17], 20)
    generator.append_tokens([3])
    for _ in range(4):
        generator.generate_next_token()
    so_far = generator.get_sequence(0).tolist()
    assert shipped.is_greedy([5, 17, 3], so_far[3:], 4)
    generator.append_tokens([so_far[-1], 9, 8])
    tokens = finished(generator)
    assert tokens[: len(so_far) + 3] == [*so_far, so_far[-1], 9, 8]
    assert shipped.is_greedy([*so_far, 9, 8], tokens[len(so_far) + 3 :], 22 - len(so_far) - 3)


@needs_genai
def test_batches_beams_and_foreign_ids_are_errors(shipped: GenAI) -> None:
    made = shipped.api.GeneratorParams(shipped.model)
    made.set_search_options(max_length=9, batch_size=2)
    with pytest.raises(RuntimeError, match="Got: 2 Expected: 1"):
        shipped.api.Generator(shipped.model, made).append_tokens(np.array([[1, 2], [3, 4]], np.int32))
    with pytest.raises(RuntimeError, match="Got: 2 Expected: 1"):
        shipped.generator([1, 2, 3], 5, num_beams=2)
    for wrong in (2048, -1):
        with pytest.raises(RuntimeError, match="out of data bounds"):
            shipped.generator([1, wrong, 3])


@needs_genai
def test_its_engine_is_refused(shipped: GenAI) -> None:
    """It gathers requests into batches."""
    with pytest.raises(RuntimeError, match="chunk"):
        shipped.api.Engine(shipped.model)


@needs_genai
def test_it_samples_by_itself(shipped: GenAI) -> None:
    """Repeatably for one seed of its own; every token is one of the few likeliest."""
    draws = [
        finished(shipped.generator([5, 17, 3], 30, do_sample=True, top_k=3, random_seed=seed)) for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]
    session = shipped.ours.session()
    logits = session.prefill([5, 17, 3])
    for token in draws[0][3:]:
        assert (logits > logits[token]).sum() < 3
        logits = session.step(token)


@needs_genai
def test_it_reads_and_writes_the_shipped_model_s_text(shipped: GenAI) -> None:
    tokenizer, text = shipped.api.Tokenizer(shipped.model), (SHIPPED / "heldout.txt").read_text()[:20_000]
    ids = tokenizer.encode(text).tolist()
    assert ids == shipped.ours.encode(text)
    assert tokenizer.decode(ids) == text


@needs_genai
def test_the_example_streams_with_genai_alone(export_of: ExportOf, shipped: GenAI) -> None:
    script = ROOT / "examples" / "genai_stream.py"
    words = [sys.executable, script, export_of("shipped", target="genai"), "ROMEO."]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ROMEO." + "".join(shipped.ours.stream("ROMEO.", max_tokens=200)) + "\n"
    called_wrong = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert called_wrong.returncode == 1
    assert called_wrong.stderr.startswith("usage: ")


@needs_genai
def test_nothing_is_sent_and_nothing_kept(export_of: ExportOf, tmp_path: Path) -> None:
    """genai reports its use unless it is told not to, as the example tells it: no connection is tried, no file is left."""
    script, home = ROOT / "examples" / "genai_stream.py", tmp_path / "home"
    home.mkdir()
    clean = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    environment = clean | {"HOME": str(home), "XDG_CACHE_HOME": str(home)}
    words = [sys.executable, script, export_of("shipped", target="genai"), "ROMEO."]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert not list(home.rglob("*"))
