"""One stream: a recurrent state, the model it belongs to, and the loop that moves it.

Two sets of state buffers take turns (one is read while the other is written), bound to the graph once, so that a token
costs one bound run: nothing is allocated and nothing grows. Knows tokens and vectors, nothing of text.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import ArrayLike, NDArray

from .engine import Engine
from .errors import BundleError, InputError, printable
from .generate import Event, generate
from .options import GenerationOptions
from .reading import check_path, length_of
from .snapshot import read_snapshot, write_snapshot
from .state import FloatArray, State

NO_TOKENS = "expected at least one token, got none; begin with a prompt or a bos token"


class Session:
    """A stream of tokens (or float vectors) through a model; make one with `model.session()`.

    `prefill` and `step` return the last token's output, float32 (V,) or (D,), in an array of its own. A session is for one
    thread at a time; sessions of one model may run in several threads side by side.

    After an InputError or a StateError the session is as it was. After a BundleError (the graph itself failed, as for lack of
    memory) its state may be half-written: `reset` it, or `load` a snapshot.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        first = engine.manifest.state.initial()
        # Where one step was seen to write its new state over the old one safely, both sets share one buffer; a chunk
        # writes into a spare one, made when the first chunk comes.
        second = {name: array if name in engine.in_place else array.copy() for name, array in first.items()}
        self._sets = (first, second)
        self._spare: State = {}
        self._current = 0
        self._tokens = 0
        self._steps: list[_Bound | None] = [None, None]
        self._chunks: list[_Bound | None] = [None, None]

    def __repr__(self) -> str:
        return f"Session({self.tokens:,} tokens read, {self.nbytes:,} bytes of state, of {str(self._engine.folder)!r})"

    @property
    def model(self) -> Engine:
        """The model that this is a stream of."""
        return self._engine

    @property
    def vocab_size(self) -> int:
        """Number of ids; InputError for a stack of vectors."""
        if not self._engine.takes_ids:
            raise InputError("expected a model that takes tokens, got a stack of float vectors; use prefill and step")
        return self._engine.output_width

    @property
    def chunk(self) -> int:
        """Most tokens of one `advance`."""
        return self._engine.chunk

    @property
    def tokens(self) -> int:
        """Number of tokens consumed since the zero state."""
        return self._tokens

    @property
    def state(self) -> State:
        """A copy of the state: name -> float32 (1, *shape), any split heads merged."""
        return self._engine.manifest.state.from_graph(self._sets[self._current])

    @property
    def nbytes(self) -> int:
        """Bytes of the state: a constant of the model, whatever has been read."""
        return self._engine.manifest.state.nbytes

    def step(self, token: int | NDArray[np.float32]) -> FloatArray:
        """Consume one token id (or one float vector (D,)); returns its output."""
        if type(token) is int and self._engine.takes_ids and 0 <= token < self._engine.output_width:
            return self._run(token, 1).copy()
        if length_of(token) > self._engine.output_width:
            raise InputError("expected one token, got a collection; feed a prompt with prefill")
        single: Any = [token] if self._engine.takes_ids else np.asarray(token)[None]
        return self._run(self._engine.check_inputs(single), 1).copy()

    def prefill(self, tokens: Sequence[int] | ArrayLike) -> FloatArray:
        """Consume token ids (T,) (or float vectors (T, D)) in chunks; returns the output after the last one."""
        inputs = self._engine.check_inputs(tokens)
        if not len(inputs):
            raise InputError(NO_TOKENS)
        chunk = self._engine.chunk
        for start in range(0, len(inputs), chunk):
            part = inputs[start : start + chunk]
            output = self._run(part, len(part))
        return output.copy()

    def check_ids(self, tokens: Sequence[int]) -> NDArray[np.int64]:
        """One id or more as int64 (T,), all inside the vocabulary; InputError otherwise, nothing consumed."""
        if not self._engine.takes_ids:
            raise InputError("expected a model that takes tokens, got a stack of float vectors; use prefill and step")
        ids = self._engine.check_inputs(tokens)
        if not len(ids):
            raise InputError(NO_TOKENS)
        return ids

    def advance(self, tokens: NDArray[np.int64] | int) -> FloatArray:
        """Consume 1 to `chunk` ids that `check_ids` gave, in one call of the graph, without copying anything.

        For generators. The output is a read-only view that the next call but one overwrites; `step` and `prefill` are for
        everyone else.
        """
        return self._run(tokens, 1 if isinstance(tokens, int) else len(tokens))

    def reset(self) -> None:
        """Back to the zero state."""
        for row in self._engine.manifest.state:
            self._sets[self._current][row.name].fill(row.initial)
        self._tokens = 0

    def fork(self) -> "Session":
        """An independent session that continues from here; costs one copy of the state."""
        branch = Session(self._engine)
        branch._set_state(self._sets[self._current], self._tokens)
        return branch

    def save(self, path: str | Path, *, dtype: str = "float32") -> None:
        """Write the state to a file (whole or not at all).

        With `dtype` "float16" the matrix memories take half the bytes, and outputs after `load` differ by what that rounds.
        """
        path, source = check_path(path, "a file for the state"), self._engine.manifest.source
        held, table = self._sets[self._current], self._engine.manifest.state
        write_snapshot(path, held, table, source=source, tokens=self._tokens, dtype=dtype)

    def load(self, path: str | Path) -> None:
        """Continue from a saved state; StateError if it is damaged or of another checkpoint, the session unchanged."""
        path, manifest = check_path(path, "a file with a state"), self._engine.manifest
        state, tokens = read_snapshot(path, manifest.state, source=manifest.source)
        self._set_state(state, tokens)

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int | None = None,
        min_tokens: int | None = None,
        stop_ids: Collection[int] | None = None,
        ignore_eos: bool = False,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        penalty_window: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
        banned: Collection[int] | None = None,
        cancel: Callable[[], bool] | None = None,
        on_prompt: Callable[[int, int], object] | None = None,
    ) -> Iterator[Event]:
        """Feed a prompt of ids, then yield Tokens and a Finish; `generate.generate` says what holds at every moment.

        None takes the bundle's default; where it has none, 256 tokens at most and greedy. `stop_ids` come on top of the
        bundle's own, which `ignore_eos` leaves out. See SamplingOptions for the other options.
        """
        options = GenerationOptions(
            max_tokens=max_tokens,
            min_tokens=min_tokens,
            stop_ids=stop_ids,
            ignore_eos=ignore_eos,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            penalty_window=penalty_window,
            logit_bias=logit_bias,
            banned=banned,
        )
        return generate(self, prompt, self._engine.resolve(options), cancel=cancel, on_prompt=on_prompt)

    def _set_state(self, state: State, tokens: int) -> None:
        for name, array in self._sets[self._current].items():
            array[...] = state[name]
        self._tokens = tokens

    def _run(self, inputs: NDArray[Any] | int, length: int) -> FloatArray:
        """One call of the graph for 1 <= T <= chunk checked inputs, then swap the state buffers; T calls where none takes T."""
        if length > 1 and self._engine.graph_for(length) is None:
            assert not isinstance(inputs, int)
            return [self._run(inputs[index : index + 1], 1) for index in range(length)][-1]
        bound = self._bound(length)
        bound.inputs[0] = inputs
        bound.run()
        self._current ^= 1
        self._tokens += length
        return bound.output

    def _bound(self, length: int) -> "_Bound":
        """The bindings of a single step, or of more tokens, which share all but their inputs."""
        cache = self._steps if length == 1 else self._chunks
        bound = cache[self._current]
        if bound is None:
            bound = cache[self._current] = self._bind(length)
        if bound.length != length:
            bound.resize(length)
        return bound

    def _bind(self, length: int) -> "_Bound":
        past, present = self._sets[self._current], self._sets[self._current ^ 1]
        if length == 1:
            return _Bound(self._engine, length, past, present)
        if not self._spare:
            self._spare = {name: array.copy() for name, array in past.items() if present[name] is array}
        return _Bound(self._engine, length, past, {**present, **self._spare}, present)


class _Bound:
    """A graph call with every buffer bound: `inputs` is written, `run()` called, `output` read.

    What the graph wrote into `present` is then copied to where `target` holds another array under the same name.
    """

    def __init__(self, engine: Engine, length: int, past: State, present: State, target: State | None = None) -> None:
        graph = engine.graph_for(length)
        assert graph is not None
        self._engine, self._session = engine, graph
        self._binding = self._session.io_binding()
        # Other providers copy an input to their own memory when it is bound, and only then: bind it before every call.
        self._feeds: dict[str, ort.OrtValue] = {}
        for row in engine.manifest.state:
            self._bind_input(row.input_name, past[row.name])
            self._bind_output(row.output_name, present[row.name])
        self._states = past, present  # the binding does not keep the arrays alive
        self._copies = [(target[n], array) for n, array in present.items() if target[n] is not array] if target else []
        self.resize(length)

    def resize(self, length: int) -> None:
        """Bind inputs and output of a call with so many tokens; the state stays bound."""
        engine, graph = self._engine, self._engine.manifest.graph
        self.length = 0  # what is cut short here, as by Ctrl-C, is done again
        if engine.takes_ids:
            self.inputs: NDArray[Any] = np.zeros((1, length), np.int64)
        else:
            self.inputs = np.zeros((1, length, engine.manifest.model.width), np.float32)
        shape = (1, length, engine.output_width) if graph.all_logits else (1, engine.output_width)
        self._output = np.zeros(shape, np.float32)
        self.output: FloatArray = self._output.reshape(-1, engine.output_width)[-1]
        self.output.flags.writeable = False
        self._bind_input(graph.input, self.inputs)
        self._bind_output(graph.output, self._output)
        self.length = length

    def run(self) -> None:
        """Execute; BundleError if the graph fails."""
        try:
            for name, value in self._feeds.items():
                self._binding.bind_ortvalue_input(name, value)
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            provider = self._engine.provider
            advice = "export the bundle again" if provider.is_cpu else f"check the options of {provider.provider.name}"
            raise BundleError(f"expected a graph that runs, got {printable(str(error))[:160]}; {advice}") from error
        for old, new in self._copies:
            old[...] = new

    def _bind_input(self, name: str, array: NDArray[Any]) -> None:
        value = ort.OrtValue.ortvalue_from_numpy(array)
        self._binding.bind_ortvalue_input(name, value)
        if not self._engine.provider.is_cpu:
            self._feeds[name] = value

    def _bind_output(self, name: str, array: NDArray[Any]) -> None:
        self._binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
