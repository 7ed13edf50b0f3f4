"""Random valid graphs: `grown(seed)`, and the steps by which they grow."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from fuzz_growth import FLOATS, Growth, Model, Step, Value
from onnx import TensorProto, helper


def grown(seed: int) -> onnx.ModelProto:
    """The graph of a seed. It begins with weights, if it can, which take in what follows them."""
    model = Model(seed, BFLOAT16)
    main, given = Growth(model), model.inputs()
    main.values += given
    main.grow(1, WEIGHTED)
    main.grow(int(model.random.integers(2, 14)), STEPS)
    if main.values == given:
        main.values.append(main.add("Identity", [given[-1].name], given[-1].shape, dtype=given[-1].dtype))
    return model.proto(main, given)


# --- Steps: affines ------------------------------------------------------------------------------------


def arithmetic(g: Growth, x: Value) -> Value:
    op = g.pick(("Mul", "Mul", "Add", "Add", "Sub", "Div"))
    axis = g.axis(x)
    shape = tuple(n if i == axis else 1 for i, n in enumerate(x.shape))[g.pick((0, axis)) :]
    shape = g.pick((shape, shape, shape, (), (1,), x.shape[g.first :]))
    constant = g.weights(x, *shape, positive=op == "Div")
    inputs = [x.name, constant] if g.chance(0.7) else [constant, x.name]
    return g.add(op, inputs, x.shape, dtype=x.dtype)


def batch_normalization(g: Growth, x: Value) -> Value | None:
    if x.rank < 2:
        return None
    c = x.shape[1]
    statistics = x
    if g.opset >= 15 and g.chance(0.2):
        statistics = Value("", (), TensorProto.FLOAT)
    scale, bias = g.weights(x, c), g.weights(x, c)
    mean, var = g.weights(statistics, c), g.weights(statistics, c, positive=True)
    attrs: dict[str, Any] = {"epsilon": g.pick((1e-5, 1e-3, 0.0))} if g.chance(0.7) else {}
    if g.opset >= 14 and g.chance(0.3):
        attrs["training_mode"] = 0
    if g.opset < 9 and g.chance(0.3):
        attrs["spatial"] = 1
    if g.chance(0.3):
        attrs["momentum"] = 0.8
    names = [x.name, scale, bias, mean, var]
    return g.add("BatchNormalization", names, x.shape, dtype=x.dtype, **attrs)


# --- Steps: weights ------------------------------------------------------------------------------------


def convolution(g: Growth, x: Value) -> Value | None:
    if x.rank < 3:
        return None
    c, sides = x.shape[1], x.shape[2:]
    groups = g.pick([n for n in (1, 1, 1, c, 2) if c % n == 0])
    out = groups * g.pick((1, 2, 3))
    kernel = [int(min(side, g.pick((1, 1, 2, 3)))) for side in sides]
    pad, stride = g.pick((0, 0, 1)), g.pick((1, 1, 2))
    attrs: dict[str, Any] = {"group": groups} if groups > 1 or g.chance(0.3) else {}
    if g.chance(0.15):
        attrs |= {"auto_pad": "SAME_UPPER"}
        pad, stride, result = 0, 1, list(sides)
    else:
        result = [(side + 2 * pad - k) // stride + 1 for side, k in zip(sides, kernel, strict=True)]
    attrs |= {"pads": [pad] * 2 * len(sides)} if pad else {}
    attrs |= {"strides": [stride] * len(sides)} if stride > 1 else {}
    inputs = [x.name, g.weights(x, out, c // groups, *kernel)]
    inputs += [g.weights(x, out)] if g.chance(0.4) else [""] if g.chance(0.1) else []
    return g.add("Conv", inputs, (x.shape[0], out, *result), dtype=x.dtype, **attrs)


def transposed_convolution(g: Growth, x: Value) -> Value | None:
    if x.rank < 3:
        return None
    c, sides = x.shape[1], x.shape[2:]
    groups = g.pick([n for n in (1, 1, c, 2) if c % n == 0])
    out, k, stride = g.pick((1, 2)), g.pick((1, 2, 3)), g.pick((1, 1, 2))
    pad = g.pick((0, 1)) if k > 2 else 0
    result = [stride * (side - 1) + k - 2 * pad for side in sides]
    attrs: dict[str, Any] = {"group": groups} if groups > 1 else {}
    attrs |= {"pads": [pad] * 2 * len(sides)} if pad else {}
    attrs |= {"strides": [stride] * len(sides)} if stride > 1 else {}
    inputs = [x.name, g.weights(x, c, out, *[k] * len(sides))]
    inputs += [g.weights(x, out * groups)] if g.chance(0.4) else []
    return g.add("ConvTranspose", inputs, (x.shape[0], out * groups, *result), dtype=x.dtype, **attrs)


def gemm(g: Growth, x: Value) -> Value | None:
    if x.rank != 2:
        return None
    k, out = x.shape[1], g.pick((1, 2, 3, 5))
    turned = g.chance(0.5)
    inputs = [x.name, g.weights(x, *((out, k) if turned else (k, out)))]
    if g.opset < 11 or g.chance(0.7):
        inputs.append(g.weights(x, *g.pick(((out,), (out,), (1, out), (1,), ()))))
    attrs: dict[str, Any] = {"transB": 1} if turned else {}
    attrs |= {"alpha": 0.5} if g.chance(0.2) else {}
    attrs |= {"beta": g.pick((2.0, 0.0))} if g.chance(0.2) else {}
    return g.add("Gemm", inputs, (x.shape[0], out), dtype=x.dtype, **attrs)


def matmul(g: Growth, x: Value) -> Value | None:
    if x.rank < 2:
        return None
    if x.rank > 2 and g.chance(0.3):
        rows = g.pick((1, 2, 4))
        weight = g.weights(x, rows, x.shape[-2])
        shape = (*x.shape[:-2], rows, x.shape[-1])
        return g.add("MatMul", [weight, x.name], shape, dtype=x.dtype)
    columns = g.pick((1, 2, 4))
    weight = g.weights(x, x.shape[-1], columns)
    return g.add("MatMul", [x.name, weight], (*x.shape[:-1], columns), dtype=x.dtype)


def instance_normalization(g: Growth, x: Value) -> Value | None:
    if x.rank < 3:
        return None
    inputs = [x.name, g.weights(x, x.shape[1]), g.weights(x, x.shape[1])]
    return g.add("InstanceNormalization", inputs, x.shape, dtype=x.dtype)


def layer_normalization(g: Growth, x: Value) -> Value | None:
    if g.opset < 17 or x.rank < 2:
        return None
    inputs = [x.name, g.weights(x, x.shape[-1]), g.weights(x, x.shape[-1])]
    return g.add("LayerNormalization", inputs[: g.pick((2, 3))], x.shape, dtype=x.dtype)


def prelu(g: Growth, x: Value) -> Value | None:
    if x.rank < 2:
        return None
    slope = g.weights(x, *g.pick(((x.shape[1], *[1] * (x.rank - 2)), (1,))), positive=g.chance(0.8))
    return g.add("PRelu", [x.name, slope], x.shape, dtype=x.dtype)


# --- Steps: elementwise --------------------------------------------------------------------------------


def activation(g: Growth, x: Value) -> Value:
    ops = [
        "Relu",
        "Relu",
        "Relu",
        "LeakyRelu",
        "Sigmoid",
        "Tanh",
        "Abs",
        "Neg",
        "Neg",
        "Elu",
        "Selu",
        "HardSigmoid",
    ]
    ops += ["Identity", "Softplus", "Exp"] + ["Erf"] * (g.opset >= 9) + ["HardSwish"] * (g.opset >= 14)
    ops += ["ThresholdedRelu"] * (g.opset >= 10) + ["Softmax"] * (x.rank == 2)
    if x.dtype == TensorProto.BFLOAT16 and g.opset < 22:
        ops = ["Relu", "Neg", "Identity", "Abs"]
    return g.add(g.pick(ops), [x.name], x.shape, dtype=x.dtype)


def clip(g: Growth, x: Value) -> Value:
    low, high = g.pick(((0.0, 6.0), (-1.0, 1.0), (-100.0, 100.0)))
    if g.opset < 11:
        return g.add("Clip", [x.name], x.shape, dtype=x.dtype, min=low, max=high)
    dtype = helper.tensor_dtype_to_np_dtype(x.dtype)
    bounds = [g.constant(np.array(low, dtype)), g.constant(np.array(high, dtype))]
    return g.add("Clip", [x.name, *bounds[: g.pick((1, 2))]], x.shape, dtype=x.dtype)


def dropout(g: Growth, x: Value) -> Value:
    return g.add("Dropout", [x.name], x.shape, dtype=x.dtype)


def join(g: Growth, x: Value) -> Value:
    """With another value of the same shape, or with itself."""
    others = [v for v in g.values if (v.shape, v.dtype) == (x.shape, x.dtype)]
    other = g.pick(others) if others else x
    op = g.pick(("Add", "Add", "Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean"))
    return g.add(op, [x.name, other.name], x.shape, dtype=x.dtype)


def cast(g: Growth, x: Value) -> Value:
    other = g.pick(FLOATS[: 4 if g.opset >= 16 else 3])
    there = g.add("Cast", [x.name], x.shape, dtype=other, to=other)
    if g.chance(0.2):
        return there
    if g.opset >= 15 and g.chance(0.3):
        return g.add("CastLike", [there.name, x.name], x.shape, dtype=x.dtype)
    return g.add("Cast", [there.name], x.shape, dtype=x.dtype, to=x.dtype)


def where(g: Growth, x: Value) -> Value | None:
    if g.opset < 9:
        return None
    mask = g.constant(g.random.integers(0, 2, x.shape[g.first :]).astype(bool))
    inputs = [x.name, g.weights(x)]
    return g.add("Where", [mask, *(inputs if g.chance(0.5) else inputs[::-1])], x.shape, dtype=x.dtype)


# --- Steps: shapes -------------------------------------------------------------------------------------


def transpose(g: Growth, x: Value) -> Value:
    order = [*range(g.first), *(int(i) for i in g.first + g.random.permutation(x.rank - g.first))]
    shape = tuple(x.shape[i] for i in order)
    return g.add("Transpose", [x.name], shape, dtype=x.dtype, perm=order)


def reshape(g: Growth, x: Value) -> Value | None:
    if x.rank < 2:
        return None
    start = g.first
    dims = list(x.shape[start:])
    i = int(g.random.integers(len(dims)))
    factor = next((n for n in (2, 3) if dims[i] % n == 0), 1)
    merged = [*dims[:i], int(np.prod(dims[i : i + 2])), *dims[i + 2 :]]
    split = [*dims[:i], factor, dims[i] // factor, *dims[i + 1 :]]
    after = g.pick((merged, split, [int(np.prod(dims))], [*dims, 1]))
    if len(after) + start > 5:
        return None
    sizes = [0] * start + after
    if g.chance(0.3):
        sizes[-1] = -1
    return g.add("Reshape", [x.name, g.integers(*sizes)], (*x.shape[:start], *after), dtype=x.dtype)


def flatten(g: Growth, x: Value) -> Value | None:
    if x.rank < 2:
        return None
    axis = 1 if g.first else g.pick((1, 1, 2))
    shape = (int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))
    return g.add("Flatten", [x.name], shape, dtype=x.dtype, axis=axis)


def squeeze(g: Growth, x: Value) -> Value | None:
    ones = [i for i in range(g.first, x.rank) if x.shape[i] == 1]
    if not ones or x.rank < 2:
        return None
    axis = g.pick(ones)
    shape = (*x.shape[:axis], *x.shape[axis + 1 :])
    return _with_axes(g, "Squeeze", x, [axis], shape, since=13)


def unsqueeze(g: Growth, x: Value) -> Value | None:
    if x.rank > 4:
        return None
    axis = int(g.random.integers(g.first, x.rank + 1))
    return _with_axes(g, "Unsqueeze", x, [axis], (*x.shape[:axis], 1, *x.shape[axis:]), since=13)


def reduction(g: Growth, x: Value) -> Value | None:
    if x.rank <= g.first:
        return None
    op = g.pick(("ReduceMean", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"))
    free = range(g.first, x.rank)
    axes = sorted(
        int(a) for a in g.random.choice(free, int(g.random.integers(1, len(free) + 1)), replace=False)
    )
    keep = g.pick((0, 1))
    if not keep and x.rank - len(axes) < 1:
        return None
    shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape) if keep or i not in axes)
    return _with_axes(g, op, x, axes, shape, since=13 if op == "ReduceSum" else 18, keepdims=keep)


def _with_axes(
    g: Growth, op: str, x: Value, axes: list[int], shape: tuple[int, ...], *, since: int, **attrs: Any
) -> Value:
    """A node whose axes are an input since an opset, and an attribute before."""
    if g.opset >= since:
        return g.add(op, [x.name, g.integers(*axes)], shape, dtype=x.dtype, **attrs)
    return g.add(op, [x.name], shape, dtype=x.dtype, axes=axes, **attrs)


def expand(g: Growth, x: Value) -> Value | None:
    if g.opset < 8:
        return None
    shape = [1] * g.first + [g.pick((1, 2, 3)) if n == 1 else g.pick((1, n)) for n in x.shape[g.first :]]
    after = tuple(max(a, b) for a, b in zip(shape, x.shape, strict=True))
    return g.add("Expand", [x.name, g.integers(*shape)], after, dtype=x.dtype)


def tile(g: Growth, x: Value) -> Value:
    repeats = [1] * g.first + [g.pick((1, 1, 2)) for _ in x.shape[g.first :]]
    shape = tuple(n * r for n, r in zip(x.shape, repeats, strict=True))
    return g.add("Tile", [x.name, g.integers(*repeats)], shape, dtype=x.dtype)


def pad(g: Growth, x: Value) -> Value:
    before, after = ([0] * g.first + [g.pick((0, 0, 1)) for _ in x.shape[g.first :]] for _ in range(2))
    shape = tuple(n + a + b for n, a, b in zip(x.shape, before, after, strict=True))
    mode = g.pick(("constant", "constant", "edge"))
    if g.opset < 11:
        return g.add("Pad", [x.name], shape, dtype=x.dtype, pads=before + after, mode=mode)
    inputs = [x.name, g.integers(*before, *after)]
    inputs += [g.weights(x)] if mode == "constant" and g.chance(0.3) else []
    return g.add("Pad", inputs, shape, dtype=x.dtype, mode=mode)


# --- Steps: selections ---------------------------------------------------------------------------------


def concat(g: Growth, x: Value) -> Value:
    axis = g.axis(x)
    others = [
        v
        for v in g.values
        if v.dtype == x.dtype and v.rank == x.rank
        if all(a == b for i, (a, b) in enumerate(zip(v.shape, x.shape, strict=True)) if i != axis)
    ]
    parts = [x, *(g.pick(others) for _ in range(g.pick((0, 1, 1, 2))) if others)]
    names = [p.name for p in parts]
    total = sum(p.shape[axis] for p in parts)
    if not g.first and g.chance(0.2):
        names.append(g.weights(x, *x.shape))
        total += x.shape[axis]
    shape = (*x.shape[:axis], total, *x.shape[axis + 1 :])
    return g.add("Concat", names, shape, dtype=x.dtype, axis=axis)


def split(g: Growth, x: Value) -> list[Value] | None:
    axis = g.axis(x)
    if x.shape[axis] < 2:
        return None
    first = int(g.random.integers(1, x.shape[axis]))
    sizes = [first, x.shape[axis] - first]
    shapes = [(*x.shape[:axis], n, *x.shape[axis + 1 :]) for n in sizes]
    if g.opset >= 13:
        return g.add_several("Split", [x.name, g.integers(*sizes)], shapes, dtype=x.dtype, axis=axis)
    return g.add_several("Split", [x.name], shapes, dtype=x.dtype, axis=axis, split=sizes)


def slice_(g: Growth, x: Value) -> Value:
    axis = g.axis(x)
    start = int(g.random.integers(x.shape[axis]))
    end = int(g.random.integers(start + 1, x.shape[axis] + 1))
    step = 1 if g.opset < 10 else g.pick((1, 1, 2))
    length = -(-(end - start) // step)
    shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
    if g.opset < 10:
        return g.add("Slice", [x.name], shape, dtype=x.dtype, starts=[start], ends=[end], axes=[axis])
    bounds = [g.integers(start), g.integers(end), g.integers(axis), g.integers(step)]
    return g.add("Slice", [x.name, *bounds], shape, dtype=x.dtype)


def gather(g: Growth, x: Value) -> Value:
    axis = g.axis(x)
    chosen = g.random.integers(0, x.shape[axis], g.pick((1, 2, 4)))
    shape = (*x.shape[:axis], len(chosen), *x.shape[axis + 1 :])
    return g.add("Gather", [x.name, g.integers(*(int(i) for i in chosen))], shape, dtype=x.dtype, axis=axis)


# --- Steps: space --------------------------------------------------------------------------------------


def pool(g: Growth, x: Value) -> Value | None:
    if x.rank < 3 or min(x.shape[2:]) < 2:
        return None
    sides = len(x.shape) - 2
    op, padded, stride = g.pick(("MaxPool", "AveragePool")), g.chance(0.3), g.pick((1, 2))
    result = [(n + 2 * padded - 2) // stride + 1 for n in x.shape[2:]]
    attrs: dict[str, Any] = {"pads": [1] * 2 * sides} if padded else {}
    attrs |= {"count_include_pad": 1} if op == "AveragePool" and g.chance(0.3) else {}
    return g.add(
        op,
        [x.name],
        (*x.shape[:2], *result),
        dtype=x.dtype,
        kernel_shape=[2] * sides,
        strides=[stride] * sides,
        **attrs,
    )


def global_pool(g: Growth, x: Value) -> Value | None:
    if x.rank < 3:
        return None
    op = g.pick(("GlobalAveragePool", "GlobalMaxPool"))
    return g.add(op, [x.name], (*x.shape[:2], *[1] * (x.rank - 2)), dtype=x.dtype)


def resize(g: Growth, x: Value) -> Value | None:
    if x.rank != 4 or g.opset == 10:
        return None
    shape = (*x.shape[:2], *(2 * n for n in x.shape[2:]))
    mode = g.pick(("nearest", "linear"))
    scales = np.array([1, 1, 2, 2], np.float32)
    if g.opset < 9:
        return g.add("Upsample", [x.name], shape, dtype=x.dtype, mode=mode, scales=[1.0, 1.0, 2.0, 2.0])
    if g.opset == 9:
        return g.add("Upsample", [x.name, g.constant(scales)], shape, dtype=x.dtype, mode=mode)
    return g.add(
        "Resize",
        [x.name, g.constant(np.zeros(0, np.float32)), g.constant(scales)],
        shape,
        dtype=x.dtype,
        mode=mode,
    )


def depth_and_space(g: Growth, x: Value) -> Value | None:
    if x.rank != 4:
        return None
    n, c, h, w = x.shape
    if c % 4 == 0 and g.chance(0.5):
        attrs = {"mode": "CRD"} if g.opset >= 11 and g.chance(0.5) else {}
        return g.add("DepthToSpace", [x.name], (n, c // 4, 2 * h, 2 * w), dtype=x.dtype, blocksize=2, **attrs)
    if h % 2 == w % 2 == 0:
        return g.add("SpaceToDepth", [x.name], (n, 4 * c, h // 2, w // 2), dtype=x.dtype, blocksize=2)
    return None


# --- Steps: graphs within graphs -----------------------------------------------------------------------


def condition(g: Growth, x: Value) -> Value:
    """If: two inner graphs that read x, which is outside of them."""
    graphs = []
    flag = g.model.condition()
    for name in ("then", "else"):
        growth, last = g.inner(x, g.pick((1, 2, 3)), KEEPING)
        info = helper.make_tensor_value_info(last.name, last.dtype, [None] * last.rank)
        graphs.append(helper.make_graph(growth.nodes, name, [], [info], growth.initializers))
    return g.add("If", [flag], x.shape, dtype=x.dtype, then_branch=graphs[0], else_branch=graphs[1])


def call(g: Growth, x: Value) -> Value:
    """A local function, perhaps one that is called already; its weights are inside it."""
    m = g.model
    fitting = [f for f, v in m.functions if (v.shape, v.dtype) == (x.shape, x.dtype)]
    if fitting and g.chance(0.6):
        name = g.pick(fitting).name
    else:
        name = m.fresh("block")
        inside = Value("x", x.shape, x.dtype)
        growth, last = g.inner(inside, g.pick((1, 2, 3)), KEEPING, initializers=False)
        imports = [helper.make_opsetid("", g.opset), helper.make_opsetid("own", 1)]
        function = helper.make_function("own", name, ["x"], [last.name], growth.nodes, imports)
        m.functions.append((function, x))
    return g.add(name, [x.name], x.shape, dtype=x.dtype, domain="own")


def unknown(g: Growth, x: Value) -> Value | None:
    """An operator of somebody else's."""
    return g.add("Mystery", [x.name], x.shape, dtype=x.dtype, domain="own") if g.chance(0.1) else None


KEEPING: tuple[Step, ...] = (
    *(arithmetic, arithmetic, batch_normalization, batch_normalization),
    *(activation, clip, join, prelu, instance_normalization),
)
"""Leave shape and type alone, and read nothing but x: they may be in a function."""
WEIGHTED: tuple[Step, ...] = (convolution, convolution, transposed_convolution, gemm, matmul)
STEPS: tuple[Step, ...] = (
    *(batch_normalization,) * 6,
    *(arithmetic,) * 6,
    *(convolution,) * 6,
    *(activation,) * 3,
    *(join,) * 3,
    *(concat,) * 2,
    *(transposed_convolution, gemm, gemm, matmul, matmul, instance_normalization, layer_normalization, prelu),
    *(clip, dropout, cast, where),
    *(transpose, reshape, flatten, squeeze, unsqueeze, reduction, expand, tile, pad),
    *(split, slice_, gather, pool, pool, global_pool, resize, depth_and_space),
    *(condition, call, unknown),
)
BFLOAT16 = {
    *(arithmetic, batch_normalization, activation, join, gemm, matmul, cast, where),
    *(
        transpose,
        reshape,
        flatten,
        squeeze,
        unsqueeze,
        reduction,
        expand,
        tile,
        concat,
        split,
        slice_,
        gather,
    ),
}
"""May be used with bfloat16 since opset 16; the others since 22."""
