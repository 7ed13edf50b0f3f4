"""Operators that run inner graphs: If, Loop, Scan."""

from __future__ import annotations

import numpy as np

from .block import Block
from .node import Array, Node, Operator, carry, dtype_of
from .outcome import Unsupported


def if_(node: Node) -> tuple[Array, ...]:
    branch = "then_branch" if node[0].item() else "else_branch"
    return tuple(node.run(node.attributes[branch], []))


def loop(node: Node) -> tuple[Array, ...]:
    body, limit, condition = node.attributes["body"], node.optional(0), node.optional(1)
    state = [node[i] for i in range(2, len(node.inputs))]
    scanned: list[list[Array]] = [[] for _ in body.outputs[1 + len(state) :]]
    going, turn = condition is None or bool(condition.item()), 0
    while going and (limit is None or turn < limit.item()):
        on, *results = node.run(body, [np.array(turn, np.int64), np.array(True), *state])
        going, turn = bool(on.item()), turn + 1
        state = results[: len(state)]
        for rows, row in zip(scanned, results[len(state) :], strict=True):
            rows.append(row)
    return (*state, *_stacked(body, scanned, [0] * len(scanned)))


def scan(node: Node) -> tuple[Array, ...]:
    if node.opset >= 9:
        inputs = [node[i] for i in range(len(node.inputs))]
        return tuple(_scan(node, inputs))
    # Opset 8 has a batch on axis 0 and, as its first input, the length of each sequence.
    lengths, batched = node.optional(0), [node[i] for i in range(1, len(node.inputs))]
    if lengths is not None and (lengths != batched[-1].shape[1]).any():
        raise Unsupported("Scan of opset 8 with sequences of different lengths")
    runs = [_scan(node, list(inputs)) for inputs in zip(*batched, strict=True)]
    return tuple(np.stack(results) for results in zip(*runs, strict=True))


def _scan(node: Node, inputs: list[Array]) -> list[Array]:
    """One run over unbatched inputs: the states, then what is scanned."""
    body, count = node.attributes["body"], node.attributes["num_scan_inputs"]
    state, sources = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
    axes = node.attributes.get("scan_input_axes") or [0] * count
    reverse = node.attributes.get("scan_input_directions" if node.opset >= 9 else "directions")
    sources = [np.moveaxis(x, axis, 0) for x, axis in zip(sources, axes, strict=True)]
    sources = [x[::-1] if back else x for x, back in zip(sources, reverse or [0] * count, strict=True)]

    scanned: list[list[Array]] = [[] for _ in body.outputs[len(state) :]]
    for row in zip(*sources, strict=True):
        results = node.run(body, [*state, *row])
        state = results[: len(state)]
        for rows, value in zip(scanned, results[len(state) :], strict=True):
            rows.append(value)
    reverse = node.attributes.get("scan_output_directions") or [0] * len(scanned)
    scanned = [rows[::-1] if back else rows for rows, back in zip(scanned, reverse, strict=True)]
    axes = node.attributes.get("scan_output_axes") or [0] * len(scanned)
    return [*state, *_stacked(body, scanned, axes)]


def _stacked(body: Block, scanned: list[list[Array]], axes: list[int]) -> list[Array]:
    """Scan outputs, the rows of each stacked on its axis; without rows, what the body declares."""
    declared = body.declared[len(body.declared) - len(scanned) :]
    results = []
    for rows, axis, value in zip(scanned, axes, declared, strict=True):
        if rows:
            results.append(np.stack(rows, axis=axis))
            continue
        tensor_type = value.type.tensor_type
        sizes = [dim.dim_value for dim in tensor_type.shape.dim]
        empty = np.empty(sizes, dtype_of(tensor_type.elem_type))
        results.append(np.expand_dims(carry(empty), axis)[:0])
    return results


OPERATORS: dict[str, Operator] = {
    "If": if_,
    "Loop": loop,
    "Scan": scan,
}
