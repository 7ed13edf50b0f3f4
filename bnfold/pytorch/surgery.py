"""What a fold of the shadow means for the module, and doing it.

Where only modules change (a BatchNorm becomes an Identity, a Conv2d has another weight), the module keeps
its class and its code: `operate`. Where a line of somebody's `forward` would have to change, the graph is
rewritten and becomes a module of its own: `rewrite`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import fx, nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm

from .calls import put
from .duplicate import cloned, duplicate
from .shadow import Shadow, Snapshot, attributes_of
from .trace import Traced, Untraceable, is_reparametrization, is_same, trace

Array = NDArray[Any]


class Inexpressible(Exception):
    """The fold did something that no edit of the module says.

    Attributes:
        nodes: The calls that have to stay as they are.
    """

    def __init__(self, nodes: Iterable[fx.Node], why: str) -> None:
        super().__init__(why)
        self.nodes = tuple(nodes)


@dataclass(frozen=True)
class Term:
    """A multiplication by, or an addition of, a constant that a fold has left over.

    Attributes:
        node: The node of the shadow that does it.
    """

    node: ir.Node

    @property
    def function(self) -> Any:
        return {"Mul": torch.mul, "Add": torch.add}[self.node.op_type]

    @property
    def numbers(self) -> Array:
        return _constant_of(self.node)


@dataclass(frozen=True)
class Place:
    """Where a value comes from now: what a node makes, and what is done to that."""

    node: fx.Node
    terms: tuple[Term, ...] = ()


@dataclass(frozen=True, eq=False)
class Edits:
    """All that changes.

    Attributes:
        removed: Calls that are gone, and where their readers find now what they need; None if that is not
            the same for all.
        constants: New constants of calls, by the names that the call has for them; None is none.
        reads: Where calls find now what they read, by reader and by what was read, as far as it has changed.
    """

    removed: Mapping[fx.Node, Place | None]
    constants: Mapping[fx.Node, Mapping[str, Array | None]]
    reads: Mapping[tuple[fx.Node, fx.Node], Place]


def read_off(shadow: Shadow) -> Edits:
    """The edits of the module that do what a fold did to its shadow.

    Raises:
        Inexpressible: There are none.
    """
    return _Reader(shadow).edits()


class _Reader:
    def __init__(self, shadow: Shadow) -> None:
        self._shadow = shadow
        self._constants: dict[fx.Node, dict[str, Array | None]] = {}
        self._biases: dict[ir.Value, fx.Node] = {}  # results of what has become the bias of a call

    def edits(self) -> Edits:
        alive = {self._shadow.callers[n] for n in self._shadow.snapshots if n.graph is not None}
        gone = [c for c in dict.fromkeys(self._shadow.callers.values()) if c not in alive]
        for node in self._shadow.snapshots:
            if node.graph is None and self._shadow.callers[node] in alive:
                self._drop(node)
        for node in self._shadow.model.graph:
            if node not in self._shadow.snapshots:
                self._adopt(node)
        reads: dict[tuple[fx.Node, fx.Node], Place] = {}
        for node, snapshot in self._shadow.snapshots.items():
            if node.graph is not None:
                self._compare(node, snapshot, reads)
        removed: dict[fx.Node, Place | None] = {}
        for call in gone:
            places = {place for (_, source), place in reads.items() if source is call}
            data = call.all_input_nodes[0]
            here = removed.get(data) or Place(data)  # where nobody reads it any more
            removed[call] = here if not places else places.pop() if len(places) == 1 else None
        moved = {
            (reader, source): place for (reader, source), place in reads.items() if place != Place(source)
        }
        return Edits(removed, self._constants, moved)

    def _drop(self, node: ir.Node) -> None:
        """A node is gone of a call that goes on: the bias of a Linear."""
        for (owner, _), slot in self._shadow.slots.items():
            if owner is node:
                self._constants.setdefault(slot.node, {})[slot.name] = None

    def _adopt(self, node: ir.Node) -> None:
        """What a fold has added behind a Linear that has no other reader becomes its bias."""
        product = node.inputs[0]
        producer = None if product is None else product.producer()
        if node.op_type != "Add" or product is None or producer not in self._shadow.snapshots:
            return
        caller = self._shadow.callers[producer]
        width = self._shadow.widths.get(caller)
        if producer.op_type != "MatMul" or width is None or len(product.uses()) != 1:
            return
        numbers = _constant_of(node)
        if numbers.size in (1, width) and (numbers.ndim == 0 or numbers.shape[-1] == numbers.size):
            self._constants.setdefault(caller, {})["bias"] = np.broadcast_to(numbers.reshape(-1), (width,))
            self._biases[node.outputs[0]] = caller

    def _compare(
        self, node: ir.Node, snapshot: Snapshot, reads: dict[tuple[fx.Node, fx.Node], Place]
    ) -> None:
        caller = self._shadow.callers[node]
        if snapshot.attributes != attributes_of(node):
            raise Inexpressible([caller], f"{caller.name} has got other attributes")
        inputs = (*node.inputs, *(None,) * (len(snapshot.inputs) - len(node.inputs)))
        for i, now in enumerate(inputs):
            before = snapshot.inputs[i] if i < len(snapshot.inputs) else None
            slot = self._shadow.slots.get((node, i))
            source = None if before is None else self._shadow.origins.get(before)
            if now is before:
                if source is not None and source is not caller:
                    _note(reads, caller, source, Place(source))
                continue
            if slot is not None and now is not None and now.const_value is not None:
                array = now.const_value.numpy()
                self._constants.setdefault(slot.node, {})[slot.name] = array.T if slot.transposed else array
                continue
            if source is None or source is caller or now is None:
                raise Inexpressible([caller], f"input {i} of {caller.name} has changed")
            _note(reads, caller, source, self._place(now))

    def _place(self, value: ir.Value) -> Place:
        terms: list[Term] = []
        while value not in self._shadow.origins and value not in self._biases:
            producer = value.producer()
            assert producer is not None and producer.inputs[0] is not None  # folds add Mul and Add only
            terms.insert(0, Term(producer))
            value = producer.inputs[0]
        node = self._biases.get(value) or self._shadow.origins[value]
        return Place(node, tuple(terms))


def _note(
    reads: dict[tuple[fx.Node, fx.Node], Place], caller: fx.Node, source: fx.Node, place: Place
) -> None:
    if reads.setdefault((caller, source), place) != place:
        raise Inexpressible([caller], f"{caller.name} reads {source.name} in two ways")


def _constant_of(node: ir.Node) -> Array:
    (found,) = (v.const_value for v in node.inputs if v is not None and v.const_value is not None)
    return found.numpy()


# Doing it


def operations(traced: Traced, edits: Edits) -> Mapping[fx.Node, tuple[Term, ...]]:
    """What each removed call becomes, if all that changes are modules.

    Raises:
        Inexpressible: Somebody's code would have to change as well; the calls in question.
    """
    left = {call: _left_by(call, place, edits) for call, place in edits.removed.items()}
    changed = {*edits.removed, *edits.constants}
    culprits = {call for call in changed if call.op != "call_module"}
    culprits |= {reader for reader, source in edits.reads if source not in left}
    culprits |= {call for call, terms in left.items() if terms is None}
    touched = {traced.root.get_submodule(c.target): c for c in changed if c.op == "call_module"}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            module = traced.root.get_submodule(node.target)
            twin = touched.get(module)
            if twin is not None and not _alike(node, twin, edits, left):
                culprits |= {node, twin}
            if twin is None:
                culprits |= {touched[m] for m in module.modules() if m in touched}
        elif node.op == "get_attr":
            owner = traced.root.get_submodule(node.target.rpartition(".")[0])
            culprits |= {touched[owner]} if owner in touched else set()
    if culprits:
        raise Inexpressible(culprits, "code would have to change")
    return {call: terms for call, terms in left.items() if terms is not None}


def is_noticed(
    piece: nn.Module,
    traced: Traced,
    given: Mapping[str, Any] | None,
    operations: Mapping[fx.Node, tuple[Term, ...]],
    edits: Edits,
) -> bool:
    """Whether the code of a piece would do something else if these modules changed: it may ask for their
    class, or whether they have a bias, or hold them in a list as well."""
    trial = duplicate(piece, type(piece).__name__, cloned)
    operate(trial, trial, operations, edits)
    replaced = [str(call.target) for call, terms in operations.items() if terms]
    try:
        return not is_same(traced, trace(trial, given, replaced))
    except Untraceable:
        return True


def operate(
    root: nn.Module, piece: nn.Module, operations: Mapping[fx.Node, tuple[Term, ...]], edits: Edits
) -> None:
    """Change modules of a piece of a module; the code stays."""
    for call, constants in edits.constants.items():
        module = piece.get_submodule(call.target)
        for name, array in constants.items():
            _give(module, name, array)
    for call, terms in operations.items():
        module = piece.get_submodule(call.target)
        substitute(root, module, _what_is_left(module, terms))


def rewrite(traced: Traced, edits: Edits) -> fx.GraphModule:
    """A module of the changed graph. The traced graph is used up."""
    root, graph = traced.root, traced.graph
    made: dict[Place, fx.Node] = {}
    for call, constants in edits.constants.items():
        _change(root, graph, call, constants)
    for (reader, source), place in edits.reads.items():
        if reader in edits.removed:
            continue
        if place not in made:
            with graph.inserting_before(_behind(graph, place.node)):
                made[place] = _placed(root, graph, place)
        reader.replace_input_with(source, made[place])
    for call in reversed([n for n in graph.nodes if n in edits.removed]):
        graph.erase_node(call)
    return fx.GraphModule(root, graph, class_name=type(root).__name__)


def _left_by(call: fx.Node, place: Place | None, edits: Edits) -> tuple[Term, ...] | None:
    """What a removed call still does to its data; None if its readers find something else."""
    data = call.all_input_nodes[0]
    source = edits.removed.get(data) or Place(data)
    kept = len(source.terms)
    if place is None or place.node is not source.node or place.terms[:kept] != source.terms:
        return None
    return place.terms[kept:]


def _alike(
    one: fx.Node, other: fx.Node, edits: Edits, left: Mapping[fx.Node, tuple[Term, ...] | None]
) -> bool:
    """Whether two calls of one module have the same fate."""
    if one is other:
        return True
    if (one in left) != (other in left) or left.get(one) or left.get(other):
        return False
    ours, theirs = edits.constants.get(one, {}), edits.constants.get(other, {})
    return ours.keys() == theirs.keys() and all(_same(ours[name], theirs[name]) for name in ours)


def _same(one: Array | None, other: Array | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))


def _give(module: nn.Module, name: str, array: Array | None) -> None:
    """Set a parameter, also one that was computed from others or was not there."""
    if parametrize.is_parametrized(module, name):
        _settle(module)
    _drop_reparametrization(module, name)
    before = getattr(module, name, None)
    like = before if before is not None else next(iter((*module.parameters(), *module.buffers())))
    if array is None:
        setattr(module, name, None)
    elif name in module._buffers:
        setattr(module, name, _tensor(array, like.device))
    else:
        setattr(module, name, nn.Parameter(_tensor(array, like.device), requires_grad=like.requires_grad))
    for flag in ("affine", "elementwise_affine"):
        if before is None and hasattr(module, flag):
            setattr(module, flag, True)


def _drop_reparametrization(module: nn.Module, name: str) -> None:
    for hook in list(module._forward_pre_hooks.values()):
        if is_reparametrization(hook) and hook.name == name:
            remove = remove_spectral_norm if isinstance(hook, SpectralNorm) else remove_weight_norm
            remove(module, name)


def _settle(module: nn.Module) -> None:
    """Make what parametrizations compute plain parameters. (torch's own way takes the properties off the
    class, which copies of the module share.)"""
    values = {name: getattr(module, name).detach() for name in module.parametrizations}
    del module.parametrizations
    (module.__class__,) = type(module).__bases__
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))


def _tensor(array: Array, device: Any) -> torch.Tensor:
    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":  # numpy's is not torch's
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).to(device)
    return torch.from_numpy(array.copy()).to(device)


def substitute(root: nn.Module, module: nn.Module, new: nn.Module) -> None:
    """Put a module in the place of another, wherever that is registered."""
    for owner in list(root.modules()):
        for name, child in owner._modules.items():
            if child is module:
                owner._modules[name] = new


def _what_is_left(module: nn.Module, terms: tuple[Term, ...]) -> nn.Module:
    return (nn.Identity() if not terms else _module_of(terms, _device_of(module))).train(module.training)


def _device_of(module: nn.Module) -> Any:
    return next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def _module_of(terms: tuple[Term, ...], device: Any) -> nn.Module:
    """A module that does what is left over; it needs nothing but torch."""
    root, graph = nn.Module(), fx.Graph()
    value = graph.placeholder("input")
    graph.output(_chained(root, graph, value, terms, device))
    return fx.GraphModule(root, graph, class_name="Affine")


def _chained(
    root: nn.Module, graph: fx.Graph, value: fx.Node, terms: tuple[Term, ...], device: Any
) -> fx.Node:
    for term in terms:
        name = _free_name(root, {torch.mul: "scale", torch.add: "shift"}[term.function])
        root.register_buffer(name, _tensor(term.numbers, device))
        constant = graph.get_attr(name)
        value = graph.call_function(term.function, (value, constant))
    return value


def _free_name(root: nn.Module, stem: str) -> str:
    name, count = stem, 1
    while hasattr(root, name):
        name, count = f"{stem}_{count}", count + 1
    return name


def _placed(root: nn.Module, graph: fx.Graph, place: Place) -> fx.Node:
    return _chained(root, graph, place.node, place.terms, _device_of(root))


def _behind(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """Before which node one may be put that reads this one: arguments come first."""
    last = list(graph.find_nodes(op="placeholder"))[-1] if node.op == "placeholder" else node
    return last.next


def _change(root: nn.Module, graph: fx.Graph, call: fx.Node, constants: Mapping[str, Array | None]) -> None:
    """Give one call other constants, whoever else calls the same module or reads the same tensors."""
    if call.op == "call_module":
        module = copy.deepcopy(root.get_submodule(call.target))
        for name, array in constants.items():
            _give(module, name, array)
        owner, _, name = call.target.rpartition(".")
        name = _free_name(root.get_submodule(owner), f"{name}_folded")
        root.get_submodule(owner).add_module(name, module)
        call.target = f"{owner}.{name}".lstrip(".")
        return
    for name, array in constants.items():
        node = None
        if array is not None:
            attribute = _free_name(root, f"{call.name}_{name}")
            tensor = _tensor(array, _device_of(root))
            root.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))
            with graph.inserting_before(call):
                node = graph.get_attr(attribute)
        put(call, name, node)
