"""Sources: the nodes that are affine maps, and the runs of them that make a site.

Inference mode of a BatchNormalization is established here and nowhere else: by attribute, by opset and
by outputs (https://onnx.ai/onnx/operators/onnx__BatchNormalization.html).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .affine import Affine
from .constants import FLOATS, Constant
from .double_double import DoubleDouble
from .errors import InputError
from .facts import Facts, Op
from .formulas import Formula
from .nodes import label, well_formed
from .report import Declined, Reason
from .shapes import size_of

_EPSILON = float(np.float32(1e-5))

OPERATORS = frozenset({"BatchNormalization", "Mul", "Add", "Sub", "Div", "Neg"})


@dataclass(frozen=True, eq=False)
class Source:
    """A node that computes `affine` of its input number `data`."""

    affine: Affine
    data: int


@dataclass(frozen=True, eq=False)
class Site:
    """A maximal run of sources, composed.

    Attributes:
        nodes: The run, in the order of the data.
        affine: What it computes; None if its only node declined.
        data: The value that goes in; None likewise.
        declined: Why the node is no source, although it looks like one.
    """

    nodes: tuple[ir.Node, ...]
    affine: Affine | None
    data: ir.Value | None
    declined: Declined | None = None

    @property
    def result(self) -> ir.Value:
        """The value that comes out."""
        return self.nodes[-1].outputs[0]


def sites(facts: Facts, nodes: Iterable[ir.Node]) -> Iterator[Site]:
    """The sites among the nodes of one graph, which may be edited between two of them."""
    nodes = list(nodes)
    _compute_alike(facts, nodes)
    taken: set[ir.Node] = set()
    for node in nodes:
        if node in taken or node.graph is None:
            continue
        site = _site(facts, node)
        if site is not None:
            taken.update(site.nodes)
            yield site


def source(op: Op) -> Source | None:
    """The affine that a node is, or None if it is none and does not look like one.

    Raises:
        Declined: It looks like one: a BatchNormalization, or arithmetic with a constant.
    """
    if op.node.op_type not in OPERATORS or not op.facts.is_standard(op.node):
        return None
    with well_formed(op.node):
        return _source(op)


def _source(op: Op) -> Source | None:
    if op.type == "BatchNormalization":
        return Source(batchnorm(op), 0)
    if op.type == "Neg":
        return Source(Affine.of(DoubleDouble.of(-1.0), None, None), 0) if _is_float(op, 0) else None
    return _arithmetic(op)


def need_inference(op: Op) -> None:
    """Raise `Declined` unless the BatchNormalization runs in inference mode."""
    outputs = sum(1 for o in op.node.outputs if o.name)
    if op.opset >= 14:
        training = bool(op.integer("training_mode", 0))
    elif op.opset >= 7:
        training = outputs == 5  # this is how these opsets say it, even if nothing reads the four
    else:
        training = not op.integer("is_test", 0)
    if training:
        raise Declined(Reason.TRAINING_MODE, f"{op.name!r}, opset {op.opset}")
    if outputs != 1:
        raise Declined(Reason.EXTRA_OUTPUTS, f"{op.name!r} declares {outputs} outputs, opset {op.opset}")
    if op.opset < 9 and not op.integer("spatial", 1):
        raise Declined(Reason.SPATIAL, f"{op.name!r}")


def batchnorm(op: Op) -> Affine:
    """s = scale / √(var + ε), t = bias - s · mean, per channel on axis 1."""
    need_inference(op)
    known = op.facts.normalizations.get(_identity(op.node))
    if known is not None:
        return known
    scale, bias, mean, var = _parameters(op)
    numbers = _scale_and_shift(scale, bias, mean, _deviation(op, var))
    slope, offset = _formulas(op, [p.formula for p in (scale, bias, mean)])
    affine = Affine.of(numbers[0].known_as(slope), numbers[1].known_as(offset), 1)
    if affine.axis is None and scale.shape[0] > 1:
        _need_channels(op, scale.shape[0])  # a number for all channels: no weight will miss the right length
    return affine


def _identity(node: ir.Node) -> tuple[object, ...]:
    """What the affine of a BatchNormalization depends on."""
    epsilon = node.attributes.get("epsilon")
    return (*node.inputs[1:5], None if epsilon is None else epsilon.value)


def _compute_alike(facts: Facts, nodes: Iterable[ir.Node]) -> None:
    """Compute the affines of many BatchNormalizations at once.

    An operation of numpy costs about the same for one row as for a hundred. Only what is in good order
    takes part: the rest is left to `batchnorm`, which says what is wrong.
    """
    alike: dict[tuple[float, int], list[tuple[Op, NDArray[np.float64]]]] = {}
    for node in nodes:
        if node.op_type == "BatchNormalization" and facts.is_standard(node) and len(node.inputs) == 5:
            try:
                op = facts.op(node)
                need_inference(op)
                numbers = _stored_parameters(op)
                epsilon = _epsilon(op)
            except (Declined, AttributeError, TypeError, ValueError):
                continue
            if numbers is not None:
                alike.setdefault((epsilon, numbers.shape[1]), []).append((op, numbers))
    for (epsilon, _), group in alike.items():
        if len(group) < 2:
            continue
        rows = DoubleDouble.of(np.array([numbers for _, numbers in group]))
        raised = _raised(rows[:, 3], epsilon)
        s, t = _scale_and_shift(rows[:, 0], rows[:, 1], rows[:, 2], raised.sqrt())
        sound = np.isfinite(rows.hi).all(axis=(1, 2)) & (raised.hi > 0.0).all(axis=1)
        for i in np.flatnonzero(sound).tolist():
            op, _ = group[i]
            formulas = [c.formula for c in map(op.constant, (1, 2, 3)) if c is not None]
            slope, offset = _formulas(op, formulas)
            affine = Affine.of(s.row(i, slope), t.row(i, offset), 1)
            if affine.axis is not None:
                facts.normalizations[_identity(op.node)] = affine


def _epsilon(op: Op) -> float:
    """ε is a float32, exactly."""
    return op.real("epsilon", _EPSILON)


def _stored_parameters(op: Op) -> NDArray[np.float64] | None:
    """Scale, bias, mean and variance as they are stored, shape (4, C); None if anything is unusual."""
    constants = [op.constant(i) for i in (1, 2, 3, 4)]
    found = [c.base for c in constants if c is not None and c.scale is None and c.shift is None]
    shapes = {base.shape for base in found}
    data = op.input(0)
    if len(found) < 4 or len(shapes) > 1 or data is None or any(base.dtype not in FLOATS for base in found):
        return None
    (shape,) = shapes
    stated = None if data.shape is None or len(data.shape) < 2 else size_of(data.shape[1])
    return np.array(found, np.float64) if len(shape) == 1 and stated in (None, *shape) else None


def _need_channels(op: Op, channels: int) -> None:
    size = op.facts.dim(op.need_input(0), 1)
    if isinstance(size, int) and size != channels:
        raise InputError(
            f"its parameters are for {channels} channels, but {op.need_input(0).name!r} has {size}; the "
            "model is invalid, export it again"
        )


def deviation(op: Op) -> DoubleDouble:
    """√(var + ε) of a BatchNormalization, shape (C,)."""
    return _deviation(op, _parameters(op)[3]).known_as(_deviation_formula(op))


def _deviation(op: Op, var: DoubleDouble) -> DoubleDouble:
    """The same from the variance."""
    raised = _raised(var, _epsilon(op))
    if not np.all(raised.hi > 0.0):
        c = int(np.argmin(raised.hi))
        raise Declined(
            Reason.NEGATIVE_VARIANCE, f"{op.name!r}, channel {c}: variance + epsilon is {raised.hi[c]:.6g}"
        )
    return raised.sqrt()


def _raised(var: DoubleDouble, epsilon: float) -> DoubleDouble:
    return var + DoubleDouble.of(epsilon)


def _scale_and_shift(
    scale: DoubleDouble, bias: DoubleDouble, mean: DoubleDouble, deviation: DoubleDouble
) -> tuple[DoubleDouble, DoubleDouble]:
    s = scale / deviation
    return s, bias - s * mean


# What the fold says of its numbers is said apart from how it computes them, so that a certificate can
# find an error in the latter.


def _formulas(op: Op, parameters: Sequence[Formula | None]) -> tuple[Formula | None, Formula | None]:
    """What scale and shift of a BatchNormalization are, from what its scale, bias and mean are."""
    scale, bias, mean = parameters
    if scale is None or bias is None or mean is None:
        return None, None
    slope = ("div", scale, _deviation_formula(op))
    return slope, ("add", bias, ("neg", ("mul", slope, mean)))


def _deviation_formula(op: Op) -> Formula:
    return ("deviation", *op.facts.origin(op.node))  # no fold changes var or ε


def _parameters(op: Op) -> list[DoubleDouble]:
    """Scale, bias, mean and variance of a BatchNormalization, each of shape (C,)."""
    constants = [op.need_constant(i, Reason.RUNTIME_PARAMETERS) for i in (1, 2, 3, 4)]
    shapes = [constant.shape for constant in constants]
    data = op.need_input(0)
    channels = size_of(data.shape[1]) if data.shape is not None and len(data.shape) > 1 else None
    usual = (channels,) if isinstance(channels, int) else max(shapes, key=shapes.count)
    if len(usual) != 1 or shapes.count(usual) < 4:
        odd = next((i for i, shape in enumerate(shapes) if shape != usual or len(shape) != 1), 0)
        raise InputError(
            f"{op.need_input(odd + 1).name!r} has shape {list(shapes[odd])}, but {data.name!r} has "
            f"{usual[0] if len(usual) == 1 else 'other'} channels; the model is invalid, export it again"
        )
    numbers = [constant.exact() for constant in constants]
    for i, exact in enumerate(numbers, 1):
        if not exact.is_finite():
            raise Declined(Reason.NOT_FINITE, f"{op.need_input(i).name!r} of {op.name!r}")
    return numbers


def _arithmetic(op: Op) -> Source | None:
    """Mul, Add, Sub or Div of data and a constant."""
    if len(op.node.inputs) != 2:
        return None
    known = [i for i in (0, 1) if (op.constant(i)) is not None]
    if len(known) != 1:
        return None
    (i,) = known
    constant = op.constant(i)
    if constant is None or constant.dtype not in FLOATS or (op.type == "Div" and i == 0):
        return None
    numbers, axis = _along_one_axis(op, i, constant)
    if op.type in ("Mul", "Div"):
        if op.type == "Div" and not np.all(numbers.hi):
            raise Declined(Reason.NOT_FINITE, f"{op.name!r} divides by zero")
        scale = numbers if op.type == "Mul" else DoubleDouble.of(1.0) / numbers
        return Source(Affine.of(scale, None, axis), 1 - i)
    negative = op.type == "Sub"
    scale = DoubleDouble.of(-1.0 if negative and i == 0 else 1.0)
    return Source(Affine.of(scale, -numbers if negative and i == 1 else numbers, axis), 1 - i)


def _along_one_axis(op: Op, i: int, constant: Constant) -> tuple[DoubleDouble, int | None]:
    """The constant operand i as one number per index of one axis of the data, or one number."""
    name = op.need_input(i).name
    shape = constant.shape
    if shape == ():
        return _finite(constant.exact(), name), None
    rank = op.need_rank(1 - i)
    offset = op.operand_offset(i, len(shape), rank)
    if offset is None:
        raise Declined(Reason.NOT_PER_CHANNEL, f"{name!r} of shape {list(shape)} raises the rank of the data")
    axes = [k for k, n in enumerate(shape) if n != 1]
    for k in axes:
        size = op.need_dim(1 - i, offset + k)
        if size != shape[k]:
            raise Declined(
                Reason.NOT_PER_CHANNEL,
                f"{name!r} of shape {list(shape)} broadcasts axis {offset + k} of the data",
            )
    base = constant.rounded()
    for k in axes if len(axes) > 1 and base.size else ():
        if np.all(base == base.take([0], k)):
            base = base.take([0], k)
    varying = [k for k, n in enumerate(base.shape) if n != 1]
    if len(varying) > 1 or not base.size:
        raise Declined(Reason.NOT_PER_CHANNEL, f"{name!r} of shape {list(shape)} varies along several axes")
    axis = varying[0] if varying else None
    return _finite(constant.line(axis), name), None if axis is None else offset + axis


def _finite(numbers: DoubleDouble, name: str | None) -> DoubleDouble:
    if not numbers.is_finite():
        raise Declined(Reason.NOT_FINITE, f"{name!r} holds NaN or infinity")
    return numbers


def _is_float(op: Op, i: int) -> bool:
    return op.facts.dtype(op.need_input(i)) in FLOATS


def _site(facts: Facts, node: ir.Node) -> Site | None:
    """The run that starts at a node; None if the node is no source."""
    if node.op_type not in OPERATORS or not facts.is_standard(node):
        return None
    if not node.outputs:
        nothing = Declined(Reason.MALFORMED, f"{node.op_type} {label(node)!r} has no output")
        return Site((node,), None, None, nothing)
    try:
        first = source(facts.op(node))
    except Declined as declined:
        return Site((node,), None, None, declined)
    except InputError as error:
        raise InputError(f"{node.op_type} {label(node)!r}: {error}") from error
    if first is None:
        return None
    data = node.inputs[first.data] if first.data < len(node.inputs) else None
    if data is None:
        return Site(
            (node,), None, None, Declined(Reason.MALFORMED, f"{node.op_type} {label(node)!r} reads nothing")
        )
    nodes, affine = [node], first.affine
    while (following := _next(facts, nodes[-1])) is not None:
        reader, after = following
        if not affine.meets(after):
            break
        nodes.append(reader)
        affine = affine.then(after)
    try:
        known = facts.constant(data) is not None
    except Declined:  # it would be one, if it could be computed
        known = True
    reason = Declined(Reason.FROM_CONSTANT, f"{data.name!r} is a constant") if known else None
    return Site(tuple(nodes), affine, data, reason)


def _next(facts: Facts, node: ir.Node) -> tuple[ir.Node, Affine] | None:
    """The source that is the only reader of a node, and its affine."""
    value = node.outputs[0]
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    (reader, index), *_ = uses
    if reader.graph is not node.graph:
        return None
    try:
        found = source(facts.op(reader))
    except (Declined, InputError):  # its own site will say so
        return None
    return (reader, found.affine) if found is not None and found.data == index else None
