"""A model made ready to be run in float64, any number of times, in any number of threads."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, ValueInfoProto

from .block import Block, constants_of, of_main
from .file import read
from .frame import Elsewhere, Frame, Function, key, opsets
from .node import Array, carry
from .outcome import EvaluationError, Missing, Unsupported
from .scope import Value
from .stored import Change, stored

Values = Generator[tuple[str, Array | Missing], Array | None, None]


class Program:
    """A model made ready to be run.

    Args:
        model: The model or its file.
        folder: Where its external data lie; that of the file by default.
        elsewhere: Who runs the operators that are not available here.
        outputs: The values of the main graph to compute; by default the outputs of the graph.

    Attributes:
        model: The model; external data and large tensors are not in it, but read one at a time when
            needed.
        inputs: What has to be fed: the inputs of the graph that no initializer gives a value.
        outputs: The names of the outputs.
        computed: The values of the main graph that nodes make on the way to an output, in order.
        producer: The node that makes each value of the main graph.

    Raises:
        EvaluationError: The file cannot be read, or the graph is no graph: an output that nothing makes,
            a value that is made twice or depends on itself.
    """

    def __init__(
        self,
        model: Path | ModelProto,
        *,
        folder: Path | None = None,
        elsewhere: Elsewhere | None = None,
        outputs: Sequence[str] | None = None,
    ) -> None:
        self.model = model if isinstance(model, ModelProto) else read(model)
        self._folder = model.parent if folder is None and isinstance(model, Path) else folder
        self._elsewhere = elsewhere
        self._borrowed: dict[str, None] = {}
        graph = self.model.graph
        self._stored = constants_of(graph)
        self._fed = tuple(value.name for value in graph.input)
        self.inputs: tuple[ValueInfoProto, ...] = tuple(v for v in graph.input if v.name not in self._stored)
        self.outputs = tuple(value.name for value in graph.output) if outputs is None else tuple(outputs)
        self.producer: Mapping[str, NodeProto] = MappingProxyType(
            {name: node for node in graph.node for name in node.output if name}
        )
        for name in self.outputs:
            if name not in self.producer and name not in self._fed and name not in self._stored:
                raise EvaluationError(f"there is no value {name!r}, which is to be an output")
        self._block: Block = of_main(graph, self.outputs)
        self.computed = tuple(name for step in self._block.steps for name in step.node.output if name)
        self._opsets = opsets(self.model.opset_import)
        self._functions = {key(f): Function.of(f, self._opsets) for f in self.model.functions}

    def stored(self, name: str) -> Array | None:
        """The constant of the main graph that has this name, in the type that it is stored in; None if
        there is none.

        Raises:
            EvaluationError: It cannot be read.
        """
        proto = self._stored.get(name)
        return None if proto is None else stored(name, proto, self._folder)

    def read_constants(self) -> None:
        """Read every constant of the main graph once, and keep none.

        Raises:
            EvaluationError: One cannot be read.
        """
        for name in self._stored:
            with suppress(Unsupported):
                self.stored(name)

    @property
    def borrowed(self) -> tuple[str, ...]:
        """The nodes that were run elsewhere so far, as "OpType 'name'"."""
        return tuple(self._borrowed)

    def run(
        self,
        feeds: Mapping[str, npt.ArrayLike],
        *,
        wanted: Collection[str] = (),
        change: Change | None = None,
    ) -> Values:
        """Run the model once, handing out values as they are computed and forgetting what has no reader left.

        Args:
            feeds: The values of the inputs; those that have an initializer may be left out.
            wanted: Names of values to hand out beside the outputs: of `computed`, inputs, initializers.
            change: What to use instead of each floating constant, whenever one is read from the model.

        Returns:
            A generator of names and values, each name once, in order of computation; inputs and
            initializers come first. What is sent into it takes the place of the value for all that read it.

        Raises:
            EvaluationError: A feed is missing or unknown, or `wanted` has a name that is not computed. From
                the generator: a node is invalid, or too large.
        """
        values = self._bound(feeds)
        asked = {*wanted, *self.outputs}
        if unknown := asked.difference(self.computed, self._fed, self._stored):
            raise EvaluationError(f"no values on the way to an output: {sorted(unknown)}")
        frame = Frame(
            self._opsets, self._functions, self._folder, change, self._elsewhere, self._note, arguments={}
        )
        return self._run(frame, values, asked)

    def _run(self, frame: Frame, values: dict[str, Value], asked: set[str]) -> Values:
        scope = frame.scope(self._block, values)
        for name in dict.fromkeys([*self._fed, *self._stored]):
            if name in asked:
                scope[name] = yield from _handed_out(name, scope[name])
        for step in self._block.steps:
            results = frame.compute(step, scope)
            scope.drop(step.frees)  # now: a run that waits at a value must not hold what made it
            while results:
                name, value = results.pop(0)
                if name in asked:
                    value = yield from _handed_out(name, value)
                if name not in step.frees:
                    scope[name] = value
                del value

    def _bound(self, feeds: Mapping[str, npt.ArrayLike]) -> dict[str, Value]:
        if unknown := feeds.keys() - set(self._fed):
            raise EvaluationError(f"no inputs of the graph: {sorted(unknown)}; it has {sorted(self._fed)}")
        if missing := set(self._fed) - feeds.keys() - self._stored.keys():
            raise EvaluationError(f"inputs without a value: {sorted(missing)}")
        types = {value.name: value.type.WhichOneof("value") for value in self.model.graph.input}
        return {name: _fed(name, types[name], value) for name, value in feeds.items()}

    def _note(self, node: str) -> None:
        self._borrowed.setdefault(node)


def evaluate(
    model: ModelProto,
    feeds: Mapping[str, npt.ArrayLike],
    *,
    outputs: Sequence[str] | None = None,
    folder: Path | None = None,
) -> dict[str, Array]:
    """Run a model in float64.

    Args:
        model: Any valid model.
        feeds: Values of the graph's inputs; those that are also initializers may be left out.
        outputs: Which values of the main graph to return, intermediate ones included; by default the
            outputs of the graph.
        folder: Where external data lie.

    Returns:
        The values by name: float64 for all floating types, integers and booleans in their own.

    Raises:
        EvaluationError: A feed is missing or unknown, `outputs` names a value that does not exist, a node is
            invalid, or a value could not be computed: an operator is not available, or random.
    """
    program = Program(model, folder=folder, outputs=outputs)
    values: dict[str, Array] = {}
    for name, value in program.run(feeds):
        if isinstance(value, Missing):
            raise EvaluationError(f"there is no value for {name!r}: {value.reason}")
        values[name] = value
    return {name: values[name] for name in program.outputs}


def _fed(name: str, kind: str | None, value: npt.ArrayLike) -> Value:
    if kind not in (None, "tensor_type"):
        return Missing(f"the input {name!r} is no tensor")
    array = np.asarray(value)
    return Missing(f"the input {name!r} holds strings") if array.dtype.kind in "OSUT" else carry(array)


def _handed_out(name: str, value: Value) -> Generator[tuple[str, Array | Missing], Array | None, Value]:
    """Hand out a value, and take what is to be used instead."""
    if value is None:
        raise EvaluationError(f"the value {name!r} is absent")
    shown = Missing(f"{name!r} is a sequence, no tensor") if isinstance(value, list) else value
    replacement = yield name, shown
    return value if replacement is None else replacement
