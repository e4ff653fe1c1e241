"""Which tensor gets how many bits and which block size."""

from collections.abc import Callable
from pathlib import Path

import pytest

from xlstm_edge_exporters.checkpoints import Checkpoint, open_checkpoint
from xlstm_edge_exporters.quantize.plan import bits_by_hand, fitting_block_size, make_plan, planned_bytes
from xlstm_edge_exporters.recipe import Recipe
from xlstm_edge_runtime import InputError
from xlstm_edge_runtime.manifest import read_manifest

from ...conftest import BY_NAME, SHIPPED
from ...oracles.cases import Case


@pytest.mark.parametrize(
    ("name", "shape", "group", "fits"),
    [
        (
            "blocks.0.ffn.down.weight",
            (2752, 1024),
            256,
            256,
        ),  # a sixteenth of 2,752 is more than the 64 columns missing
        ("blocks.0.ffn.down.weight", (384, 256), 256, 128),
        ("blocks.0.ffn.down.weight", (48, 64), 256, 32),
        ("blocks.0.mixer.up.weight", (64, 512), 32, 32),
        ("head.weight", (500, 1024), 256, 128),
        ("embedding.weight", (500, 96), 128, 32),
        ("embedding.weight", (500, 1000), 256, 128),
    ],
)
def test_groups_fit_their_matrix(name: str, shape: tuple[int, int], group: int, fits: int) -> None:
    assert fitting_block_size(name, shape, group) == fits


def test_plan_follows_options(opened: Callable[[Case], Checkpoint]) -> None:
    checkpoint = opened(BY_NAME["large-plain"])  # width 64, untied
    weights = checkpoint.weights
    recipe = Recipe(
        quantize="int4", method="rtn", head_bits=8, embedding_bits=32, keep={"blocks.0.*": 8, "blocks.1.ffn.*": 32}
    )
    plan = make_plan(checkpoint.spec, weights, recipe)
    assert plan["head.weight"].bits == plan["blocks.0.mixer.qkvo.weight"].bits == 8
    assert plan["blocks.1.mixer.out.weight"].bits == 4
    assert "embedding.weight" not in plan
    assert "blocks.1.ffn.down.weight" not in plan
    assert not [name for name in plan if "gates" in name or "norm" in name]
    with pytest.raises(InputError, match="nothing"):
        make_plan(checkpoint.spec, weights, Recipe(quantize="int4", method="rtn", keep={"nothing.*": 8}))


def test_bundle_is_as_small_as_planned(int4_bundle: Callable[[str], Path]) -> None:
    checkpoint, manifest = open_checkpoint(SHIPPED), read_manifest(int4_bundle("shipped"))
    plan = make_plan(checkpoint.spec, checkpoint.weights, Recipe(quantize="int4", method="rtn"))
    wanted = planned_bytes({n: w.shape for n, w in checkpoint.weights.items()}, plan)
    size = manifest.files["model.onnx.data"].bytes
    assert wanted * 0.98 <= size <= wanted * 1.05


@pytest.mark.parametrize("name", ["lm-hf-tied", "large-plain"])
def test_bits_chosen_by_hand_are_known(name: str, opened: Callable[[Case], Checkpoint]) -> None:
    checkpoint = opened(BY_NAME[name])
    recipe = Recipe(quantize="int4", method="rtn", head_bits=4, embedding_bits=8, keep={"blocks.0.*": 4})
    plan = make_plan(checkpoint.spec, checkpoint.weights, recipe)
    assert plan["embedding.weight"].bits == 8  # tied: the greater of the two
    by_hand = {n for n in plan if bits_by_hand(n, recipe, tied=checkpoint.spec.tied)}
    assert by_hand == {n for n in plan if n.startswith(("blocks.0.", "embedding.", "head."))}
    recipe = Recipe(quantize="int4", method="rtn", head_bits=8)
    by_hand = {n for n in plan if bits_by_hand(n, recipe, tied=checkpoint.spec.tied)}
    assert by_hand == {"embedding.weight" if checkpoint.spec.tied else "head.weight"}
