"""Tokens that only the files beside a tokenizer.json name."""

from collections.abc import Iterator
from typing import Any

FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


def with_named_tokens(document: bytes, settings: list[dict[str, Any]]) -> tuple[bytes, list[str]]:
    """A tokenizer.json with the tokens that only the files beside it name, as transformers adds them; and their names.

    `settings`: tokenizer_config.json, special_tokens_map.json, added_tokens.json. Tokens with ids of their own come first,
    in the order of these; then the special ones by role. A token of the vocabulary that a file calls special becomes so.
    """
    from tokenizers import AddedToken, Tokenizer  # noqa: PLC0415  # optional

    tokenizer, added = Tokenizer.from_str(document.decode("utf-8")), list[str]()
    known = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    for content, flags in _named(settings):
        special = bool(flags.pop("special", True))
        if content in known and (known[content] or not special):
            continue
        token = AddedToken(content, special=special, **flags)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
        known[content] = special
        added.append(content)
    return (str(tokenizer.to_str()).encode("utf-8"), added) if added else (document, [])


def _named(settings: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, bool]]]:
    """Tokens and their flags, as far as files state them."""
    config, roles, by_id = settings
    decoder = config.get("added_tokens_decoder")
    decoder = decoder if isinstance(decoder, dict) else {}
    for key in sorted((key for key in decoder if key.isdecimal()), key=int):
        yield from _token(decoder[key], special=False)
    plain = {name: index for name, index in by_id.items() if isinstance(index, int)}
    for name in sorted(plain, key=lambda name: plain[name]):
        yield from _token(name, special=False)
    for source in (config, roles):
        for key, value in source.items():
            if key.endswith("_token"):
                yield from _token(value, special=True)
            elif key in ("additional_special_tokens", "extra_special_tokens"):
                for one in _members(value):
                    yield from _token(one, special=True)


def _members(value: Any) -> list[Any]:
    """Extra tokens come as a list, or by role; anything else holds none."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _token(value: Any, *, special: bool) -> Iterator[tuple[str, dict[str, bool]]]:
    """A token written as its text, or as an object with flags."""
    entry = value if isinstance(value, dict) else {"content": value}
    content = entry.get("content")
    if isinstance(content, str) and content:
        flags = {key: entry[key] for key in FLAGS if isinstance(entry.get(key), bool)}
        yield content, {"special": special, **flags}
