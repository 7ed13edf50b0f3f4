"""The float64 evaluator against torch in double."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper

from bnfold.evaluate import evaluate

torch: Any = pytest.importorskip("torch")
F: Any = torch.nn.functional

Array = npt.NDArray[Any]

# Both sum up to 2,000 products in float64, each in an order of its own: as many roundings at most, of what
# the largest results are made of.
ROUNDING = 2_000 * 2.0**-53


def onnx_result(op_type: str, inputs: list[Any], attributes: dict[str, Any], opset: int = 20) -> Array:
    """The first output of one node; inputs that are None are absent."""
    feeds = {f"i{k}": np.asarray(value) for k, value in enumerate(inputs) if value is not None}
    names = ["" if value is None else f"i{k}" for k, value in enumerate(inputs)]
    graph = helper.make_graph(
        [helper.make_node(op_type, names, ["y"], **attributes)],
        "g",
        [onnx.ValueInfoProto(name=name) for name in feeds],
        [onnx.ValueInfoProto(name="y")],
    )
    return evaluate(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), feeds)["y"]


def assert_alike(ours: Array, theirs: Any) -> None:
    expected = theirs.numpy()
    assert ours.shape == expected.shape
    assert expected.dtype == ours.dtype == np.float64
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=ROUNDING * scale)


def draw(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def tensors(*arrays: Any) -> list[Any]:
    return [None if array is None else torch.from_numpy(array) for array in arrays]


# X, output channels, kernel, and stride, padding, dilation, groups, as torch has them
CONVOLUTIONS: list[tuple[tuple[int, ...], int, tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 20), 4, (5,), {}),
    ((2, 4, 20), 6, (3,), {"stride": (3,), "padding": (2,), "dilation": (2,), "groups": 2}),
    ((2, 6, 21), 6, (3,), {"stride": (2,), "padding": (1,), "groups": 6}),
    ((1, 8, 9, 7), 5, (1, 1), {}),
    ((2, 8, 9, 7), 5, (1, 1), {"stride": (2, 3)}),
    ((1, 8, 9, 7), 6, (1, 1), {"padding": (1, 2), "groups": 2}),
    ((2, 3, 17, 19), 8, (3, 3), {"padding": (1, 1)}),
    ((1, 3, 33, 30), 8, (7, 7), {"stride": (2, 2), "padding": (3, 3)}),
    ((1, 16, 90, 70), 24, (3, 3), {"padding": (1, 1)}),  # more than one block of windows
    ((1, 600, 4, 300), 4, (1, 3), {}),  # blocks that divide rows
    ((2, 4, 17, 19), 8, (3, 2), {"stride": (2, 1), "dilation": (2, 3), "padding": (2, 0)}),
    ((2, 8, 12, 11), 12, (3, 3), {"padding": (1, 1), "groups": 4}),
    ((1, 8, 12, 11), 16, (3, 3), {"padding": (1, 1), "groups": 8}),  # depthwise with a multiplier
    ((2, 8, 12, 11), 8, (3, 3), {"padding": (1, 1), "groups": 8}),
    ((2, 8, 23, 21), 8, (5, 5), {"stride": (2, 2), "padding": (2, 2), "groups": 8}),
    ((1, 8, 23, 21), 8, (3, 3), {"stride": (3, 2), "dilation": (2, 3), "padding": (2, 3), "groups": 8}),
    ((1, 3, 400, 300), 3, (3, 3), {"padding": (1, 1), "groups": 3}),  # blocks that divide a channel
    ((1, 2, 7, 8, 9), 4, (3, 2, 3), {"stride": (1, 2, 2), "padding": (1, 0, 1)}),
    ((1, 4, 7, 8, 9), 4, (3, 3, 3), {"padding": (1, 1, 1), "groups": 4}),
]


def spread(options: dict[str, Any]) -> dict[str, Any]:
    """The attributes of ONNX for the options of torch."""
    names = {
        "stride": "strides",
        "dilation": "dilations",
        "groups": "group",
        "output_padding": "output_padding",
    }
    attributes = {names[key]: value for key, value in options.items() if key != "padding"}
    if "padding" in options:
        attributes["pads"] = [*options["padding"], *options["padding"]]
    return attributes


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape, outputs, kernel, options", CONVOLUTIONS)
def test_conv(
    shape: tuple[int, ...], outputs: int, kernel: tuple[int, ...], options: dict[str, Any], biased: bool
) -> None:
    x, w = draw(*shape), draw(outputs, shape[1] // options.get("groups", 1), *kernel)
    b = draw(outputs) if biased else None
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
    assert_alike(onnx_result("Conv", [x, w, b], spread(options)), convolve(*tensors(x, w, b), **options))


TRANSPOSED: list[tuple[tuple[int, ...], int, tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 10), 4, (4,), {}),
    ((2, 4, 10), 6, (3,), {"stride": (3,), "padding": (1,), "output_padding": (2,), "groups": 2}),
    ((1, 8, 6, 7), 4, (2, 2), {"stride": (2, 2)}),
    ((2, 8, 6, 7), 4, (3, 3), {"stride": (2, 2), "padding": (1, 1), "output_padding": (1, 1)}),
    ((1, 8, 6, 7), 4, (4, 3), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 4}),
    ((2, 6, 6, 7), 6, (3, 3), {"stride": (2, 2), "padding": (1, 1), "groups": 6}),
    ((2, 6, 6, 7), 4, (3, 3), {"dilation": (3, 2), "padding": (2, 4), "groups": 2}),
    ((1, 2, 4, 5, 6), 3, (3, 2, 3), {"stride": (2, 1, 2), "padding": (1, 0, 1), "output_padding": (1, 0, 1)}),
]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape, outputs, kernel, options", TRANSPOSED)
def test_conv_transpose(
    shape: tuple[int, ...], outputs: int, kernel: tuple[int, ...], options: dict[str, Any], biased: bool
) -> None:
    x, w = draw(*shape), draw(shape[1], outputs // options.get("groups", 1), *kernel)
    b = draw(outputs) if biased else None
    names = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
    theirs = names[len(kernel)](*tensors(x, w, b), **options)
    assert_alike(onnx_result("ConvTranspose", [x, w, b], spread(options)), theirs)


# Operator, shapes of the inputs, attributes, and the same in torch
OPERATORS: list[tuple[str, list[tuple[int, ...]], dict[str, Any], Callable[..., Any]]] = [
    ("MatMul", [(2, 1, 5, 7), (3, 7, 4)], {}, lambda a, b: a @ b),
    ("Gemm", [(5, 7), (4, 7), (4,)], {"transB": 1}, lambda a, w, b: F.linear(a, w, b)),
    (
        "InstanceNormalization",
        [(2, 3, 5, 4), (3,), (3,)],
        {"epsilon": 0.5},
        lambda x, w, b: F.instance_norm(x, None, None, w, b, eps=0.5),
    ),
    (
        "LayerNormalization",
        [(2, 3, 5), (3, 5), (3, 5)],
        {"axis": 1, "epsilon": 0.5},
        lambda x, w, b: F.layer_norm(x, (3, 5), w, b, eps=0.5),
    ),
    ("Softmax", [(2, 3, 5)], {"axis": 1}, lambda x: F.softmax(x, 1)),
    ("LogSoftmax", [(2, 3, 5)], {"axis": 2}, lambda x: F.log_softmax(x, 2)),
    ("Sigmoid", [(2, 30)], {}, torch.sigmoid),
    ("HardSwish", [(2, 30)], {}, F.hardswish),
    ("Erf", [(2, 30)], {}, torch.erf),
    ("Gelu", [(2, 30)], {}, F.gelu),
    ("Gelu", [(2, 30)], {"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh")),
    ("Elu", [(2, 30)], {"alpha": 0.5}, lambda x: F.elu(x, 0.5)),
    ("Softplus", [(2, 30)], {}, F.softplus),
    ("Mish", [(2, 30)], {}, F.mish),
    ("PRelu", [(2, 3, 5), (3, 1)], {}, lambda x, s: F.prelu(x, s.reshape(3))),
    ("MaxPool", [(2, 3, 11)], {"kernel_shape": [3], "strides": [2]}, lambda x: F.max_pool1d(x, 3, 2)),
    (
        "MaxPool",
        [(2, 3, 11, 12)],
        {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 1, 1, 1]},
        lambda x: F.max_pool2d(x, (3, 2), (2, 3), (1, 1)),
    ),
    (
        "MaxPool",
        [(2, 3, 11, 12)],
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "dilations": [2, 1]},
        lambda x: F.max_pool2d(x, 3, 2, 0, (2, 1), True),
    ),
    (
        "MaxPool",
        [(1, 2, 6, 7, 8)],
        {"kernel_shape": [2, 3, 2], "pads": [0, 1, 1, 0, 1, 1]},
        lambda x: F.max_pool3d(x, (2, 3, 2), 1, (0, 1, 1)),
    ),
    ("AveragePool", [(2, 3, 11)], {"kernel_shape": [4], "strides": [3]}, lambda x: F.avg_pool1d(x, 4, 3)),
    (
        "AveragePool",
        [(2, 3, 11, 12)],
        {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 1, 1, 1]},
        lambda x: F.avg_pool2d(x, (3, 2), (2, 1), 1, count_include_pad=False),
    ),
    (
        "AveragePool",
        [(2, 3, 11, 12)],
        {
            "kernel_shape": [3, 3],
            "strides": [2, 2],
            "pads": [1, 1, 1, 1],
            "ceil_mode": 1,
            "count_include_pad": 1,
        },
        lambda x: F.avg_pool2d(x, 3, 2, 1, True),
    ),
    ("AveragePool", [(1, 2, 6, 7, 8)], {"kernel_shape": [2, 3, 2]}, lambda x: F.avg_pool3d(x, (2, 3, 2), 1)),
    ("GlobalAveragePool", [(2, 3, 5, 4)], {}, lambda x: F.adaptive_avg_pool2d(x, 1)),
    ("GlobalMaxPool", [(2, 3, 5, 4)], {}, lambda x: F.adaptive_max_pool2d(x, 1)),
    ("LpPool", [(2, 3, 11)], {"kernel_shape": [3], "p": 3}, lambda x: F.lp_pool1d(x.abs(), 3, 3, 1)),
    ("GlobalLpPool", [(2, 3, 11)], {"p": 3}, lambda x: torch.linalg.vector_norm(x, 3, dim=2, keepdim=True)),
    (
        "MeanVarianceNormalization",
        [(4, 3, 5, 4)],
        {},
        lambda x: (x - x.mean((0, 2, 3), True)) / (x.std((0, 2, 3), correction=0, keepdim=True) + 1e-9),
    ),
]


@pytest.mark.parametrize("op_type, shapes, attributes, theirs", OPERATORS)
def test_operator(
    op_type: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], theirs: Callable[..., Any]
) -> None:
    inputs = [draw(*shape, seed=k) for k, shape in enumerate(shapes)]
    assert_alike(onnx_result(op_type, inputs, attributes), theirs(*tensors(*inputs)))


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 50), (2, 3, 70, 90), (1, 3, 4, 5, 6)])
@pytest.mark.parametrize("opset", [7, 9, 15])
def test_batch_normalization(shape: tuple[int, ...], opset: int) -> None:
    x, s, b, m = draw(*shape), draw(3), draw(3, seed=1), draw(3, seed=2)
    v = np.abs(draw(3, seed=3)) + 0.1
    theirs = F.batch_norm(*tensors(x, m, v, s, b), eps=0.5)
    assert_alike(onnx_result("BatchNormalization", [x, s, b, m, v], {"epsilon": 0.5}, opset), theirs)


INTERPOLATIONS: list[tuple[str, str, dict[str, Any]]] = [
    ("linear", "half_pixel", {"mode": "bilinear"}),
    ("linear", "align_corners", {"mode": "bilinear", "align_corners": True}),
    ("cubic", "half_pixel", {"mode": "bicubic"}),
    ("cubic", "align_corners", {"mode": "bicubic", "align_corners": True}),
    ("nearest", "asymmetric", {"mode": "nearest"}),
    ("nearest", "half_pixel", {"mode": "nearest-exact"}),
]


@pytest.mark.parametrize("sizes", [(22, 21), (7, 40), (5, 4)])
@pytest.mark.parametrize("mode, coordinates, options", INTERPOLATIONS)
def test_resize(mode: str, coordinates: str, options: dict[str, Any], sizes: tuple[int, int]) -> None:
    x = draw(2, 3, 11, 14)
    attributes = {
        "mode": mode,
        "coordinate_transformation_mode": coordinates,
        "nearest_mode": "floor" if coordinates == "asymmetric" else "round_prefer_ceil",
    }
    ours = onnx_result("Resize", [x, None, None, np.array([2, 3, *sizes])], attributes)
    assert_alike(ours, F.interpolate(*tensors(x), size=sizes, **options))


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resize_with_antialiasing(mode: str) -> None:
    x = draw(2, 3, 40, 30)
    a = {"cubic_coeff_a": -0.5} if mode == "bicubic" else {}  # torch's own when it antialiases
    attributes = {"mode": mode.removeprefix("bi"), "antialias": 1, "exclude_outside": 1, **a}
    ours = onnx_result("Resize", [x, None, None, np.array([2, 3, 13, 11])], attributes)
    assert_alike(ours, F.interpolate(*tensors(x), size=(13, 11), mode=mode, antialias=True))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_grid_sample(mode: str, padding: str, aligned: bool) -> None:
    x, grid = draw(2, 3, 6, 7), draw(2, 5, 4, 2)
    attributes = {
        "mode": {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode),
        "padding_mode": padding,
        "align_corners": int(aligned),
    }
    theirs = F.grid_sample(*tensors(x, grid), mode, padding, aligned)
    assert_alike(onnx_result("GridSample", [x, grid], attributes), theirs)


@pytest.mark.parametrize("aligned", [False, True])
def test_affine_grid(aligned: bool) -> None:
    theta, size = draw(2, 2, 3), [2, 3, 5, 4]
    ours = onnx_result("AffineGrid", [theta, np.array(size)], {"align_corners": int(aligned)})
    assert_alike(ours, F.affine_grid(*tensors(theta), size, aligned))


def reordered(blocks: Any, order: list[int]) -> Array:
    """Torch's stack of gates in the order of ONNX."""
    parts = np.split(blocks.detach().numpy(), len(order))
    return np.concatenate([parts[i] for i in order])


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("op_type, order", [("RNN", [0]), ("GRU", [1, 0, 2]), ("LSTM", [0, 3, 1, 2])])
def test_recurrent_layers(op_type: str, order: list[int], both: bool) -> None:
    torch.manual_seed(0)
    layer = getattr(torch.nn, op_type)(5, 4, bidirectional=both).double()
    x = draw(6, 2, 5)
    suffixes = ["l0", "l0_reverse"] if both else ["l0"]
    w, r = (
        np.stack([reordered(getattr(layer, f"weight_{kind}_{s}"), order) for s in suffixes])
        for kind in ("ih", "hh")
    )
    b = np.stack(
        [
            np.concatenate([reordered(getattr(layer, f"bias_{k}_{s}"), order) for k in ("ih", "hh")])
            for s in suffixes
        ]
    )
    attributes: dict[str, Any] = {"hidden_size": 4, "direction": "bidirectional" if both else "forward"}
    if op_type == "GRU":
        attributes["linear_before_reset"] = 1
    if op_type == "RNN":
        attributes["activations"] = ["Tanh"] * len(suffixes)
    y = onnx_result(op_type, [x, w, r, b], attributes)
    with torch.no_grad():
        theirs, _ = layer(*tensors(x))
    assert_alike(np.concatenate([y[:, d] for d in range(y.shape[1])], axis=-1), theirs)
