"""The benchmark's own models: ResNets, MobileNetV2 and plain chains with seeded weights, as ONNX files.

They are written node by node, so no framework is needed, and nothing folds them on the way. Every
convolution lacks a bias and is followed by a BatchNormalization, as in the published networks.

    python benchmarks/models.py resnet50 resnet50.onnx
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

SEED = 20
OPSET = 18
IR_VERSION = 9


class _Graph:
    """Nodes and initializers as they come; each method appends one operator, returns its output."""

    def __init__(self) -> None:
        import numpy

        self.random = numpy.random.default_rng(SEED)
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def constant(self, name: str, array: Any) -> str:
        from onnx import numpy_helper

        self.initializers.append(numpy_helper.from_array(array.astype("float32"), name))
        return name

    def node(self, op_type: str, name: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        output = f"{name}.out"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name, **attributes))
        return output

    def conv(
        self,
        name: str,
        x: str,
        shape: tuple[int, int, int],
        gain: float = 2.0,
        stride: int = 1,
        group: int = 1,
    ) -> str:
        """A kxk convolution, `shape` as of its weight; weights after He, with variance `gain` / fan-in."""
        outputs, inputs, k = shape
        std = (gain / (inputs * k * k)) ** 0.5
        weight = self.constant(f"{name}.weight", self.random.normal(0, std, (outputs, inputs, k, k)))
        return self.node("Conv", name, x, weight, strides=[stride] * 2, pads=[k // 2] * 4, group=group)

    def batchnorm(self, name: str, x: str, channels: int, scale: float = 1.0) -> str:
        """Statistics as training would leave them: every parameter of every channel its own."""
        draw = self.random
        parameters = {
            "scale": scale * draw.uniform(0.5, 1.5, channels),
            "bias": draw.normal(0, 0.2, channels),
            "mean": draw.normal(0, 0.2, channels),
            "var": draw.uniform(0.5, 1.5, channels),
        }
        constants = [self.constant(f"{name}.{key}", array) for key, array in parameters.items()]
        return self.node("BatchNormalization", name, x, *constants)

    def save(
        self, path: Path, input_shape: list[int | str], output: str, output_shape: list[int | str]
    ) -> None:
        import onnx
        from onnx import helper

        def info(name: str, shape: list[int | str]) -> Any:
            return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)

        inputs, outputs = [info("input", input_shape)], [info(output, output_shape)]
        graph = helper.make_graph(self.nodes, path.stem, inputs, outputs, self.initializers)
        opsets = [helper.make_opsetid("", OPSET)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION), path)


def resnet(path: Path, stages: tuple[int, int, int, int]) -> None:
    """A ResNet of bottleneck blocks (He et al. 2015; stride on the 3x3 convolution) for 1,000 classes."""
    g = _Graph()
    x = g.node("Relu", "relu", g.batchnorm("bn", g.conv("conv", "input", (64, 3, 7), stride=2), 64))
    x = g.node("MaxPool", "pool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    channels = 64
    for stage, blocks in enumerate(stages):
        width = 64 << stage
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            x = _bottleneck(g, f"layer{stage + 1}.{block}", x, (channels, width), stride, shortcut=not block)
            channels = 4 * width
    g.save(path, ["N", 3, 224, 224], _logits(g, x, channels), ["N", 1000])


def _logits(g: _Graph, x: str, channels: int) -> str:
    x = g.node("Flatten", "flatten", g.node("GlobalAveragePool", "average", x))
    weight = g.constant("fc.weight", g.random.normal(0, channels**-0.5, (1000, channels)))
    bias = g.constant("fc.bias", g.random.normal(0, 0.1, 1000))
    return g.node("Gemm", "fc", x, weight, bias, transB=1)


def _bottleneck(
    g: _Graph, name: str, x: str, channels: tuple[int, int], stride: int, *, shortcut: bool
) -> str:
    inputs, width = channels
    y = g.batchnorm(f"{name}.bn1", g.conv(f"{name}.conv1", x, (width, inputs, 1)), width)
    y = g.node("Relu", f"{name}.relu1", y)
    y = g.batchnorm(f"{name}.bn2", g.conv(f"{name}.conv2", y, (width, width, 3), stride=stride), width)
    y = g.node("Relu", f"{name}.relu2", y)
    # The last scale of a block is small, so that fifty residual sums do not grow without bound.
    y = g.batchnorm(f"{name}.bn3", g.conv(f"{name}.conv3", y, (4 * width, width, 1)), 4 * width, scale=0.2)
    if shortcut:
        x = g.conv(f"{name}.shortcut", x, (4 * width, inputs, 1), stride=stride)
        x = g.batchnorm(f"{name}.shortcut_bn", x, 4 * width)
    return g.node("Relu", f"{name}.relu3", g.node("Add", f"{name}.add", x, y))


def mobilenet(path: Path) -> None:
    """MobileNetV2 at its full width (Sandler et al. 2018) for 1,000 classes."""
    import numpy

    g = _Graph()
    g.constant("zero", numpy.array(0.0))
    g.constant("six", numpy.array(6.0))
    x = _relu6(g, "relu", g.batchnorm("bn", g.conv("conv", "input", (32, 3, 3), stride=2), 32))
    inputs, index = 32, 0
    # The table of the paper: expansion, channels, repeats, stride of the first.
    for expansion, channels, repeats, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)),
        *((6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for block in range(repeats):
            widths = inputs, expansion * inputs, channels
            x = _inverted_residual(g, f"block{index}", x, widths, 1 if block else stride)
            inputs, index = channels, index + 1
    x = _relu6(g, "relu_last", g.batchnorm("bn_last", g.conv("conv_last", x, (1280, inputs, 1)), 1280))
    g.save(path, ["N", 3, 224, 224], _logits(g, x, 1280), ["N", 1000])


def _inverted_residual(g: _Graph, name: str, x: str, widths: tuple[int, int, int], stride: int) -> str:
    inputs, wide, outputs = widths
    y = x
    if wide != inputs:
        y = g.batchnorm(f"{name}.bn1", g.conv(f"{name}.conv1", y, (wide, inputs, 1)), wide)
        y = _relu6(g, f"{name}.relu1", y)
    y = g.conv(f"{name}.conv2", y, (wide, 1, 3), stride=stride, group=wide)
    y = _relu6(g, f"{name}.relu2", g.batchnorm(f"{name}.bn2", y, wide))
    y = g.batchnorm(f"{name}.bn3", g.conv(f"{name}.conv3", y, (outputs, wide, 1)), outputs)
    return g.node("Add", f"{name}.add", x, y) if stride == 1 and inputs == outputs else y


def _relu6(g: _Graph, name: str, x: str) -> str:
    return g.node("Clip", name, x, "zero", "six")


def chain(path: Path, length: int) -> None:
    """`length` times Conv (16 channels, 3x3) + BatchNormalization + Relu: many nodes, little data."""
    g = _Graph()
    x = "input"
    for i in range(length):
        # A gain below He's 2 keeps 5,000 layers bounded.
        x = g.batchnorm(f"bn{i}", g.conv(f"conv{i}", x, (16, 16, 3), gain=1.5), 16)
        x = g.node("Relu", f"relu{i}", x)
    g.save(path, ["N", 16, 8, 8], x, ["N", 16, 8, 8])


WARM_UP = "chain5"

MODELS: dict[str, Callable[[Path], None]] = {
    WARM_UP: partial(chain, length=5),
    "resnet50": partial(resnet, stages=(3, 4, 6, 3)),
    "resnet152": partial(resnet, stages=(3, 8, 36, 3)),
    "mobilenetv2": mobilenet,
    "chain500": partial(chain, length=500),
    "chain5000": partial(chain, length=5000),
}
"""The writer of each model, by name."""


def main() -> None:
    name, target = sys.argv[1], Path(sys.argv[2])
    unfinished = target.with_suffix(".partial")  # renamed when complete, so an interruption leaves no torso
    MODELS[name](unfinished)
    os.replace(unfinished, target)


if __name__ == "__main__":
    main()
