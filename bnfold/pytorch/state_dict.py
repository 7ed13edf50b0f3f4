"""State dicts: read from a checkpoint, found in it, and put into a module, all of it or nothing.

A value without a place and a place without a value are errors (`misfit` tells them). What is done to make
names fit (wrappers taken off) and types fit (float16 into float32) is noted.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from ..errors import InputError
from . import archive, pickles
from .archive import Kind
from .factory import described, said
from .misfit import Misfit, counted, few

# DataParallel and DistributedDataParallel; torch.compile, which may have compiled a part only.
_IN_FRONT: Final = re.compile(r"^(?:module\.|_orig_mod\.)+")
_ANYWHERE: Final = re.compile(r"(?<![^.])(?:module\.|_orig_mod\.)+")

_COUNTER: Final = "num_batches_tracked"
"""Only momentum=None reads it, and only in training mode; checkpoints from before torch 0.4.1 have none."""

_DEPTH: Final = 4  # of dicts in dicts that are searched


def read(path: str, kind: Kind, *, unsafe_pickle: bool) -> Any:
    """The object in a checkpoint, on the CPU; weights stay in the mapped file where the format allows.

    Args:
        path: The file.
        kind: PICKLED, LEGACY or SAFETENSORS.
        unsafe_pickle: Run whatever the pickle says.

    Raises:
        InputError: It is damaged, or holds more than tensors (with the names of the classes).
    """
    if kind is Kind.SAFETENSORS:
        return _read_safetensors(path)
    if kind is Kind.PICKLED:
        archive.need_intact(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(
                path, map_location="cpu", weights_only=not unsafe_pickle, mmap=kind is Kind.PICKLED
            )
    except Exception as error:
        strangers = pickles.strangers(path)
        if strangers and not unsafe_pickle:
            raise InputError(f"{path}: {_refusal(strangers)}") from error
        if isinstance(error, ImportError | AttributeError):
            raise InputError(
                f"{path}: its pickle needs code that is not there ({said(error)}); name its folder "
                "with --pythonpath"
            ) from error
        raise archive.damaged(path, error) from error


def _read_safetensors(path: str) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise InputError(
            f"{path}: needs safetensors, which is not installed; pip install 'bnfold[torch]'"
        ) from error
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise archive.damaged(path, error) from error


def _refusal(strangers: tuple[str, ...]) -> str:
    if all(name.startswith("numpy.") for name in strangers):
        return (
            f"holds values of numpy ({', '.join(strangers[:5])}), and loading those runs code; save the "
            "state dict alone (torch.save(model.state_dict(), path)), or numbers by .item() and arrays by "
            "torch.from_numpy; or pass --unsafe-pickle if you trust whoever made the file"
        )
    layers = [name for name in strangers if name.startswith("torch.nn.modules.")]
    named = [name for name in strangers if name not in layers] + layers
    shown = ", ".join(named[:5]) + (f" and {len(named) - 5} more" if len(named) > 5 else "")
    what = "a pickled module" if layers else "pickled objects besides tensors"
    return (
        f"holds {what}, and loading it runs code ({shown}); save a state dict instead "
        "(torch.save(model.state_dict(), path)) and name its module with --model, or pass --unsafe-pickle "
        "if you trust whoever made the file"
    )


@dataclass(frozen=True, eq=False)
class Found:
    """What was chosen of a checkpoint.

    Attributes:
        state: A mapping of names to tensors, or a module (of a pickle that was run).
        path: Where it was, dotted; "" at the top.
        notes: That it was chosen without having been named.
    """

    state: Any
    path: str
    notes: tuple[str, ...] = ()


def select(checkpoint: Any, key: str | None, name: str) -> Found:
    """The state dict, or the module, that is meant.

    Args:
        checkpoint: What the file holds.
        key: Dotted; its last parts may be the beginning of tensor names ("state_dict.model"). None: the only
            one there is.
        name: What the user calls the file.

    Raises:
        InputError: There is none, or there are several.
    """
    found = dict(_state_dicts(checkpoint))
    if key is not None:
        state = _resolve(checkpoint, key)
        if state is None:
            raise InputError(f"{name}: --state-key {key} leads to no state dict; {_where(found)}")
        return Found(state, key)
    if "" in found:
        return Found(found[""], "")
    if len(found) == 1:
        ((path, state),) = found.items()
        return Found(state, path, (f"state dict taken from {path!r} of {name}",))
    if found:
        raise InputError(f"{name}: holds several state dicts; choose with --state-key: {', '.join(found)}")
    if _holds_tensors(checkpoint):
        return Found(checkpoint, "")  # what else it holds will be unexpected
    raise InputError(
        f"{name}: holds {described(checkpoint)}, no state dict; save one with "
        "torch.save(model.state_dict(), path)"
    )


def _holds_tensors(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and all(isinstance(key, str) for key in value)
        and any(isinstance(inner, torch.Tensor) for inner in value.values())
    )


def _state_dicts(value: Any, path: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Any]]:
    """The mappings of names to tensors, and the modules, by their dotted path."""
    if isinstance(value, torch.nn.Module):
        yield path, value
    elif isinstance(value, Mapping) and depth and all(isinstance(key, str) for key in value):
        tensors = [
            isinstance(inner, torch.Tensor)
            for key, inner in value.items()
            if not key.endswith("_extra_state")
        ]
        if tensors and all(tensors):
            yield path, value
        else:
            for key, inner in value.items():
                yield from _state_dicts(inner, f"{path}.{key}" if path else key, depth - 1)


def _resolve(value: Any, key: str) -> Any:
    """What a dotted key leads to; names of the file may hold dots themselves, so longer names go first."""
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    if not isinstance(value, Mapping):
        return None
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        head, rest = ".".join(parts[:end]), ".".join(parts[end:])
        if head not in value or isinstance(value[head], torch.Tensor):
            continue
        found = _resolve(value[head], rest) if rest else dict(_state_dicts(value[head])).get("")
        if found is not None:
            return found
    beneath = {n.removeprefix(f"{key}."): v for n, v in value.items() if str(n).startswith(f"{key}.")}
    return beneath or None


def _where(found: Mapping[str, Any]) -> str:
    if not found:
        return "the file holds none"
    return "there is one at the top, drop --state-key" if "" in found else f"there is {', '.join(found)}"


def fill(module: Any, found: Found, name: str) -> list[str]:
    """Load a state dict into a module, strictly; the notes on what was made to fit.

    Args:
        module: The `torch.nn.Module`; what is on the meta device takes the tensors of the file themselves.
        found: The state dict.
        name: What the user calls the file.

    Raises:
        InputError: Names, shapes or kinds of numbers differ. The module may be half filled then.
    """
    own = module.state_dict()
    state, notes = _unwrapped(found.state, own, name)
    assign = any(tensor.is_meta for _, tensor in _tensors(module))
    notes += _types(own, state, name, assign=assign)
    missing, unexpected, error = _loaded(module, own, state, assign=assign)
    tied = _tied(module, state, name)
    alone = [key for key in (*missing, *unexpected) if _is_counter(key)]
    missing = [key for key in missing if key not in tied and not _is_counter(key)]
    unexpected = [key for key in unexpected if not _is_counter(key)]
    if missing or unexpected or error is not None:
        misfit = Misfit(own, state, missing, unexpected, found.path, error)
        raise InputError(f"{name}: does not fit the module: {misfit}") from error
    hollow = [key for key, tensor in _tensors(module) if tensor.is_meta]
    if hollow:
        raise InputError(
            f"{name}: has no values for {few(hollow)}, which the factory left on the meta device; "
            "build the module on the CPU"
        )
    if alone:
        notes.append(f"{_COUNTER} of {counted(len(alone), 'layer')} is in one of {name} and the module only")
    return notes


def _loaded(
    module: Any, own: Mapping[str, Any], state: Mapping[str, Any], *, assign: bool
) -> tuple[list[str], list[str], Exception | None]:
    """Missing and unexpected names, and what else torch objects to."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about gradients and meta tensors: neither matters here
            keys = module.load_state_dict(state, strict=False, assign=assign)
        return list(keys.missing_keys), list(keys.unexpected_keys), None
    except Exception as error:  # shapes; or whatever a hook of the module's own thinks of it
        return [key for key in own if key not in state], [key for key in state if key not in own], error


def _tied(module: Any, state: Mapping[str, Any], name: str) -> set[str]:
    """Names that share their parameter with one that the file has: safetensors stores such a tensor once."""
    groups: dict[int, list[str]] = {}
    for key, tensor in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(tensor), []).append(key)
    tied: set[str] = set()
    for group in groups.values():
        there = [key for key in group if key in state]
        for key in there[1:]:
            if not _same(state[there[0]], state[key]):
                raise InputError(
                    f"{name}: has different values for {there[0]!r} and {key!r}, which are one parameter of "
                    "the module; build the module without tying them"
                )
        tied.update(group if there else ())
    return tied


def _same(one: Any, other: Any) -> bool:
    if one is other or (one.shape, one.dtype) != (other.shape, other.dtype):
        return one is other
    return bool(torch.equal(one, other))


def _unwrapped(
    state: Mapping[str, Any], own: Mapping[str, Any], name: str
) -> tuple[OrderedDict[str, Any], list[str]]:
    """The state dict without the names of wrappers, where it fits better so."""
    best, chosen = len(state.keys() ^ own.keys()), None
    for pattern in (_IN_FRONT, _ANYWHERE):
        names = {pattern.sub("", key) for key in state}
        if len(names) == len(state) and len(names ^ own.keys()) < best:
            best, chosen = len(names ^ own.keys()), pattern
    renamed = OrderedDict((chosen.sub("", key) if chosen else key, value) for key, value in state.items())
    # Beside the tensors are the versions of the layers, without which old files would be misread.
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        renamed._metadata = OrderedDict(  # type: ignore[attr-defined]  # where torch looks for it
            (chosen.sub("", f"{key}.")[:-1] if chosen else key, value) for key, value in versions.items()
        )
    if chosen is None:
        return renamed, []
    changed = [key for key in state if chosen.search(key)]
    marks = sorted({mark for key in changed for mark in chosen.findall(key)})
    where = "prefix" if chosen is _IN_FRONT else "wrapper"
    shown = " and ".join(map(repr, marks))
    return renamed, [f"{where} {shown} stripped from {counted(len(changed), 'name')} of {name}"]


def _types(own: Mapping[str, Any], state: Mapping[str, Any], name: str, *, assign: bool) -> list[str]:
    """Notes on values whose type changes; integers for floats, or what is no dense tensor, are errors."""
    pairs: Counter[tuple[Any, Any]] = Counter()
    for key in own.keys() & state.keys():
        if not isinstance(own[key], torch.Tensor):  # the module's own extra state
            continue
        _need_dense(key, state[key], name)
        there, here = state[key].dtype, own[key].dtype
        if there == here or _is_counter(key):
            continue
        if (there.is_floating_point, there.is_complex) != (here.is_floating_point, here.is_complex):
            raise InputError(
                f"{name}: {key!r} is {_dtype(there)}, but {_dtype(here)} in the module; "
                "these are not the weights of this module (are they quantized?)"
            )
        pairs[there, here] += 1
    notes = []
    for (there, here), times in sorted(pairs.items(), key=str):
        became = "taken over" if assign else f"{_change(there, here)} {_dtype(here)}"
        tensors = counted(times, f"{_dtype(there)} tensor")
        notes.append(f"{tensors} of {name} {became}; the module has {_dtype(here)} there")
    return notes


def _need_dense(key: str, value: Any, name: str) -> None:
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{name}: {key!r} is {described(value)}, but a tensor in the module; save it as one")
    if value.layout is not torch.strided:
        raise InputError(
            f"{name}: {key!r} is a sparse tensor ({_dtype(value.layout)}), and the module takes dense ones; "
            "save it as .to_dense()"
        )


def _change(there: Any, here: Any) -> str:
    return "widened exactly to" if torch.promote_types(there, here) == here else "rounded to"


def _tensors(module: Any) -> Iterator[tuple[str, Any]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _is_counter(key: str) -> bool:
    return key.rpartition(".")[2] == _COUNTER


def _dtype(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
