"""The few facts of the protobuf wire format that reading and writing large models needs.

A message is a row of fields, each with a number, a kind, and its bytes. `fields` finds them without
parsing what is inside; `splice` builds a message anew out of the old one's bytes, so that whatever
is not replaced stays as it was, byte for byte, fields that nobody knows included; `split` takes the
weights out of a model, so that the rest is small enough to be parsed at once. What the numbers mean
is in onnx.proto, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

LARGE: Final = 4096
"""Weights of at least this many bytes are never parsed: they stay in the mapped file."""

MESSAGE_LIMIT: Final = 2**31 - 1
"""A protobuf message cannot be longer."""

# onnx.proto: ModelProto, GraphProto (and FunctionProto), NodeProto, AttributeProto, TensorProto
MODEL_GRAPH, MODEL_OPSET_IMPORT, MODEL_TRAINING, MODEL_FUNCTIONS = 7, 8, 20, 25
MODEL_HEADER = (1, 2, 3, 4, 5, 6, 14)  # versions, producer, domain, doc string, metadata
GRAPH_HEADER = (2, 10, 16)  # name, doc string, metadata
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT = 1, 5, 11, 12
GRAPH_VALUE_INFO, GRAPH_QUANTIZATION = 13, 14
FUNCTION_NODE, FUNCTION_OUTPUT, FUNCTION_VALUE_INFO = 7, 5, 12
NODE_INPUT, NODE_OUTPUT, NODE_ATTRIBUTE = 1, 2, 5
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS = 5, 6, 11
TENSOR_NAME, TENSOR_RAW_DATA, TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION = 8, 9, 13, 14
TENSOR_DATA = (4, 5, 7, 9, 10, 11)  # the fields in which a tensor's numbers can be

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # the kinds of a field; 3 and 4 are no longer in use


class Malformed(Exception):
    """The bytes are no protobuf message.

    Attributes:
        missing: How many bytes are missing at the end, when the message seems to be cut off; else 0.
    """

    def __init__(self, missing: int = 0) -> None:
        super().__init__(f"{missing} bytes are missing" if missing else "not a protobuf message")
        self.missing = missing


class Field(NamedTuple):
    """Where a field of a message lies: [start, end) with its head, [body, end) without."""

    number: int
    start: int
    body: int
    end: int


@dataclass(frozen=True, eq=False)
class Deferred:
    """Bytes that are made only when they are written.

    Attributes:
        size: How many there will be.
        produce: Makes them, in one piece or more.
    """

    size: int
    produce: Callable[[], Iterable[bytes | memoryview]]

    def __len__(self) -> int:
        return self.size


Part = bytes | memoryview | Deferred


class Item(NamedTuple):
    """An entry of a repeated field, to be written.

    Attributes:
        place: Its index among the entries of the old message; None for a new one.
        parts: The whole field, head included; None for the old bytes.
    """

    place: int | None
    parts: Sequence[Part] | None = None


def fields(view: memoryview, start: int, end: int) -> list[Field]:
    """The fields of the message at [start, end), in their order.

    Raises:
        Malformed: When the bytes are no message.
    """
    found: list[Field] = []
    at = start
    try:
        while at < end:
            first = at
            tag, at = view[at], at + 1
            if tag > 0x7F:  # one byte is the rule; spelled out here because this loop is most of the work
                tag, at = _read_varint(view, first)
            kind = tag & 7
            if kind == _BYTES:
                size, body = view[at], at + 1
                if size > 0x7F:
                    size, body = _read_varint(view, at)
                at = body + size
            else:
                body = at
                if kind == _VARINT:
                    _, at = _read_varint(view, at)
                elif kind == _FIXED64:
                    at += 8
                elif kind == _FIXED32:
                    at += 4
                else:
                    raise Malformed()
            if tag < 8:
                raise Malformed()  # there is no field 0
            found.append(Field(tag >> 3, first, body, at))
    except IndexError:
        raise Malformed(missing=1) from None
    if at > end:
        raise Malformed(missing=at - end)
    return found


def head(number: int, size: int) -> bytes:
    """What precedes `size` bytes of the field `number`."""
    return _varint(number << 3 | _BYTES) + _varint(size)


def field(number: int, parts: Sequence[Part]) -> list[Part]:
    """The field `number` holding `parts`."""
    return [head(number, sum(map(len, parts))), *parts]


def splice(view: memoryview, old: Sequence[Field], items: Mapping[int, Sequence[Item]]) -> list[Part] | None:
    """A message in which some repeated fields have other entries.

    Args:
        view: The bytes in which the old message lies.
        old: The fields of the old message.
        items: By field number, all entries that the new message has, in their order. Fields that are
            not mentioned stay. New entries come after the old entry that they follow in this order.

    Returns:
        The new message; None when it is the old one.
    """
    count = Counter(f.number for f in old)
    if all(_intact(entries, count[number]) for number, entries in items.items()):
        return None
    lies = {number: [f for f in old if f.number == number] for number in items}
    index = {n: {item.place: i for i, item in enumerate(entries)} for n, entries in items.items()}
    written = dict.fromkeys(items, 0)
    seen = dict.fromkeys(items, 0)
    parts: list[Part] = []

    def write(number: int, upto: int) -> None:
        for item in items[number][written[number] : upto]:
            if item.parts is not None:
                parts.extend(item.parts)
            elif item.place is not None:
                entry = lies[number][item.place]
                parts.append(view[entry.start : entry.end])
        written[number] = max(written[number], upto)

    for f in old:
        if f.number not in items:
            parts.append(view[f.start : f.end])
            continue
        place = seen[f.number]
        seen[f.number] += 1
        last = seen[f.number] == count[f.number]
        write(f.number, len(items[f.number]) if last else index[f.number].get(place, -1) + 1)
    for number in sorted(items):
        write(number, len(items[number]))
    return parts


@dataclass(frozen=True, eq=False)
class Split:
    """A model whose large weights have been taken out.

    Attributes:
        skeleton: The ModelProto without the `raw_data` of large initializers, ready to be parsed.
        top: The fields of the model.
        graph: The one among them that is the graph.
        inner: The fields of the graph.
        weights: Where the `raw_data` lies that was taken out, by the index of the initializer.
    """

    skeleton: bytes
    top: list[Field]
    graph: Field
    inner: list[Field]
    weights: dict[int, Field]


def split(view: memoryview) -> Split | None:
    """Take the large weights out of a model.

    Returns:
        The parts; None when there is no graph, or more than one.

    Raises:
        Malformed: When the bytes are no message.
    """
    top = fields(view, 0, len(view))
    graphs = [f for f in top if f.number == MODEL_GRAPH]
    if len(graphs) != 1:
        return None
    graph = graphs[0]
    inner = fields(view, graph.body, graph.end)
    weights: dict[int, Field] = {}
    lean: list[Part] = []
    done, place = graph.body, -1
    for f in inner:
        if f.number != GRAPH_INITIALIZER:
            continue
        place += 1
        raw = _large_raw_data(view, f)
        if raw is not None:
            weights[place] = raw
            rest = (view[f.body : raw.start], view[raw.end : f.end])
            lean += (view[done : f.start], *field(f.number, rest))
            done = f.end
    lean.append(view[done : graph.end])
    whole = [view[: graph.start], *field(MODEL_GRAPH, lean), view[graph.end :]]
    skeleton = b"".join(part for part in whole if not isinstance(part, Deferred))
    return Split(skeleton, top, graph, inner, weights)


def _large_raw_data(view: memoryview, tensor: Field) -> Field | None:
    if tensor.end - tensor.body < LARGE:
        return None
    raw = [f for f in fields(view, tensor.body, tensor.end) if f.number == TENSOR_RAW_DATA]
    return raw[0] if len(raw) == 1 and raw[0].end - raw[0].body >= LARGE else None


def _intact(entries: Sequence[Item], count: int) -> bool:
    if len(entries) != count:
        return False
    return all(item.parts is None and item.place == i for i, item in enumerate(entries))


def _read_varint(view: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise Malformed()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
