"""Loading what people have in PyTorch: exported programs, weights with the code that takes them, TorchScript.

Nothing that a file holds is run: what only running it would load is refused, and named, unless the caller
says that the file is to be trusted. The only code that runs is the user's own, the factory.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..errors import InputError
from . import archive, plain, state_dict, training
from . import torchscript as scripted
from .archive import Kind
from .factory import Built, build, importable, said
from .quiet import quiet


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model of PyTorch.

    Attributes:
        name: What the user calls it: the path, or "package.module:function".
        program: A `torch.nn.Module`, a `torch.export.ExportedProgram` or a `torch.jit.ScriptModule`.
        notes: One line each on what was decided on the way.
    """

    name: str
    program: Any
    notes: tuple[str, ...] = ()


def load_torch(
    source: str | os.PathLike[str] | None = None,
    *,
    factory: str | None = None,
    arguments: Mapping[str, Any] | Sequence[Any] | None = None,
    state_key: str | None = None,
    pythonpath: Sequence[str] = (),
    torchscript: bool = False,
    unsafe_pickle: bool = False,
) -> Loaded:
    """Load a model of PyTorch, onto the CPU, in whatever mode it is.

    Args:
        source: A program of torch.export.save, a state dict (torch.save, safetensors), or a TorchScript
            archive; recognised by content. None: what the factory builds, with the weights that it has.
        factory: Who builds the module that takes a state dict, as "package.module:function".
        arguments: For the factory: a mapping of keywords, or a sequence of positional arguments.
        state_key: Where the state dict is in the checkpoint, dotted.
        pythonpath: Folders in front of the import path while loading. The current one is not among them.
        torchscript: Accept a TorchScript archive. It runs the code that it holds.
        unsafe_pickle: Run pickled code. Only for files whose maker is trusted.

    Returns:
        The model and what there is to say about it.

    Raises:
        InputError: It cannot be loaded; one line that says why and what to do.
    """
    path = None if source is None else os.fspath(source)
    with importable(pythonpath):
        if path is None:
            return _built(factory, arguments, state_key)
        kind = archive.identify(path)
        if kind is Kind.PROGRAM:
            _need_own_code(path, kind, factory, arguments, state_key)
            return _program(path, unsafe_pickle=unsafe_pickle)
        if kind is Kind.TORCHSCRIPT:
            _need_own_code(path, kind, factory, arguments, state_key)
            return _scripted(path, allowed=torchscript)
        return _weights(path, kind, factory, arguments, state_key, unsafe_pickle=unsafe_pickle)


def _built(factory: str | None, arguments: Any, state_key: str | None) -> Loaded:
    if factory is None:
        raise InputError("there is no model: give a file, or a function that builds one with --model")
    if state_key is not None:
        raise InputError(f"--state-key {state_key}: there is no file of weights to look into; give one")
    module, notes = _bare(build(factory, arguments).module)
    if isinstance(module, torch.jit.ScriptModule):
        scripted.need_evaluation(module, factory)
    used = f"no file of weights: those that {factory} gave the module are used"
    return Loaded(factory, module, (*notes, used))


def _bare(module: Any) -> tuple[Any, tuple[str, ...]]:
    """The module in what distributes or compiles it, neither of which can be exported; and a note on that."""
    wrappers = []
    while True:
        if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            inner = module.module
        else:
            inner = getattr(module, "_orig_mod", None)  # torch.compile
        if not isinstance(inner, torch.nn.Module) or inner is module:
            break
        wrappers.append(type(module).__name__)
        module = inner
    return module, (f"the module inside {' and '.join(wrappers)} is taken",) if wrappers else ()


def _need_own_code(path: str, kind: Kind, factory: str | None, arguments: Any, state_key: str | None) -> None:
    given = {"--model": factory, "--model-args": arguments, "--state-key": state_key}
    odd = [option for option, value in given.items() if value is not None]
    if odd:
        raise InputError(f"{path}: is {kind}, which needs no other code; drop {' and '.join(odd)}")


def _program(path: str, *, unsafe_pickle: bool) -> Loaded:
    archive.need_intact(path)
    if not unsafe_pickle:
        plain.need_plain(path)
    overheard = _Overheard()
    logger = logging.getLogger("torch.export")
    try:
        with quiet():
            logger.addHandler(overheard)  # here, or it would not hear anything either
            program = torch.export.load(path)
    except Exception as error:
        cause = _cause(overheard.error or error)
        raise InputError(
            f"{path}: torch {torch.__version__} cannot load this program: {cause}; "
            "export it again with this version"
        ) from error
    finally:
        logger.removeHandler(overheard)
    return Loaded(path, program, tuple(_training_notes(program)))


def _cause(error: BaseException) -> str:
    while error.__cause__:
        error = error.__cause__
    return said(error).rstrip(".")


class _Overheard(logging.Handler):
    """What went wrong: torch logs that, and raises something else."""

    error: BaseException | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.error = record.exc_info[1]


def _training_notes(program: Any) -> Iterator[str]:
    found = training.in_program(program)
    if found:
        shown = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        yield f"the program was exported in training mode, and stays in it: {shown}"


def _scripted(path: str, *, allowed: bool) -> Loaded:
    if not allowed:
        raise InputError(
            f"{path}: is {Kind.TORCHSCRIPT}, which runs the code that it holds; pass --torchscript to load it"
        )
    return Loaded(path, scripted.load(path))


def _weights(
    path: str,
    kind: Kind,
    factory: str | None,
    arguments: Any,
    state_key: str | None,
    *,
    unsafe_pickle: bool,
) -> Loaded:
    # The factory first: its mistakes are cheaper to find than reading a large file.
    built = None if factory is None else build(factory, arguments)
    checkpoint = state_dict.read(path, kind, unsafe_pickle=unsafe_pickle)
    found = state_dict.select(checkpoint, state_key, path)
    if built is None:
        module, inside = _bare(_need_module(found, path, arguments))
        return Loaded(path, module, (*found.notes, *inside))
    module, inside = _bare(_own(built, str(factory)))
    if isinstance(found.state, torch.nn.Module):
        found = replace(found, state=found.state.state_dict())
    notes = state_dict.fill(module, found, path)
    return Loaded(path, module, (*found.notes, *inside, *notes))


def _need_module(found: state_dict.Found, path: str, arguments: Any) -> Any:
    if isinstance(found.state, torch.nn.Module) and arguments is None:
        return found.state
    raise InputError(
        f"{path}: holds weights ({len(found.state)} tensors), but no module that takes them; name the "
        "function that builds it with --model package.module:function"
    )


def _own(built: Built, factory: str) -> Any:
    """A module that may be filled: a copy, where it is somebody else's."""
    if not built.shared:
        return built.module
    try:
        return copy.deepcopy(built.module)
    except Exception as error:
        raise InputError(
            f"--model {factory}: is a module that cannot be copied ({said(error)}); name a function that "
            "builds one"
        ) from error
