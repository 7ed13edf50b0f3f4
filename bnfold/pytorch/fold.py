"""Folds the BatchNorms of a module into the weights around them, inside PyTorch.

The algebra is that of `bnfold.fold`: what `torch.fx` traces is written down as an ONNX graph, folded there,
and what has changed is done to the module.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import InputError
from ..fold import fold
from ..report import Counts, Decision, Declined, FoldReport, Outcome, Reason
from .aliases import Aliases
from .calls import Call, Unsteady, is_called_plainly, read
from .duplicate import at_rest, cloned, duplicate
from .equal import need_equal, split_arguments
from .reach import is_apart, only_called, runs
from .shadow import Shadow
from .surgery import (
    Edits,
    Inexpressible,
    Term,
    is_noticed,
    operate,
    operations,
    read_off,
    rewrite,
    substitute,
)
from .trace import Traced, Untraceable, trace
from .translate import translate

Operations = Mapping[fx.Node, tuple[Term, ...]]


def fold_module(
    module: nn.Module, example_inputs: Any = None, *, inplace: bool = False
) -> tuple[nn.Module, FoldReport]:
    """Fold every BatchNorm of a module into the weights around it.

    The module is folded as it is in evaluation mode; a BatchNorm that is in training mode inside a module
    that is not stays. Where only modules change, the result has the class and the code of the original:
    a BatchNorm has become an Identity (or what is left of it, a scale and a shift). Where a `forward` calls
    `torch.nn.functional.batch_norm`, say, the result is a `torch.fx.GraphModule`, which takes the arguments
    that the examples have.

    Args:
        module: The module.
        example_inputs: What it may be called with: a tensor, a tuple of arguments, or a dictionary of them
            by name. They tell how many axes the data have, which some folds have to know, and both modules
            are compared on them in float64. Folds hold for data of other sizes as well. None: nothing is
            compared, and convolutions are taken to see batches.
        inplace: Change the module itself, which has to be in evaluation mode; its code is never changed.

    Returns:
        The folded module, in evaluation mode, and what became of each BatchNorm.

    Raises:
        InputError: This is no module that can be folded, or it does not take the examples.
        NotEquivalent: The result does not compute what the original computes: a bug of bnfold. The module
            is as it was.
    """
    _need_module(module)
    if inplace and module.training:
        raise InputError(
            f"{type(module).__name__} is in training mode; call its eval() before it is folded in place"
        )
    work = duplicate(module, type(module).__name__, cloned)
    if module.training:
        at_rest(work)
    folder = _Folder(work, may_rewrite=not inplace)
    with torch.no_grad():
        folder.fold("", _bound(work, example_inputs))
        if example_inputs is not None:
            need_equal(module, folder.root, example_inputs)
    if not inplace:
        return folder.root, folder.report()
    with _all_or_nothing(module):
        for piece, left, edits in folder.done:
            operate(module, piece.of(module), left, edits)
    return module, folder.report()


@dataclass(frozen=True)
class Piece:
    """A part of a module that is folded by itself.

    Attributes:
        path: Where it is.
        names: Of modules there that are called one on the result of the other; empty for the whole.
    """

    path: str
    names: tuple[str, ...] = ()

    def of(self, root: nn.Module) -> nn.Module:
        """The piece of a module."""
        whole = root.get_submodule(self.path)
        if not self.names:
            return whole
        return nn.Sequential(OrderedDict((name, whole.get_submodule(name)) for name in self.names))


class _Folder:
    """The fold of one module, piece by piece.

    Attributes:
        root: The module, as far as it is folded.
        done: What was done to each piece that has kept its code.
    """

    def __init__(self, root: nn.Module, *, may_rewrite: bool) -> None:
        self.root = root
        self.done: list[tuple[Piece, Operations, Edits]] = []
        self._may_rewrite = may_rewrite
        self._batchnorms = {path: m for path, m in root.named_modules() if isinstance(m, _BatchNorm)}
        self._reports: list[FoldReport] = []
        self._seen: set[str] = set()  # the modules that some graph calls
        self._untraced: dict[str, str] = {}

    def fold(self, path: str, given: Mapping[str, Any] | None, may_be_replaced: bool = True) -> None:
        """Fold the module at a path; where it cannot be traced, those inside that its code leaves whole."""
        piece = self.root.get_submodule(path)
        try:
            traced = trace(piece, given)
            rewritable = self._may_rewrite and may_be_replaced and _says_all(traced)
            if traced.optional and not rewritable:
                raise Untraceable(
                    f"{type(piece).__name__}: has optional arguments: {', '.join(sorted(traced.optional))}"
                )
        except Untraceable as error:
            self._untraced[path] = str(error)
            self._fold_parts(path, piece)
            return
        self._fold_inside(path, traced)
        self._fold_traced(Piece(path), traced, given or {}, rewritable)

    def _fold_parts(self, path: str, piece: nn.Module) -> None:
        """What the code of a module that cannot be traced leaves whole."""
        taken: set[str] = set()
        for names in runs(piece):
            if all(is_apart(self.root, piece.get_submodule(name)) for name in names):
                run = Piece(path, names)
                with suppress(Untraceable):
                    self._fold_traced(run, trace(run.of(self.root)), {}, False)
                    taken.update(names)
        for inner, may_be_replaced in only_called(piece).items():
            part = piece.get_submodule(inner)
            if inner not in taken and not _is_torchs_own(part) and is_apart(self.root, part):
                self.fold(_joined(path, inner), None, may_be_replaced)

    def _fold_inside(self, path: str, traced: Traced) -> None:
        """What the graph goes around, each by itself."""
        used = [str(n.target) for n in traced.graph.nodes if n.op in ("get_attr", "call_module")]
        for leaf, why in traced.opaque.items():
            module = traced.root.get_submodule(leaf)
            taken_apart = any(target.startswith(f"{leaf}.") for target in used)
            if _is_torchs_own(module) or taken_apart or not is_apart(self.root, module):
                self._untraced[_joined(path, leaf)] = why
            else:
                self.fold(_joined(path, leaf), None)

    def _fold_traced(self, piece: Piece, traced: Traced, given: Mapping[str, Any], rewritable: bool) -> None:
        path = piece.path
        self._seen |= {_joined(path, target) for target in _touched(traced)}
        calls = {node: _read(traced, node) for node in traced.graph.nodes}
        aliases = Aliases(traced, calls)
        barred = {node: Declined(Reason.MUTATED, f"around {node.name!r}") for node in aliases.impure()}
        while True:
            shadow = translate(traced, calls, barred, given, path)
            report = fold(shadow.model, only="batchnorm")
            try:
                if report.modified:
                    edits = read_off(shadow)
                    _need_own_numbers(aliases, edits)
                    self._write(piece, traced, given, edits, rewritable)
                break
            except Inexpressible as error:
                new = {n: Declined(Reason.IN_CODE, f"{n.name!r}: {error}") for n in error.nodes}
                assert not new.keys() <= barred.keys(), error  # else this would go on for ever
                barred = new | barred
        self._reports.append(_completed(report, shadow, path, bool(given)))

    def _write(
        self, piece: Piece, traced: Traced, given: Mapping[str, Any], edits: Edits, rewritable: bool
    ) -> None:
        try:
            if traced.optional:  # the code does something else for other arguments
                raise Inexpressible((), "it has optional arguments")
            found = operations(traced, edits)
            if is_noticed(piece.of(self.root), traced, given, found, edits):
                raise Inexpressible({*edits.removed, *edits.constants}, "the code looks at the module")
        except Inexpressible:
            if not rewritable:
                raise
            new = rewrite(traced, edits)
            if piece.path:
                substitute(self.root, traced.root, new)
            else:
                self.root = new
        else:
            operate(self.root, traced.root, found, edits)
            self.done.append((piece, found, edits))

    def report(self) -> FoldReport:
        """What became of everything."""
        kept = tuple(self._out_of_reach())
        decisions = tuple(d for report in self._reports for d in report.decisions)
        before, after = (
            _total([getattr(report, when) for report in self._reports], len(kept))
            for when in ("before", "after")
        )
        return FoldReport(decisions + kept, before, after, any(r.modified for r in self._reports))

    def _out_of_reach(self) -> Iterator[Decision]:
        """The BatchNorms that no graph calls."""
        for path, module in self._batchnorms.items():
            if path in self._seen:
                continue
            around = [p for p in (*self._untraced, *self._seen) if not p or f"{path}.".startswith(f"{p}.")]
            reason, detail = Reason.UNREAD, f"{path!r} is never called"
            if around:
                inside = max(around, key=len)
                known = self._untraced.get(inside, f"it is inside {inside!r}, which is not looked into")
                reason, detail = Reason.UNTRACED, known
            yield _kept(path, path, module.num_features, reason, detail)


def _need_module(module: object) -> None:
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        raise InputError(
            f"a torch.nn.Module is needed, and this is a {type(module).__name__}; TorchScript and exported "
            "programs are folded as ONNX models: bnfold export"
        )
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
            raise InputError(
                f"{type(module).__name__}: {name!r} is not initialized; call the module once before"
            )
        if tensor.is_meta:
            raise InputError(f"{type(module).__name__}: {name!r} has no numbers (it is on the meta device)")
    everywhere = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
    if any(everywhere):
        raise InputError(
            "hooks for all modules are registered, which would miss the folded ones; remove them"
        )


@contextmanager
def _all_or_nothing(module: nn.Module) -> Iterator[None]:
    """Give the modules back what they had if not all could be changed."""
    before = [(m, type(m), {k: _shallow(v) for k, v in vars(m).items()}) for m in module.modules()]
    try:
        yield
    except Exception as error:
        for part, kind, attributes in before:
            part.__class__ = kind
            vars(part).clear()
            vars(part).update(attributes)
        raise InputError(
            f"{type(module).__name__} cannot be changed: {type(error).__name__}: {error}; it is as it was"
        ) from error


def _shallow(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, dict) else value


def _bound(module: nn.Module, example_inputs: Any) -> Mapping[str, Any]:
    """The examples by the names of the arguments."""
    arguments, named = split_arguments(example_inputs)
    try:
        bound = (
            inspect.signature(module.forward).bind(*arguments, **named)
            if example_inputs is not None
            else None
        )
    except TypeError as error:
        raise InputError(
            f"{type(module).__name__}.forward does not take the example inputs: {error}"
        ) from error
    return {} if bound is None else bound.arguments


def _touched(traced: Traced) -> Iterator[str]:
    """The modules that the graph calls, or reads tensors of."""
    for node in traced.graph.nodes:
        if node.op == "call_module":
            yield node.target
        elif node.op == "get_attr":
            yield node.target.rpartition(".")[0]


def _read(traced: Traced, node: fx.Node) -> Call | None:
    try:
        return read(traced, node)
    except Unsteady:
        return None


def _need_own_numbers(aliases: Aliases, edits: Edits) -> None:
    """Where a result is changed in place, what takes its place must not be seen by others."""
    shared = aliases.disturbed(edits)
    if shared:
        raise Inexpressible(shared, "the result is changed in place")


def _says_all(traced: Traced) -> bool:
    """Whether the graph is all there is to the module, so that it may take its place."""
    plain = is_called_plainly(type(traced.root)) and not _has_hooks(traced.root)
    return plain and not traced.made and not traced.has_contexts


def _is_torchs_own(module: nn.Module) -> bool:
    """Whether there is nothing inside that could be folded."""
    if isinstance(module, torch.jit.ScriptModule):
        return True
    return type(module).__module__.startswith("torch.") and not module._modules


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def _completed(report: FoldReport, shadow: Shadow, path: str, has_examples: bool) -> FoldReport:
    """The report of a shadow as one of the module."""
    declined = [
        _kept(
            _joined(path, str(node.target)) if node.op == "call_module" else _joined(path, node.name),
            node.name,
            None,
            why.reason,
            why.detail,
        )
        for node, why in shadow.declined.items()
    ]
    decisions = [*report.decisions, *declined]
    if not has_examples:
        decisions = [
            replace(d, detail=f"{d.detail}; give example_inputs") if d.reason is Reason.UNKNOWN_SHAPE else d
            for d in decisions
        ]
    more = len(declined)
    before, after = (_total([c], more) for c in (report.before, report.after))
    return FoldReport(tuple(decisions), before, after, report.modified)


def _total(counts: list[Counts], more: int) -> Counts:
    """The sum, with so many more BatchNormalizations."""
    return Counts(
        sum(c.batchnorms for c in counts) + more,
        sum(c.affines for c in counts),
        sum(c.nodes for c in counts),
    )


def _kept(name: str, value: str, channels: int | None, reason: Reason, detail: str) -> Decision:
    kind = "BatchNormalization"
    return Decision("", (name,), (kind,), value, channels, Outcome.KEPT, reason=reason, detail=detail)


def _joined(path: str, inner: str) -> str:
    return f"{path}.{inner}".strip(".")
