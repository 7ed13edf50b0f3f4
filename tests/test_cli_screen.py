"""A network of the size of a ResNet-50, on one screen: 24 lines of 80 columns; on narrow and plain ones."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper, numpy_helper

import bnfold
from bnfold.cli import main

STAGES = (3, 4, 6, 3)  # bottleneck blocks; with the stem, 53 BatchNormalizations
HEIGHT, WIDTH = 24, 80


@cache
def run(*arguments: str, columns: int = WIDTH) -> Result:
    """Some of these take seconds."""
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(main, arguments)


class Bottlenecks:
    """A ResNet-50 with a sixteenth of the channels, called as PyTorch's exporter does."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def model(self) -> onnx.ModelProto:
        value, channels = self.normed("input", "/conv1", "/bn1", 3, 4, 3, relu=True), 4
        for stage, blocks in enumerate(STAGES):
            width = 4 << stage
            for block in range(blocks):
                value = self.block(value, f"/layer{stage + 1}/layer{stage + 1}.{block}", channels, width)
                channels = 4 * width
        self.node("GlobalAveragePool", "/avgpool", value)
        self.node("Flatten", "/Flatten", "/avgpool_output_0")
        self.node("Gemm", "/fc", "/Flatten_output_0", self.weight("fc.weight", channels, 10))
        x = helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["N", 3, 16, 16])
        y = helper.make_tensor_value_info("/fc_output_0", onnx.TensorProto.FLOAT, ["N", 10])
        graph = helper.make_graph(self.nodes, "resnet", [x], [y], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def block(self, value: str, name: str, channels: int, width: int) -> str:
        shortcut = value
        if channels != 4 * width:
            shortcut = self.normed(
                value, f"{name}/downsample.0", f"{name}/downsample.1", channels, 4 * width, 1
            )
        inner = self.normed(value, f"{name}/conv1", f"{name}/bn1", channels, width, 1, relu=True)
        inner = self.normed(inner, f"{name}/conv2", f"{name}/bn2", width, width, 3, relu=True)
        inner = self.normed(inner, f"{name}/conv3", f"{name}/bn3", width, 4 * width, 1)
        return self.node("Relu", f"{name}/relu", self.node("Add", f"{name}/Add", inner, shortcut))

    def normed(
        self, value: str, conv: str, norm: str, channels: int, width: int, size: int, *, relu: bool = False
    ) -> str:
        weight = self.weight(f"{conv}.weight", width, channels, size, size)
        value = self.node("Conv", f"{conv}/Conv", value, weight, pads=[size // 2] * 4)
        facts = [self.weight(f"{norm}.{fact}", width) for fact in ("weight", "bias", "running_mean")]
        facts.append(self.weight(f"{norm}.running_var", width, low=0.5))
        value = self.node("BatchNormalization", f"{norm}/BatchNormalization", value, *facts)
        return self.node("Relu", f"{norm}/Relu", value) if relu else value

    def node(self, kind: str, name: str, *values: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, values, [f"{name}_output_0"], name, **attributes))
        return f"{name}_output_0"

    def weight(self, name: str, *shape: int, low: float = -0.5) -> str:
        numbers = self.random.uniform(low, low + 1, shape).astype(np.float32)
        self.tensors.append(numpy_helper.from_array(numbers, name))
        return name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with the network, and what is compared with it."""
    place = tmp_path_factory.mktemp("resnet")
    network = Bottlenecks().model()
    onnx.save(network, place / "resnet50.onnx")
    bnfold.optimize(place / "resnet50.onnx", place / "folded.onnx", verify="none", force=True)
    np.save(
        place / "images.npy", np.random.default_rng(1).standard_normal((12, 3, 16, 16)).astype(np.float32)
    )
    for tensor in network.graph.initializer:
        if tensor.name == "/layer2/layer2.1/conv2.weight":
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.1), tensor.name)
            )
    onnx.save(network, place / "wrong.onnx")
    for tensor in network.graph.initializer:  # as older exporters leave them
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        network.graph.input.append(info)
    onnx.save(network, place / "inputs.onnx")
    before = os.getcwd()
    os.chdir(place)
    yield place
    os.chdir(before)


VERIFY = ["verify", "resnet50.onnx", "--no-runtime"]
RECALIBRATE = ["--data", "images.npy", "--dry-run"]
# What is run, its exit code, and what has to be read, in this order.
COMMANDS: dict[str, tuple[list[str], int, list[str]]] = {
    "optimize": (
        ["optimize", "resnet50.onnx", "--dry-run"],
        0,
        [
            "53 of 53",
            "BatchNormalization 53 0",
            "into 53 Conv",
            "Verified: 121 tensors",
            "this was a dry run",
        ],
    ),
    "optimize, in vain": (
        ["optimize", "inputs.onnx", "--dry-run"],
        0,
        [
            "nothing could be folded",
            "BNF401 53 BatchNormalization",
            "Use --freeze-initializers",
            "and 51 more",
        ],
    ),
    "optimize, recalibrated": (
        ["optimize", "resnet50.onnx", "--dry-run", "--recalibrate", "images.npy"],
        0,
        [
            "53 of 53",
            "Recalibrated on 12 samples",
            "Verified: in the finished model",
            "Verified: against the recalibrated model, 121 tensors",
        ],
    ),
    "inspect": (
        ["inspect", "resnet50.onnx"],
        0,
        ["53 would fold", "/bn1 53 4-128 fine folds backward", "Next: `bnfold optimize`"],
    ),
    "inspect, in vain": (
        ["inspect", "inputs.onnx"],
        0,
        ["0 would fold", "/bn1 53 4-128 fine stays: BNF401", "Use --freeze-initializers"],
    ),
    "verify": (
        [*VERIFY, "folded.onnx"],
        0,
        ["PASS: folded.onnx is the same", "/fc_output_0", "Float64: 121 tensors"],
    ),
    "verify, wrong": (
        [*VERIFY, "wrong.onnx"],
        1,
        [
            "FAIL: wrong.onnx is not the same",
            "'/layer2/layer2.1/conv2/Conv_output_0' (Conv '/layer2/layer2.1/conv2/Conv') differs",
            "Float64: 174 tensors of both models compared, 1",
            "and 1",
            "Next: compare what computes '/layer2/layer2.1/conv2/Conv_output_0'",
        ],
    ),
    "recalibrate": (
        ["recalibrate", "resnet50.onnx", *RECALIBRATE],
        0,
        ["53 BatchNormalizations recalibrated", "Verified: ", "Least certain: ", "and 45 that changed less"],
    ),
}
each = pytest.mark.parametrize(("arguments", "code", "told"), COMMANDS.values(), ids=COMMANDS)


@each
def test_one_screen(arguments: list[str], code: int, told: list[str], folder: Path) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stderr) == (code, "")
    lines = result.stdout.splitlines()
    assert len(lines) <= HEIGHT and max(map(len, lines)) <= WIDTH and "\x1b" not in result.stdout
    text, place = " ".join(result.stdout.split()), 0
    for words in told:
        assert words in text[place:]
        place = text.index(words, place)


@each
def test_a_narrow_terminal(arguments: list[str], code: int, told: list[str], folder: Path) -> None:
    """What is longer is a name that somebody may want to copy."""
    lines = run(*arguments, columns=40).stdout.splitlines()
    assert all(len(line) <= 40 or len(line.split()) == 1 for line in lines)
    assert told[0].split()[0] in " ".join(lines)


COLORS, PLAIN, DUMB = {"TERM": "xterm"}, {"TERM": "xterm", "NO_COLOR": "1"}, {"TERM": "dumb"}


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        *((command, COLORS) for command in ("optimize", "inspect", "verify", "recalibrate")),
        *(("inspect", environment) for environment in (PLAIN, DUMB)),
    ],
    ids=str,
)
def test_colors(command: str, environment: dict[str, str], folder: Path) -> None:
    variables = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"COLUMNS": "80"} | environment
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "bnfold", *COMMANDS[command][0]],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=variables,
    )
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 4096):
            shown += piece
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    process.communicate()
    assert process.returncode == 0 and (b"\x1b[" in shown) == (environment is COLORS)


@each
def test_a_stream_with_few_characters(arguments: list[str], code: int, told: list[str], folder: Path) -> None:
    """What bnfold itself says is ASCII."""
    assert run(*arguments).stdout.isascii()
