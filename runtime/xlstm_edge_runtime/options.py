"""What a generation is asked for, as one value: given by a caller, then resolved against the bundle's defaults."""

import operator
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .errors import InputError
from .reading import length_of
from .sampling import SamplingOptions, shown_number

MOST_STOPS = 1 << 20
DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedOptions:
    """When a generation ends, and how it samples; made by `GenerationOptions.resolve`, which checks."""

    max_tokens: int
    min_tokens: int
    stop_ids: frozenset[int]
    sampling: SamplingOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """Options as a caller gives them. None takes the bundle's default; where it has none, 256 tokens at most and greedy.

    `stop_ids` come on top of the bundle's own, which `ignore_eos` leaves out. `SamplingOptions` explains the rest.
    """

    max_tokens: int | None = None
    min_tokens: int | None = None
    stop_ids: Collection[int] | None = None
    ignore_eos: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    penalty_window: int | None = None
    logit_bias: Mapping[int, float] | None = None
    banned: Collection[int] | None = None

    def resolve(self, defaults: Mapping[str, Any] | None = None, eos_ids: Collection[int] = ()) -> ResolvedOptions:
        """These options over a bundle's sampling `defaults` and `eos_ids`; InputError for bad ones."""
        given = {field.name: getattr(self, field.name) for field in fields(SamplingOptions)}
        chosen = {**(defaults or {}), **{name: value for name, value in given.items() if value is not None}}
        ids = _check_ids(() if self.stop_ids is None else self.stop_ids)
        if not isinstance(self.ignore_eos, bool):
            raise InputError(f"expected ignore_eos as True or False, got {type(self.ignore_eos).__name__}; correct it")
        return ResolvedOptions(
            max_tokens=_check_count("max_tokens", self.max_tokens, DEFAULT_MAX_TOKENS),
            min_tokens=_check_count("min_tokens", self.min_tokens, 0),
            stop_ids=ids if self.ignore_eos else ids | frozenset(eos_ids),
            sampling=SamplingOptions.from_mapping(chosen),
        )


def _check_count(name: str, value: object, default: int) -> int:
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise InputError(f"expected {name} as an integer of 0 or more, got {shown_number(value)}; correct it")
    return int(value)


def _check_ids(stops: Any) -> frozenset[int]:
    if length_of(stops) > MOST_STOPS:
        raise InputError(f"expected at most {MOST_STOPS:,} stop_ids, got more; pass those that can come")
    try:
        tokens = list(stops)
        ids = frozenset(operator.index(token) for token in tokens)
        if any(isinstance(token, bool) for token in tokens) or min(ids, default=0) < 0:
            raise TypeError("no ids")
    except TypeError as error:
        raise InputError(
            f"expected stop_ids as a collection of ids, got {type(stops).__name__}; pass a list of integers of 0 or more"
        ) from error
    return ids
