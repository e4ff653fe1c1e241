"""As much of the protobuf wire format as a graph file takes: its members read, and written again.

A message is a run of members: a number, how it is written, and content. Nothing here knows what a message means. No
protobuf library is needed.
"""

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Span = tuple[int, int]


def fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, wire type, begin, end) of each member's content; ValueError for what is no protobuf message."""
    while start < end:
        tag, start = varint(data, start, end)
        kind = tag & 7
        if kind == BYTES:
            size, start = varint(data, start, end)
            stop = start + size
        elif kind == VARINT:
            stop = varint(data, start, end)[1]
        elif kind in (FIXED32, FIXED64):
            stop = start + (4 if kind == FIXED32 else 8)
        else:
            raise ValueError("something that is no ONNX")
        if stop > end or tag < 8:  # the number is tag >> 3, and 0 is none
            raise ValueError("something that is no ONNX")
        yield tag >> 3, kind, start, stop
        start = stop


def children(data: bytes, span: Span, number: int, word: bytes = b"") -> Iterator[Span]:
    """Spans of a message's members of one number that hold `word`."""
    for got, kind, start, end in fields(data, *span):
        if got == number and kind == BYTES and data.find(word, start, end) >= 0:
            yield start, end


def strings(data: bytes, span: Span, number: int) -> list[str]:
    """Repeated texts of one number; ValueError for what is no UTF-8."""
    return [data[start:end].decode("utf-8") for start, end in children(data, span, number)]


def integers(data: bytes, span: Span, number: int) -> Iterator[int]:
    """Repeated integers, packed or one by one."""
    for got, kind, start, end in fields(data, *span):
        if got == number and kind == VARINT:
            yield varint(data, start, end)[0]
        elif got == number and kind == BYTES:
            place = start
            while place < end:
                value, place = varint(data, place, end)
                yield value


def varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    """A variable-length integer and where it ends."""
    value = shift = 0
    while start < end and shift < 70:  # ten bytes of seven bits
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # the last byte of a number
            return value, start
        shift += 7
    raise ValueError("something that is no ONNX")


def member(number: int, content: bytes | str) -> bytes:
    """A member of text, bytes or a message, as it is written."""
    content = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | BYTES) + _varint(len(content)) + content


def integer(number: int, value: int) -> bytes:
    """A member that is a number of 0 or more."""
    return _varint(number << 3 | VARINT) + _varint(value)


def copied(data: bytes, number: int, kind: int, start: int, end: int) -> bytes:
    """A member that `fields` found, as it was written."""
    content = data[start:end]
    return member(number, content) if kind == BYTES else _varint(number << 3 | kind) + content


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])
