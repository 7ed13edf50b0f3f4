"""PyTorch to ONNX: exported without the exporter's own folds, folded here, compared with the module, written.

The module is left as it was found: what is exported and what is compared with are copies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import onnx_ir as ir
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument
from torch.utils import _pytree

from ..borrow import Borrower
from ..errors import InputError, NotEquivalent, OutputError, Undecided
from ..evaluate import Program
from ..model import save
from ..optimize import deliver, look
from ..places import need_free, scratch
from ..report import ExportReport, InspectReport, ModuleCheck, OptimizeReport
from ..session import Session
from ..verification import Verdict
from .against import compare
from .capture import Captured, capture, placeholders
from .failure import RAISED, causes, recorded, told
from .inputs import Input
from .load import Loaded
from .outputs import called
from .pin import pinned
from .quiet import quiet
from .script_export import SCRIPT_OPSETS, capture_script, write_script
from .signature import Slot, need_signature
from .tidy import tidy

OPSETS = range(18, 24)
"""What torch's exporter writes. Asked for an older one, it writes 18 without a word."""

DEFAULT_OPSET = 20

_TIMEOUT = 300.0
# Shares of the work, for progress: capture and translation, then the algebra gate, then the module.
_EXPORTED, _FOLDED = 0.3, 0.65

Source: TypeAlias = nn.Module | ExportedProgram | torch.jit.ScriptModule | Loaded


@dataclass(frozen=True, eq=False)
class Exported:
    """An ONNX model as it was exported, unfolded.

    Attributes:
        model: Its weights are the module's own memory.
        captured: What it was made from.
        notes: One line each for the user.
    """

    model: ir.Model
    captured: Captured
    notes: tuple[str, ...]


def to_onnx(source: Source, *, inputs: Sequence[str | Input] = (), opset: int | None = None) -> Exported:
    """Export a module in evaluation mode, without folding anything.

    Args:
        source: The module, program or TorchScript module; or what `load_torch` has loaded.
        inputs: What it is called with, as "x:float32[N,3,224,224]".
        opset: Version of the ONNX operators.

    Raises:
        InputError: The inputs do not fit, or torch cannot export the module.
    """
    name, program, notes = _opened(source)
    is_script = isinstance(program, torch.jit.ScriptModule)
    wanted = DEFAULT_OPSET if opset is None else opset
    known = SCRIPT_OPSETS if is_script else OPSETS
    if wanted not in known:
        raise InputError(f"{name}: torch cannot write opset {wanted}; it can write {known[0]} to {known[-1]}")
    if is_script:
        captured = capture_script(name, program, inputs)
        model = write_script(captured, wanted)
    else:
        captured = capture(name, program, inputs)
        model = _translated(captured, wanted)
    return Exported(model, captured, (*notes, *captured.notes))


def export(
    source: Source,
    target: str | os.PathLike[str] | None = None,
    *,
    inputs: Sequence[str | Input] = (),
    opset: int | None = None,
    fold: bool = True,
    only: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    verify: Literal["full", "fast", "none"] = "full",
    changes: bool = False,
    progress: Callable[[float], None] | None = None,
) -> ExportReport:
    """Export a module to ONNX, fold it, compare the result with the module, and write it.

    A model of more than 2 GiB is written with its weights in a file beside it.

    Args:
        source: The module, in any mode: it is exported in evaluation mode, and left as it is. Or an
            ExportedProgram, a TorchScript module, or what `load_torch` has loaded.
        target: Where the result goes; "-" is the standard output. None only for a dry run.
        inputs: What the module is called with, as "x:float32[N,3,224,224]": numbers are fixed sizes, names
            free ones, `[]` is a scalar. An ExportedProgram knows its inputs.
        opset: Version of the ONNX operators.
        fold: Whether to fold.
        only: As for `optimize`.
        force: Whether a file that is there may be replaced.
        dry_run: Do everything but write the result.
        verify: "full" compares the result with the module in float64, and with the unfolded export in
            float64 and in onnxruntime; "fast" leaves out onnxruntime; "none" trusts all.
        changes: As for `optimize`.
        progress: Called with the share of the work that is done, from 0 to 1.

    Raises:
        InputError: The inputs do not fit the module, or torch cannot export it.
        OutputError: The target exists and `force` is not given, or it cannot be written.
        NotEquivalent: The result does not compute what the module computes. Nothing was written.
        Undecided: They could not be compared. Nothing was written.
    """
    name = _opened(source)[0]
    goal = _goal(name, target, force=force, dry_run=dry_run)
    advance = progress or (lambda share: None)
    exported = to_onnx(source, inputs=inputs, opset=opset)
    advance(_EXPORTED)
    check: ModuleCheck | None = None
    with scratch() as folder:
        original = folder / "exported.onnx"
        save(exported.model, original)

        def witness(result: Path, done: OptimizeReport) -> None:
            nonlocal check
            check = _checked(
                exported, original, result, lambda share: advance(_FOLDED + share * (1 - _FOLDED))
            )
            _need_pass(_report(exported, done, check, folds=fold))

        try:
            done = deliver(
                str(original),
                goal,
                called=name,
                force=force,
                dry_run=dry_run,
                only=only,
                verify=verify,
                folds=fold,
                witness=None if verify == "none" else witness,
                changes=changes,
                progress=lambda share: advance(_EXPORTED + share * (_FOLDED - _EXPORTED)),
            )
        except InputError as error:  # the file that it names is nothing to the user
            raise InputError(str(error).replace(str(original), name)) from error
    return _report(exported, done, check, folds=fold)


def inspect_module(
    source: Source,
    *,
    inputs: Sequence[str | Input] = (),
    opset: int | None = None,
    only: str | None = None,
    changes: bool = False,
) -> InspectReport:
    """Say what BatchNormalizations a module has when it is exported, and what would become of them.

    Args:
        source, inputs, opset: As for `export`.
        only, changes: As for `optimize`.

    Raises:
        InputError: The inputs do not fit the module, or torch cannot export it.
    """
    exported = to_onnx(source, inputs=inputs, opset=opset)
    return look(exported.model, exported.captured.name, only=only, changes=changes)


def _opened(source: Source) -> tuple[str, Any, tuple[str, ...]]:
    """Its name, what is to be exported, and the notes from loading it."""
    if isinstance(source, Loaded):
        return source.name, source.program, source.notes
    if isinstance(source, nn.Module | ExportedProgram):
        return type(source).__name__, source, ()
    raise InputError(
        f"a {type(source).__name__} cannot be exported: give a torch.nn.Module, an ExportedProgram, or what "
        "load_torch has loaded"
    )


def _goal(name: str, target: str | os.PathLike[str] | None, *, force: bool, dry_run: bool) -> str:
    """The target, which can be written to as far as one can see before the long work."""
    if target is None:
        if dry_run:
            return "the result"
        raise OutputError(f"{name}: where the model shall be written was not said; name a target")
    goal = os.fspath(target)
    if not goal:
        raise OutputError(f"{name}: the name of the target is empty; name a file")
    if not dry_run:
        need_free(goal, force=force)
    return goal


# Export


def _translated(captured: Captured, opset: int) -> ir.Model:
    """The ONNX model of a program, unfolded and tidied."""
    program = captured.program
    assert isinstance(program, ExportedProgram)
    for i, spec in enumerate(program.graph_signature.output_specs):
        if isinstance(spec.arg, ConstantArgument) and spec.arg.value is not None:
            raise InputError(
                f"{captured.name}: output {i} of the module is the constant {spec.arg.value!r}, which an "
                "ONNX model cannot return; return tensors only"
            )
    try:
        with torch.no_grad(), quiet():
            written = torch.onnx.export(
                pinned(program), dynamo=True, optimize=False, verbose=False, opset_version=opset
            )
    except RAISED as error:
        raise _untranslatable(captured.name, error) from error
    model: ir.Model = written.model
    leaves = list(program.graph_signature.user_outputs)
    names = called(_pytree.tree_unflatten(leaves, program.call_spec.out_spec))
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    inputs = [Slot.of(value) for value in placeholders(program)]
    need_signature(captured.name, model, inputs, [Slot.of(values[n]) for n in leaves if n is not None])
    tidy(model, captured.inputs, names, captured.symbols)
    return model


def _untranslatable(name: str, error: BaseException) -> InputError:
    """The error for what torch's exporter cannot do."""
    chain = list(causes(error))
    reasons = [told(e) for e in chain]
    first = next((r for r in reasons if r.startswith("No ONNX function")), reasons[-1])
    place = next(filter(None, (recorded(e) for e in chain)), "")
    at = f"; {place}" if place else ""
    return InputError(f"{name}: torch.onnx.export cannot translate it: {first}{at}")


# Checks and reports


def _checked(
    exported: Exported, original: Path, result: Path, progress: Callable[[float], None]
) -> ModuleCheck:
    with ExitStack() as stack:
        programs = []
        for path in (original, result):
            borrower = Borrower(Program(path).model, lambda: Session(_TIMEOUT))
            stack.callback(borrower.close)
            programs.append(Program(path, elsewhere=borrower))
        return compare(exported.captured, programs[0], programs[1], progress=progress)


def _report(
    exported: Exported, done: OptimizeReport, check: ModuleCheck | None, *, folds: bool
) -> ExportReport:
    graph = exported.model.graph
    nodes = ir.traversal.RecursiveGraphIterator(graph)
    return ExportReport(
        source=done.source,
        target=done.target,
        notes=exported.notes if check is not None else (*exported.notes, *exported.captured.assumed),
        inputs=tuple(map(_shown, graph.inputs)),
        outputs=tuple(map(_shown, graph.outputs)),
        opset=graph.opset_imports[""],
        batchnorms=done.fold.after.batchnorms
        if folds
        else [n.op_type for n in nodes].count("BatchNormalization"),
        fold=done.fold if folds else None,
        verification=done.verification,
        module=check,
        changes=done.changes,
    )


def _shown(value: ir.Value) -> str:
    """As "x: float32[N, 3, 224, 224]"."""
    kind = "?" if value.dtype is None else value.dtype.numpy().name
    dims = "?" if value.shape is None else ", ".join(map(_dim, value.shape))
    return f"{value.name}: {kind}[{dims}]"


def _dim(size: int | ir.SymbolicDim) -> str:
    return str(size) if isinstance(size, int) else str(size.value or "?")


def _need_pass(report: ExportReport) -> None:
    check = report.module
    if check is None or check.verdict is Verdict.PASS:
        return
    if check.verdict is Verdict.UNDECIDED:
        raise Undecided(
            f"{report.source}: whether the exported model is equivalent to the module could not be decided: "
            f"{check.message}; nothing was written (--verify none writes the result unchecked)",
            report,
        )
    raise NotEquivalent(
        f"{report.source}: the exported model is not equivalent to the module: {check.message}; nothing was "
        "written; torch's exporter may be wrong here (if --no-fold passes, please report a bug of bnfold)",
        report,
    )
