"""What a target is: how a model is lowered for it, what its graph may hold, and what its users are told.

What a target says of itself is asked for before torch is loaded: modules that load it are imported inside functions.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from xlstm_edge_runtime.manifest import Manifest
from xlstm_edge_runtime.manifest_sections import LARGEST_CHUNK, CompiledGraph
from xlstm_edge_runtime.progress import Progress, no_progress
from xlstm_edge_runtime.state import StateTable

from ..spec import ModelSpec

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..float16 import Outputs
    from ..ops import Ops
    from ..weights import Weights

QUANTIZATIONS = frozenset({"int8", "int4", "mixed"})
Remark = Callable[[str], None]  # is told a line


class Target:
    """Where a graph is to run. The defaults are those of onnxruntime on a CPU; a target states what is other for it.

    `summary` is for the help, `use` is said at the end of an export. `static` graphs take one token of one sequence, others
    any batch and up to `chunk` tokens, `default_chunk` unless asked, `shortest_chunk` to `longest_chunk`; a static target that
    takes more than one has a second graph, for calls of exactly so many. `opset` is the finished graph's, `traced_opset` the
    one that torch writes. `onnxruntime` is the oldest that runs it and `provider` the runtime's name of what runs it.
    `chips` are names that it can be compiled for, `compiles` says whether it has another form of its own,
    `compiles_prompts` whether what is compiled has the graph for prompts too, and `compiles_integers` whether only that one has
    integers; `quantizations` are the values of --quantize that make sense.
    `packages` are what compiling needs, `integer_packages` besides for integers, `extra` brings them. `half` says that it
    computes in float16.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    use: ClassVar[str]
    static: ClassVar[bool] = False
    default_chunk: ClassVar[int] = 64
    longest_chunk: ClassVar[int] = LARGEST_CHUNK
    shortest_chunk: ClassVar[int] = 1
    opset: ClassVar[int] = 23
    traced_opset: ClassVar[int] = 23
    ir_version: ClassVar[int] = 10
    onnxruntime: ClassVar[str] = "1.26"
    provider: ClassVar[str] = "cpu"
    quantizations: ClassVar[frozenset[str]] = QUANTIZATIONS
    chips: ClassVar[Collection[str]] = ()
    compiles: ClassVar[bool] = False
    compiles_prompts: ClassVar[bool] = False
    compiles_integers: ClassVar[bool] = False
    packages: ClassVar[tuple[str, ...]] = ()
    integer_packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    half: ClassVar[bool] = False

    def admit(self, spec: ModelSpec) -> None:
        """CheckpointError for a model that the target has no place for; before any work."""

    def spec(self, spec: ModelSpec) -> ModelSpec:
        """The canonical model as this target wants it."""
        return spec

    def chunk_for(self, spec: ModelSpec) -> int:  # noqa: ARG002  # for targets where it depends on the blocks
        """Most tokens of one call, unless asked for others."""
        return self.default_chunk

    def weights(self, spec: ModelSpec, weights: "Weights") -> "Weights":  # noqa: ARG002  # for targets with others
        """Weights of `self.spec(spec)` from those of `spec`."""
        return weights

    def canonical_weights(self, spec: ModelSpec, weights: "Weights") -> "Weights":  # noqa: ARG002  # same
        """The inverse of `weights`, to float32's rounding."""
        return weights

    def states(self, table: StateTable) -> StateTable:
        """The state table as the graph holds it."""
        return table

    def ops(self, chunk: int) -> "Ops":
        """The lowering, for calls of up to `chunk` tokens; of a static target, of exactly so many."""
        raise NotImplementedError

    def check(
        self,
        graph: Path,  # noqa: ARG002  # for targets whose graphs are held to the checkpoint at once
        table: StateTable,  # noqa: ARG002  # same
        parameters: int,  # noqa: ARG002  # same
        reference: "Outputs",  # noqa: ARG002  # same
        integers: bool,  # noqa: ARG002  # same
        progress: Progress = no_progress,  # noqa: ARG002  # same
        *,
        prompt: Path | None = None,  # noqa: ARG002  # same
    ) -> list[str]:
        """Notes on a written graph, as of how it computes in float16; CheckpointError where it would compute nonsense.

        `prompt` is the graph for prompts, where there is one. `reference` gives the outputs of the stored weights for inputs,
        `integers` says that those and activations are rounded.
        """
        return []

    def compile(
        self,
        graph: Path,  # noqa: ARG002  # for targets that are compiled ahead of time
        table: StateTable,  # noqa: ARG002  # same
        family: str,  # noqa: ARG002  # same
        quantize: str | None,  # noqa: ARG002  # same
        chips: Sequence[str],  # noqa: ARG002  # same
        progress: Progress = no_progress,  # noqa: ARG002  # same
        *,
        prompt: Path | None = None,  # noqa: ARG002  # same
    ) -> dict[str, CompiledGraph]:
        """Write forms of a graph made ahead of time beside it, for `chips` or, without any, for the target's own runtime.

        `prompt` is the graph for prompts, where there is one; a form that has no room for it leaves it out.
        `quantize` is what was asked for where `compiles_integers`. Their entries for the manifest, by what each is for. Called
        where that was asked for.
        """
        return {}

    def companions(
        self,
        folder: Path,  # noqa: ARG002  # for targets whose runtime wants more
        manifest: Manifest,  # noqa: ARG002  # same
        remark: Remark,  # noqa: ARG002  # same
    ) -> Mapping[str, bytes]:
        """Files, by name, that the target's own runtime wants beside the graph in any case; made of the bundle alone.

        `manifest` is that of the bundle in `folder`, or will be: it may lack files and forms.
        """
        return {}

    def check_companions(self, folder: Path, manifest: Manifest) -> None:
        """CheckpointError where the files just written do not compute what the bundle does."""

    def forms(self, manifest: Manifest) -> dict[str, CompiledGraph]:  # noqa: ARG002  # same
        """The graph among `companions`, as the manifest names it."""
        return {}

    def passes(self) -> "Sequence[ir.passes.InPlacePass]":
        """What is done to the tidied trace, in order."""
        return ()
