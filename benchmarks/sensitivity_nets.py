"""Small networks as training would leave them: every operator that a fold meets, statistics that are true.

A net is run while it is built: each operator is applied at once to a batch of N(0, 1) samples, so a
BatchNormalization knows mean and variance of what it will see, and its output is about N(bias, scale²).
Weights, and all else that training decides, come from the seed; the architecture does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import DTypeLike, NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]

SAMPLES = 16


class _Net:
    """A net in the making. Each method appends one operator or a few, and returns the output's name.

    Args:
        seed: Decides every number.
        shape: Of the input; what is no integer is symbolic.
        opset: Version of ai.onnx.
        dtype: Of data and weights.
        norm_dtype: Of the parameters of a BatchNormalization, if not the same.
        size: What the samples have for a symbolic size other than the first, the batch.
    """

    def __init__(
        self,
        seed: int,
        shape: Sequence[int | str],
        *,
        opset: int = 17,
        dtype: DTypeLike = np.float32,
        norm_dtype: DTypeLike | None = None,
        size: int = 12,
    ) -> None:
        self.random = np.random.default_rng(seed)
        self.opset = opset
        self.dtype = np.dtype(dtype)
        self.norm_dtype = np.dtype(norm_dtype or dtype)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.shape = [*shape]
        self.bias = 0.0  # of BatchNormalizations, on the average; below 0, channels fall silent
        sizes = [SAMPLES, *(d if isinstance(d, int) else size for d in shape[1:])]
        # The samples flow in float32, whatever the type of the net; its constants as they are stored.
        self.values: dict[str, Array] = {"x": self.random.standard_normal(sizes).astype(np.float32)}

    # Building blocks

    def constant(self, name: str, numbers: Any, dtype: DTypeLike | None = None) -> str:
        stored = np.asarray(numbers).astype(dtype or self.dtype)
        self.initializers.append(numpy_helper.from_array(stored, name))
        self.values[name] = stored.astype(np.float32) if stored.dtype.kind == "f" else stored
        return name

    def node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op_type.lower()}{len(self.nodes)}"
        node = helper.make_node(op_type, inputs, [f"{name}.out"], name, **attributes)
        self.nodes.append(node)
        self.values[node.output[0]] = _run(node, [self.values[i] for i in inputs], self.opset)
        return str(node.output[0])

    def channels(self, x: str) -> int:
        return int(self.values[x].shape[1])

    def weight(self, name: str, shape: Sequence[int], fan_in: int) -> str:
        """He's weights, with the spread between layers that weight decay leaves."""
        std = (2.0 / fan_in) ** 0.5 * np.exp(self.random.uniform(-1.5, 0.3))
        return self.constant(name, std * self.random.standard_normal(shape))

    def conv(
        self, x: str, channels: int, k: int = 3, *, stride: int = 1, group: int = 1, bias: bool = False
    ) -> str:
        """A convolution that keeps the size at stride 1, over all spatial axes of its input."""
        inputs, axes = self.channels(x) // group, self.values[x].ndim - 2
        name = f"conv{len(self.nodes)}"
        operands = [x, self.weight(f"{name}.weight", (channels, inputs, *[k] * axes), inputs * k**axes)]
        if bias:
            operands.append(self.constant(f"{name}.bias", self.random.normal(0, 0.3, channels)))
        spatial = {"strides": [stride] * axes, "pads": [k // 2] * 2 * axes}
        return self.node("Conv", *operands, kernel_shape=[k] * axes, group=group, **spatial)

    def upconv(self, x: str, channels: int, k: int, *, group: int = 1, bias: bool = False) -> str:
        """A transposed convolution that doubles the size."""
        inputs = self.channels(x)
        name = f"convtranspose{len(self.nodes)}"
        fan_in = inputs // group * k * k // 4
        operands = [x, self.weight(f"{name}.weight", (inputs, channels // group, k, k), fan_in)]
        if bias:
            operands.append(self.constant(f"{name}.bias", self.random.normal(0, 0.3, channels)))
        return self.node("ConvTranspose", *operands, strides=[2, 2], pads=[k // 2 - 1] * 4, group=group)

    def gemm(self, x: str, features: int) -> str:
        """A dense layer with a bias, as torch exports it."""
        inputs, name = self.channels(x), f"gemm{len(self.nodes)}"
        weight = self.weight(f"{name}.weight", (features, inputs), inputs)
        bias = self.constant(f"{name}.bias", self.random.normal(0, 0.3, features))
        return self.node("Gemm", x, weight, bias, transB=1)

    def matmul(self, x: str, features: int, *, bias: bool = False) -> str:
        """A dense layer along the last axis."""
        inputs, name = self.values[x].shape[-1], f"matmul{len(self.nodes)}"
        y = self.node("MatMul", x, self.weight(f"{name}.weight", (inputs, features), inputs))
        if not bias:
            return y
        return self.node("Add", y, self.constant(f"{name}.bias", self.random.normal(0, 0.3, features)))

    def norm(self, x: str) -> str:
        """A BatchNormalization with the statistics of the samples."""
        data = np.moveaxis(self.values[x].astype(np.float64), 1, 0).reshape(self.channels(x), -1)
        parameters = {
            "scale": self.random.uniform(0.5, 1.5, len(data)),
            "bias": self.random.normal(self.bias, 0.2 - 0.5 * self.bias, len(data)),
            "mean": data.mean(axis=1),
            "var": data.var(axis=1),
        }
        name = f"batchnormalization{len(self.nodes)}"
        constants = [
            self.constant(f"{name}.{key}", numbers, self.norm_dtype) for key, numbers in parameters.items()
        ]
        return self.node("BatchNormalization", x, *constants, epsilon=1e-5)

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def unit(self, x: str, channels: int, k: int = 3, **options: Any) -> str:
        """Convolution, normalization, activation."""
        return self.relu(self.norm(self.conv(x, channels, k, **options)))

    def logits(self, x: str, classes: int = 10) -> str:
        """Average over space, then a dense layer."""
        return self.gemm(self.node("Flatten", self.node("GlobalAveragePool", x)), classes)

    def model(self, output: str, shape: Sequence[int | str]) -> onnx.ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", kind, self.shape)],
            [helper.make_tensor_value_info(output, kind, shape)],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        version = max(8, helper.find_min_ir_version_for(opsets))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=version)
        onnx.checker.check_model(model, full_check=True)
        return model


def _run(node: onnx.NodeProto, inputs: list[Array], opset: int) -> Array:
    """One operator in float32."""
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(node.input, inputs, strict=True)
    ]
    output = helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "node", infos, [output])
    opsets = [helper.make_opsetid("", opset)]
    alone = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        alone.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    result: Array = session.run(None, dict(zip(node.input, inputs, strict=True)))[0]
    return result


# Architectures


def _basic_block(net: _Net, x: str, channels: int, stride: int) -> str:
    y = net.unit(x, channels, stride=stride)
    y = net.norm(net.conv(y, channels))
    if stride != 1 or net.channels(x) != channels:
        x = net.norm(net.conv(x, channels, 1, stride=stride))
    return net.relu(net.node("Add", x, y))


def _residual(net: _Net) -> onnx.ModelProto:
    """ResNet-20 for small images (He et al. 2015), half as wide."""
    x = net.unit("x", 8)
    for channels in (8, 16, 32):
        for block in range(3):
            x = _basic_block(net, x, channels, 2 if channels > 8 and not block else 1)
    return net.model(net.logits(x), ["N", 10])


def residual(seed: int) -> onnx.ModelProto:
    return _residual(_Net(seed, ["N", 3, 12, 12]))


def residual_float16(seed: int) -> onnx.ModelProto:
    return _residual(_Net(seed, ["N", 3, 12, 12], dtype=np.float16))


def _inverted_residual(net: _Net, x: str, channels: int, stride: int) -> str:
    """Expand, convolve each channel by itself, project (Sandler et al. 2018)."""
    wide = 4 * net.channels(x)
    y = _relu6(net, net.norm(net.conv(x, wide, 1)))
    y = _relu6(net, net.norm(net.conv(y, wide, 3, stride=stride, group=wide)))
    y = net.norm(net.conv(y, channels, 1))
    return net.node("Add", x, y) if stride == 1 and net.channels(x) == channels else y


def _relu6(net: _Net, x: str) -> str:
    if "zero" not in net.values:
        net.constant("zero", 0.0)
        net.constant("six", 6.0)
    return net.node("Clip", x, "zero", "six")


def _depthwise(net: _Net) -> onnx.ModelProto:
    x = _relu6(net, net.norm(net.conv("x", 8, stride=2)))
    for channels, stride in ((8, 1), (12, 2), (12, 1), (16, 2), (16, 1)):
        x = _inverted_residual(net, x, channels, stride)
    return net.model(net.logits(_relu6(net, net.norm(net.conv(x, 48, 1)))), ["N", 10])


def depthwise(seed: int) -> onnx.ModelProto:
    return _depthwise(_Net(seed, ["N", 3, 16, 16], opset=13))


def depthwise_float16(seed: int) -> onnx.ModelProto:
    return _depthwise(_Net(seed, ["N", 3, 16, 16], opset=15, dtype=np.float16))


def sparse(seed: int) -> onnx.ModelProto:
    """Wide inverted residuals for one image, most of whose channels are silent most of the time.

    What such a channel lets through comes from a handful of elements.
    """
    net = _Net(seed, [1, 3, 16, 16])
    net.bias = -1.5
    x = _relu6(net, net.norm(net.conv("x", 16, stride=2)))
    for channels, stride in ((24, 1), (24, 1), (48, 2), (48, 1), (48, 1)):
        x = _inverted_residual(net, x, channels, stride)
    return net.model(net.logits(_relu6(net, net.norm(net.conv(x, 512, 1)))), [1, 10])


def unet(seed: int) -> onnx.ModelProto:
    """Down, up again by transposed convolutions, with what was there before beside it."""
    net = _Net(seed, ["N", 3, 16, 16], opset=18)
    top = net.unit(net.unit("x", 8), 8)
    middle = net.unit(net.unit(net.node("MaxPool", top, kernel_shape=[2, 2], strides=[2, 2]), 16), 16)
    x = net.unit(net.node("MaxPool", middle, kernel_shape=[2, 2], strides=[2, 2]), 32)
    x = net.relu(net.norm(net.upconv(x, 16, 4, bias=True)))
    x = net.unit(net.node("Concat", middle, x, axis=1), 16)
    x = net.relu(net.norm(net.upconv(x, 8, 2, group=2)))
    x = net.unit(net.node("Concat", top, x, axis=1), 8)
    x = net.relu(net.norm(net.upconv(x, 8, 4)))
    return net.model(net.conv(x, 5, 1, bias=True), ["N", 5, 32, 32])


def dense_blocks(seed: int) -> onnx.ModelProto:
    """Every layer reads all before it (Huang et al. 2016), normalization first."""
    net = _Net(seed, ["N", 3, 12, 12], opset=18)
    x = net.unit("x", 12)
    for block in range(2):
        for _ in range(4):
            y = net.conv(net.relu(net.norm(x)), 16, 1)
            y = net.conv(net.relu(net.norm(y)), 6)
            x = net.node("Concat", x, y, axis=1)
        if not block:
            x = net.conv(net.relu(net.norm(x)), 16, 1)
            x = net.node("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    return net.model(net.logits(net.relu(net.norm(x))), ["N", 10])


def mlp(seed: int) -> onnx.ModelProto:
    """Dense layers in the three spellings that exporters have for them."""
    net = _Net(seed, ["N", 20], opset=13)
    x = net.relu(net.norm(net.gemm("x", 48)))
    x = net.relu(net.norm(net.matmul(x, 48)))
    x = net.relu(net.norm(net.matmul(x, 32, bias=True)))
    x = net.relu(net.norm(net.gemm(x, 32)))
    return net.model(net.gemm(x, 10), ["N", 10])


def sequence(seed: int) -> onnx.ModelProto:
    """One-dimensional convolutions over a length that is not known, sub-sampled twice."""
    net = _Net(seed, ["N", 4, "L"], opset=16, size=64)
    x = "x"
    for channels, k, stride in ((8, 7, 1), (16, 5, 2), (16, 3, 1), (24, 3, 2), (24, 3, 1)):
        y = net.norm(net.conv(x, channels, k, stride=stride, bias=True))
        x = net.node("LeakyRelu", y, alpha=0.1)
    return net.model(net.logits(x), ["N", 10])


def dead_channels(seed: int) -> onnx.ModelProto:
    """A residual net, parts of which training has switched off: weights, scales and variances of (almost) 0.

    In each layer: channel 1 has no weights, so its variance is 0; channel 2 has scale 0; channel 3 has a
    variance far below epsilon.
    """
    return _residual(_Dying(seed, ["N", 3, 12, 12]))


class _Dying(_Net):
    def weight(self, name: str, shape: Sequence[int], fan_in: int) -> str:
        super().weight(name, shape, fan_in)
        numbers = self.values[name].copy()
        if len(shape) > 2:
            numbers[1] = 0
            numbers[3] *= 1e-6
        self.initializers.pop()
        return self.constant(name, numbers)

    def norm(self, x: str) -> str:
        y = super().norm(x)
        name = self.nodes[-1].input[1]
        numbers = self.values[name].copy()
        numbers[2] = 0
        self.initializers[-4].CopyFrom(numpy_helper.from_array(numbers, name))
        self.values[name] = numbers
        self.values[y] = _run(self.nodes[-1], [self.values[i] for i in self.nodes[-1].input], self.opset)
        return y


def large_means(seed: int) -> onnx.ModelProto:
    """What drifted before normalization: biases of 1 to 1000 standard deviations.

    A bias in front of a BatchNormalization has no gradient, so nothing holds it.
    """
    return _drifted(_Net(seed, ["N", 3, 12, 12], opset=20), 3.0)


def large_means_mixed(seed: int) -> onnx.ModelProto:
    """The same in float16, up to 30 standard deviations, with statistics in float32."""
    net = _Net(seed, ["N", 3, 12, 12], opset=15, dtype=np.float16, norm_dtype=np.float32)
    return _drifted(net, 1.5)


def _drifted(net: _Net, decades: float) -> onnx.ModelProto:
    x = "x"
    for channels, stride in ((8, 1), (8, 1), (16, 2), (16, 1), (24, 2), (24, 1)):
        y = net.conv(x, channels, stride=stride)
        std = net.values[y].std(axis=(0, 2, 3))
        sign = net.random.choice([-1.0, 1.0], channels)
        drift = sign * std * 10 ** net.random.uniform(0, decades, channels)
        node = net.nodes[-1]
        node.input.append(net.constant(f"{node.name}.bias", drift))
        net.values[y] = _run(node, [net.values[i] for i in node.input], net.opset)
        x = net.relu(net.norm(y))
    return net.model(net.logits(x), ["N", 10])


def deep_chain(seed: int) -> onnx.ModelProto:
    """Fifty narrow layers in a row: every rounding at the top comes through all of them."""
    net = _Net(seed, ["N", 4, 6, 6])
    x = "x"
    for _ in range(50):
        x = net.unit(x, 8)
    return net.model(x, ["N", 8, 6, 6])


def preactivation(seed: int) -> onnx.ModelProto:
    """Residual blocks with the normalization first (He et al. 2016), for images of any size."""
    net = _Net(seed, ["N", 3, "H", "W"], opset=19)
    x = net.conv("x", 8)
    for channels, stride in ((8, 1), (8, 1), (16, 2), (16, 1)):
        active = net.relu(net.norm(x))
        y = net.conv(net.relu(net.norm(net.conv(active, channels, stride=stride))), channels)
        plain = stride == 1 and channels == net.channels(x)
        x = net.node("Add", x if plain else net.conv(active, channels, 1, stride=stride), y)
    return net.model(net.logits(net.relu(net.norm(x))), ["N", 10])


def attention(seed: int) -> onnx.ModelProto:
    """Dense layers over tokens, normalized behind a Reshape or a Transpose, as LeViT has them."""
    tokens, width = 16, 24
    net = _Net(seed, ["N", 3, 16, 16], opset=14)
    x = net.unit(net.unit("x", 12, stride=2), width, stride=2)
    shape = net.constant("tokens", [-1, width, tokens], np.int64)
    x = net.node("Transpose", net.node("Reshape", x, shape), perm=[0, 2, 1])
    for _ in range(2):
        query, key, value = (_token_norm(net, net.matmul(x, size), tokens) for size in (8, 8, width))
        scores = net.node("MatMul", query, net.node("Transpose", key, perm=[0, 2, 1]))
        y = net.node("MatMul", net.node("Softmax", scores, axis=-1), value)
        x = net.node("Add", x, _token_norm(net, net.matmul(net.node("HardSwish", y), width), tokens))
        x = net.node("Add", x, _channel_norm(net, net.matmul(x, width, bias=True)))
    return net.model(net.gemm(net.node("ReduceMean", x, axes=[1], keepdims=0), 10), ["N", 10])


def _token_norm(net: _Net, x: str, tokens: int) -> str:
    """Over tokens and samples together: (N, T, C) is taken as (N·T, C)."""
    channels = net.values[x].shape[2]
    number = len(net.nodes)
    flat = net.constant(f"reshape{number}.flat", [-1, channels], np.int64)
    y = net.norm(net.node("Reshape", x, flat))
    return net.node("Reshape", y, net.constant(f"reshape{number}.back", [-1, tokens, channels], np.int64))


def _channel_norm(net: _Net, x: str) -> str:
    """The channels of (N, T, C) are turned to where a BatchNormalization wants them, and back."""
    y = net.norm(net.node("Transpose", x, perm=[0, 2, 1]))
    return net.node("Transpose", y, perm=[0, 2, 1])


def grouped(seed: int) -> onnx.ModelProto:
    """Grouped convolutions, whose groups are mixed by a shuffle of channels (Zhang et al. 2017)."""
    net = _Net(seed, ["N", 3, 12, 12], opset=21)
    x = net.unit("x", 12)
    for stride in (1, 2, 1):
        y = net.unit(x, 24, 1, group=3)
        y = net.norm(net.conv(y, 24, 3, stride=stride, group=6))
        y = _shuffled(net, y, 3)
        y = net.norm(net.conv(y, 24 if stride == 2 else net.channels(x), 1, group=3))
        x = net.relu(y if stride == 2 else net.node("Add", x, y))
    return net.model(net.logits(x), ["N", 10])


def _shuffled(net: _Net, x: str, groups: int) -> str:
    channels, *spatial = net.values[x].shape[1:]
    number = len(net.nodes)
    split = net.constant(f"shuffle{number}.split", [-1, groups, channels // groups, *spatial], np.int64)
    joined = net.constant(f"shuffle{number}.joined", [-1, channels, *spatial], np.int64)
    y = net.node("Transpose", net.node("Reshape", x, split), perm=[0, 2, 1, 3, 4])
    return net.node("Reshape", y, joined)


NETS: dict[str, Callable[[int], onnx.ModelProto]] = {
    net.__name__: net
    for net in (
        residual,
        depthwise,
        sparse,
        unet,
        dense_blocks,
        mlp,
        sequence,
        preactivation,
        attention,
        grouped,
        deep_chain,
        dead_channels,
        large_means,
        residual_float16,
        depthwise_float16,
        large_means_mixed,
    )
}
"""The maker of each net, by name; its argument is the seed."""
