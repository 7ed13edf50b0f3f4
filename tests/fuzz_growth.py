"""How a random graph grows, whatever the steps are.

A graph grows by steps, each of which puts an operator after a value whose shape is known. Where the first
axis is symbolic, no step touches it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)
BATCH = 2  # what a symbolic first axis counts as
LARGEST = 4096  # elements of a value


@dataclass(frozen=True)
class Value:
    """A value that steps may read."""

    name: str
    shape: Shape
    dtype: int

    @property
    def rank(self) -> int:
        return len(self.shape)


class Model:
    """What all graphs of a model have in common.

    Attributes:
        early: The steps that may be used with bfloat16 since opset 16; the others since 22.
    """

    def __init__(self, seed: int, early: Container[Step]) -> None:
        self.random = np.random.default_rng(seed)
        self.early = early
        self.dtype = self.pick((*(FLOATS[0],) * 5, *FLOATS))
        self.opset = int(self.random.integers(16 if self.dtype == TensorProto.BFLOAT16 else 7, 23))
        self.symbolic = self.chance(0.5)
        needed = helper.find_min_ir_version_for([helper.make_opsetid("", self.opset)], ignore_unknown=True)
        self.ir_version = int(self.random.integers(needed, max(needed, 10) + 1))
        self.functions: list[tuple[onnx.FunctionProto, Value]] = []
        self.flag = ""
        self._count = 0

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def pick(self, options: Sequence[Any]) -> Any:
        return options[int(self.random.integers(len(options)))]

    def fresh(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    def condition(self) -> str:
        """A boolean input."""
        self.flag = self.flag or self.fresh("flag")
        return self.flag

    def inputs(self) -> list[Value]:
        """Of the main graph; all have one shape, most often an image's."""
        sides = self.pick(((), (6,), (6, 5), (6, 5), (6, 6), (4, 4), (3, 4, 3)))
        shape = (BATCH, self.pick((1, 2, 3, 4, 6)), *sides)
        return [Value(self.fresh("x"), shape, self.dtype) for _ in range(self.pick((1, 1, 2)))]

    def proto(self, main: Growth, given: Sequence[Value]) -> onnx.ModelProto:
        """The model, whose main graph has grown from what is given."""
        made = main.values[len(given) :]
        read = {name for node in main.nodes for name in node.input}
        outputs = [v for v in made if v is made[-1] or self.chance(0.04) or v.name not in read]
        if self.chance(0.2):
            outputs.reverse()
        inputs = [_info(v, "N" if self.symbolic else BATCH) for v in given]
        if self.flag:
            inputs.append(helper.make_tensor_value_info(self.flag, TensorProto.BOOL, []))
        shown = [_info(v, *[None] * (v.rank if self.chance(0.5) else self.symbolic)) for v in outputs]
        graph = helper.make_graph(main.nodes, "fuzz", inputs, shown, main.initializers)
        self._override(graph)
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid("own", 1)]
        functions = [function for function, _ in self.functions]
        ir_version = max(self.ir_version, 8) if functions else self.ir_version
        proto = helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=ir_version)
        return onnx.shape_inference.infer_shapes(proto) if self.chance(0.4) else proto

    def _override(self, graph: onnx.GraphProto) -> None:
        """Initializers as inputs: all of them below IR version 4, some in some graphs later."""
        share = 1.0 if self.ir_version < 4 else self.pick((0.2, *(0.0,) * 9))
        for tensor in graph.initializer:
            if self.chance(share):
                info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                graph.input.append(info)


def _info(value: Value, *dims: str | int | None) -> onnx.ValueInfoProto:
    """Its type, whose first dimensions are said to be these."""
    return helper.make_tensor_value_info(value.name, value.dtype, [*dims, *value.shape[len(dims) :]])


class Growth:
    """A graph, an inner graph or the body of a function while it grows."""

    def __init__(self, model: Model, *, initializers: bool = True) -> None:
        self.model = model
        self.random = model.random
        self.opset = model.opset
        self.first = 1 if model.symbolic else 0  # the first axis that may be touched
        self.values: list[Value] = []
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] | None = [] if initializers else None
        self.known: list[tuple[str, Shape, int, bool]] = []  # weights that may be shared

    # Chance

    def chance(self, probability: float) -> bool:
        return self.model.chance(probability)

    def pick(self, options: Sequence[Any]) -> Any:
        return self.model.pick(options)

    def axis(self, x: Value) -> int:
        """One that may be touched; mostly that of the channels."""
        return 1 if x.rank > 1 and self.chance(0.6) else int(self.random.integers(self.first, x.rank))

    # Nodes

    def add(self, op: str, inputs: Sequence[str], shape: Shape, *, dtype: int, **attrs: Any) -> Value:
        """A node with one output."""
        return self.add_several(op, inputs, [shape], dtype=dtype, **attrs)[0]

    def add_several(
        self, op: str, inputs: Sequence[str], shapes: Sequence[Shape], *, dtype: int, **attrs: Any
    ) -> list[Value]:
        """A node with an output per shape."""
        outputs = [Value(self.model.fresh("v"), shape, dtype) for shape in shapes]
        names = ("", "node", f"{op}_{len(self.nodes)}", *(self.model.fresh("n") for _ in range(5)))
        node = helper.make_node(op, inputs, [o.name for o in outputs], name=self.pick(names), **attrs)
        self.nodes.append(node)
        return outputs

    def weights(self, x: Value, *shape: int, positive: bool = False) -> str:
        """A constant of the type of x, which may be one that is there already."""
        alike = [k for k, *what in self.known if what == [shape, x.dtype, positive]]
        if alike and self.chance(0.3):
            return str(self.pick(alike))
        size = self.pick((0.3, 1.0, 1.0, 1.0, 4.0))
        one_sign = positive or self.chance(0.3)
        numbers = (
            self.random.uniform(0.2, 2, shape) if one_sign else size * self.random.standard_normal(shape)
        )
        numbers = np.asarray(numbers)
        if self.chance(0.04) and numbers.size:
            numbers.flat[0] = self.pick((0.0, 0.0, 1e-30, 1e-6, 1e4, 7e4, 1e30, -1.0, np.inf, np.nan))
        with np.errstate(all="ignore"):
            name = self.constant(numbers.astype(helper.tensor_dtype_to_np_dtype(x.dtype)))
        self.known.append((name, shape, x.dtype, positive))
        return name

    def constant(self, array: Array) -> str:
        """A constant, spelled as an initializer, as a node or as a chain of nodes."""
        shape, dtype = array.shape, helper.np_dtype_to_tensor_dtype(array.dtype)
        if dtype in FLOATS and array.ndim > 1 and self.chance(0.08):
            turned = self.constant(np.ascontiguousarray(array.T))
            made = self.add("Transpose", [turned], shape, dtype=dtype)
        elif dtype in FLOATS and self.chance(0.05):
            made = self.add("Identity", [self.constant(array)], shape, dtype=dtype)
        elif dtype in FLOATS and array.size and self.opset >= 9 and self.chance(0.05):
            sizes = self.constant(np.array(shape, np.int64))
            made = self.add("Reshape", [self.constant(array.reshape(-1)), sizes], shape, dtype=dtype)
        elif dtype == TensorProto.FLOAT16 and self.chance(0.1):
            made = self.add("Cast", [self.constant(array.astype(np.float32))], shape, dtype=dtype, to=dtype)
        elif self.initializers is None or (self.chance(0.15) and (dtype in FLOATS or self.opset >= 9)):
            tensor = numpy_helper.from_array(array)
            made = self.add("Constant", [], shape, dtype=dtype, value=tensor)
        else:
            name = self.model.fresh("c")
            self.initializers.append(numpy_helper.from_array(array, name))
            return name
        return str(made.name)

    def integers(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    # Growing

    def grow(self, steps: int, kinds: Sequence[Step]) -> None:
        """Put steps after values, mostly after the last."""
        for _ in range(steps):
            able = [v for v in self.values if v.rank > self.first]
            x = able[-1] if self.chance(0.85) else self.pick(able)
            step = self.pick(kinds)
            if x.dtype == TensorProto.BFLOAT16 and self.opset < 22 and step not in self.model.early:
                continue
            found = step(self, x)
            for value in found if isinstance(found, list) else [found] if found else []:
                if 0 < np.prod(value.shape) <= LARGEST:
                    self.values.append(value)

    def inner(
        self, x: Value, steps: int, kinds: Sequence[Step], *, initializers: bool = True
    ) -> tuple[Growth, Value]:
        """A graph that reads x and makes something of the same shape and type."""
        growth = Growth(self.model, initializers=initializers and self.model.ir_version >= 4)
        growth.values = [x]
        growth.grow(steps, kinds)
        last = growth.values[-1]
        if last is x:
            last = growth.add("Identity", [x.name], x.shape, dtype=x.dtype)
        return growth, last


Step = Callable[[Growth, Value], Value | list[Value] | None]
"""What it adds behind a value; None if that does not fit."""
