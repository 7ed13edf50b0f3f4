"""Recurrent layers: RNN, GRU, LSTM, in one or both directions.

Each is a cell that takes what the input gives to the gates, and its state, to its next state; the first
array of a state is the output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .elementwise import sigmoid, softsign
from .node import Array, Node, Operator
from .outcome import Unsupported

State = tuple[Array, ...]

ACTIVATIONS: dict[str, Callable[[Array], Any]] = {
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": sigmoid,
    "softsign": softsign,
    "tanh": np.tanh,
}


@dataclass(frozen=True, eq=False)
class Weights:
    """What a cell needs of one direction.

    Attributes:
        recurrence: R of shape [gates·hidden, hidden].
        bias: That of the recurrence, [gates·hidden].
        peephole: That of an LSTM, [3·hidden].
        activations: As many as the cell has.
        clip: The bound of what enters an activation, or infinity.
        coupled: Whether the forget gate of an LSTM is what its input gate leaves, as runtimes have it.
        late_reset: Whether a GRU applies its reset gate after the recurrence.
    """

    recurrence: Array
    bias: Array
    peephole: Array
    activations: Sequence[Callable[[Array], Any]]
    clip: float
    coupled: bool
    late_reset: bool

    def activate(self, index: int, x: Array) -> Array:
        """The activation at `index`, of clipped values."""
        return np.asarray(self.activations[index](np.clip(x, -self.clip, self.clip)))


Cell = Callable[[Weights, Array, State], State]


def rnn_cell(weights: Weights, x: Array, state: State) -> State:
    (h,) = state
    return (weights.activate(0, x + h @ weights.recurrence.T + weights.bias),)


def gru_cell(weights: Weights, x: Array, state: State) -> State:
    (h,) = state
    size = h.shape[1]
    r_gates, r_hidden = weights.recurrence[: 2 * size], weights.recurrence[2 * size :]
    b_gates, b_hidden = weights.bias[: 2 * size], weights.bias[2 * size :]
    z, r = np.split(weights.activate(0, x[:, : 2 * size] + h @ r_gates.T + b_gates), 2, axis=1)
    recurrent = r * (h @ r_hidden.T + b_hidden) if weights.late_reset else (r * h) @ r_hidden.T + b_hidden
    return ((1 - z) * weights.activate(1, x[:, 2 * size :] + recurrent) + z * h,)


def lstm_cell(weights: Weights, x: Array, state: State) -> State:
    h, c = state
    p_i, p_o, p_f = np.split(weights.peephole, 3)
    i, o, f, g = np.split(x + h @ weights.recurrence.T + weights.bias, 4, axis=1)
    i = weights.activate(0, i + p_i * c)
    f = 1 - i if weights.coupled else weights.activate(0, f + p_f * c)
    c = f * c + i * weights.activate(1, g)
    return weights.activate(0, o + p_o * c) * np.asarray(weights.activations[2](c)), c


def recurrent(cell: Cell, gates: int, defaults: Sequence[str], states: int) -> Operator:
    """The operator of a cell, with the activations it has by default and the length of its state."""

    def run(node: Node) -> tuple[Array, ...]:
        batch_first = bool(node.attributes.get("layout", 0))
        x, w, r = node[0], node[1], node[2]
        x = x.swapaxes(0, 1) if batch_first else x
        steps, batch, _ = x.shape
        directions, size = w.shape[0], r.shape[2]
        lengths = node.optional(4)
        lengths = np.full(batch, steps) if lengths is None else lengths
        bias = _or_zeros(node.optional(3), (directions, 2 * gates * size))
        peephole = _or_zeros(node.optional(7), (directions, 3 * size))
        initial = [
            _or_zeros(node.optional(5 + i), (directions, batch, size), batch_first) for i in range(states)
        ]
        activations = _activations(node, defaults, directions)

        outputs, finals = [], []
        for d in range(directions):
            weights = Weights(
                r[d],
                bias[d, gates * size :],
                peephole[d],
                activations[d * len(defaults) : (d + 1) * len(defaults)],
                node.attributes.get("clip", np.inf),
                bool(node.attributes.get("input_forget", 0)),
                bool(node.attributes.get("linear_before_reset", 0)),
            )
            order = _order(lengths, steps, d == 1 or node.attributes["direction"] == "reverse")
            gated = np.take_along_axis(x, order[:, :, np.newaxis], 0) @ w[d].T + bias[d, : gates * size]
            y, final = _direction(cell, weights, gated, tuple(state[d] for state in initial), lengths)
            outputs.append(np.take_along_axis(y, order[:, :, np.newaxis], 0))
            finals.append(final)
        sequence = np.stack(outputs, axis=1)  # [steps, directions, batch, hidden]
        last = [np.stack(values) for values in zip(*finals, strict=True)]
        if batch_first:
            return sequence.transpose(2, 0, 1, 3), *(value.swapaxes(0, 1) for value in last)
        return sequence, *last

    return run


def _direction(
    cell: Cell, weights: Weights, gated: Array, state: State, lengths: Array
) -> tuple[Array, State]:
    """The outputs [steps, batch, hidden], zero beyond each sequence's end, and the states at the ends."""
    y = np.zeros((*gated.shape[:2], state[0].shape[1]))
    for t, x in enumerate(gated):
        running = (t < lengths)[:, np.newaxis]
        state = tuple(
            np.where(running, new, old) for new, old in zip(cell(weights, x, state), state, strict=True)
        )
        y[t] = np.where(running, state[0], 0)
    return y, state


def _order(lengths: Array, steps: int, backwards: bool) -> Array:
    """Which step of each sequence comes when, [steps, batch]; its own inverse."""
    t = np.broadcast_to(np.arange(steps)[:, np.newaxis], (steps, len(lengths)))
    return np.where(t < lengths, lengths - 1 - t, t) if backwards else t


def _activations(node: Node, defaults: Sequence[str], directions: int) -> list[Callable[[Array], Any]]:
    names = [name.decode().lower() for name in node.attributes.get("activations", [])]
    names = names or [*defaults] * directions
    if unknown := set(names) - ACTIVATIONS.keys():
        raise Unsupported(f"the activations {sorted(unknown)} are not available here")
    if len(names) < len(defaults) * directions:  # the schema of RNN has two by default, for one direction too
        raise ValueError(f"{len(names)} activations for {directions} directions")
    return [ACTIVATIONS[name] for name in names]


def _or_zeros(value: Array | None, shape: tuple[int, ...], swapped: bool = False) -> Array:
    if value is None:
        return np.zeros(shape)
    return value.swapaxes(0, 1) if swapped else value


OPERATORS: dict[str, Operator] = {
    "GRU": recurrent(gru_cell, 3, ["sigmoid", "tanh"], 1),
    "LSTM": recurrent(lstm_cell, 4, ["sigmoid", "tanh", "tanh"], 2),
    "RNN": recurrent(rnn_cell, 1, ["tanh"], 1),
}
