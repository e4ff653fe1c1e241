"""The model that users hold: weights loaded once, any number of streams made of it."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from .engine import Engine
from .options import GenerationOptions
from .session import Session
from .text import Piece, start_stream


class Model(Engine):
    """A loaded bundle; made by `load`. Several threads may use one model, each with sessions of its own."""

    def session(self) -> Session:
        """A new stream in the zero state."""
        return Session(self)

    def stream(
        self,
        prompt: str,
        *,
        stop: Sequence[str] = (),
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
    ) -> Iterator[str]:
        """Text pieces that continue a prompt, from a fresh session; the options are those of `text.stream_text`."""
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
        events = start_stream(self.session(), prompt, options, stop=stop, cancel=cancel, on_prompt=on_prompt)
        return (event.text for event in events if isinstance(event, Piece))
