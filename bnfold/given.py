"""Reads the inputs that a user gives, and holds them against what the model declares.

A feed is an `.npz` file (arrays by input name), an `.npy` file (for a model with one input), or a folder
of ONNX's own kind (`input_0.pb`, ...). A folder of any of these is so many feeds, sorted by name.
Nothing is unpickled. Whatever arrays a user gives elsewhere are read and held against the model by the same
functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError
from .feeds import Array, Feed, Input, inputs_of

if TYPE_CHECKING:
    import onnx

_KINDS = ".npz files, .npy files, or ONNX test data (input_0.pb, ...)"


def given(path: Path, model: onnx.ModelProto) -> Iterator[Feed]:
    """The feeds that a file or folder holds, in order.

    All are read and checked at the call, so that the last wrong file is reported before the first run;
    then they are read again one at a time, as they are asked for.

    Args:
        path: The file or folder.
        model: What they are for; its weights need not be loaded.

    Raises:
        InputError: There is nothing to read, a file is corrupt or pickled, or an array does not fit
            the model: missing, unknown, empty, of another type or shape, or an index out of its table.
    """
    inputs = inputs_of(model)
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder; give {_KINDS}, or a folder of them")
    found = sources(path)
    if not found:
        raise InputError(f"{path}: this folder holds no inputs; expected {_KINDS}")
    for source in found:
        _read(source, inputs)
    return (_read(source, inputs) for source in found)


def sources(path: Path) -> list[Path]:
    """The files and folders that are one feed each, in order: the path itself, or what the folder holds.

    Raises:
        InputError: The folder cannot be listed.
    """
    if not path.is_dir() or any(path.glob("input_*.pb")):
        return [path]
    with reading(path):
        names = sorted(path.iterdir(), key=_counting)
    folders = [name for name in names if name.is_dir() and any(name.glob("input_*.pb"))]
    return folders + [name for name in names if name.suffix in (".npz", ".npy") and name.is_file()]


def _counting(path: Path) -> list[tuple[int, str]]:
    """Sorts 2 before 10."""
    return [(int(digits or 0), text) for digits, text in re.findall(r"(\d+)|(\D+)", path.name)]


def _read(source: Path, inputs: Sequence[Input]) -> Feed:
    if source.is_dir():
        arrays = test_data(source, inputs)
    elif source.suffix == ".npz":
        arrays = _archive(source)
    elif source.suffix == ".npy":
        arrays = {only(source, inputs).name: _array(source)}
    else:
        raise InputError(
            f"{source}: is neither .npz nor .npy; save arrays with numpy.savez(path, name=array)"
        )
    need_names(source, inputs, arrays)
    arrays, sizes = fitted(source, inputs, arrays)
    return Feed(arrays, ", ".join([str(source), *(f"{name}={size}" for name, size in sizes.items())]))


@contextmanager
def reading(source: Path) -> Iterator[None]:
    """Whatever is wrong with a file is an InputError.

    The readers of numpy, zipfile and protobuf raise about everything on bytes they did not expect.
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{source}: is too large for the memory here; give smaller batches") from error
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        if "pickle" in str(error):
            why = "holds pickled objects, which are never loaded, since they could run any code"
            raise InputError(f"{source}: {why}; save arrays of numbers instead") from error
        raise InputError(f"{source}: is corrupt ({' '.join(str(error).split())}); write it again") from error


def _archive(source: Path) -> dict[str, Array]:
    # Opened here: numpy leaves a file open that it finds to be corrupt.
    with reading(source), source.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _array(source: Path) -> Array:
    with reading(source), source.open("rb") as file:
        array: Array = np.load(file, allow_pickle=False)
        return array


def only(source: object, inputs: Sequence[Input]) -> Input:
    """The one input that an array without a name can be for.

    Raises:
        InputError: There are more, or none.
    """
    if len(inputs) != 1:
        raise InputError(
            f"{source}: is one array, but the model has {len(inputs)} inputs: "
            f"{listed(i.name for i in inputs)}; give an array for each, by name (as in an .npz file)"
        )
    return inputs[0]


def test_data(folder: Path, inputs: Sequence[Input]) -> dict[str, Array]:
    """ONNX's own kind of test data: by the names in the tensors if they are inputs' names, else by number.

    Raises:
        InputError: A file is corrupt, not numbered, or refers to another one.
    """
    import onnx

    found: dict[int, tuple[str, Array]] = {}
    for file in folder.glob("input_*.pb"):
        if not file.stem.removeprefix("input_").isdecimal():
            raise InputError(
                f"{file}: is not numbered; the files of a data set are input_0.pb, input_1.pb, ..."
            )
        with reading(file):
            tensor = onnx.load_tensor(str(file))
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                raise InputError(f"{file}: keeps its numbers in another file; store them inside")
            array = onnx.numpy_helper.to_array(tensor)
        found[int(file.stem.removeprefix("input_"))] = tensor.name, array
    names = [i.name for i in inputs]
    if all(name in names for name, _ in found.values()):
        return dict(found.values())
    return {names[i] if i < len(names) else f"input_{i}.pb": array for i, (_, array) in sorted(found.items())}


def need_names(source: object, inputs: Sequence[Input], arrays: Iterable[str]) -> None:
    """Refuse arrays that are not those of the inputs, by name.

    Raises:
        InputError: One is missing, or there is one too many.
    """
    names, there = [i.name for i in inputs], list(arrays)
    told = f"the model's inputs are {listed(names)}"
    if missing := [name for name in names if name not in there]:
        raise InputError(f"{source}: has no array for {listed(missing)}; it has {listed(there)}; {told}")
    if extra := [name for name in there if name not in names]:
        raise InputError(f"{source}: has arrays that the model does not read: {listed(extra)}; {told}")


def fitted(
    source: object, inputs: Sequence[Input], arrays: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, int]]:
    """The arrays in the types of their inputs, and the free sizes by name.

    Args:
        source: Where they are from, for messages.
        inputs: What they are for.
        arrays: One for each input.

    Raises:
        InputError: One is of another type, rank or shape, empty, or an index out of its table; or a free
            size is not the same everywhere.
    """
    typed = {i.name: _typed(source, i, arrays[i.name]) for i in inputs}
    return typed, _need_binding(source, inputs, typed)


def _typed(source: object, target: Input, array: Array) -> Array:
    """The array in the type of its input.

    A float of another width is taken, since numpy makes float64 unless told otherwise and both models
    get the same rounded numbers; so is an integer that fits. An integer for a float is not: mostly
    those are pixels that were to be scaled, and the comparison would be made far from where the model
    is used.
    """
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        raise InputError(f"{source}: array '{target.name}' holds no numbers")
    ours, theirs = target.dtype, array.dtype
    if theirs.kind == "V" and ours.kind == "V" and theirs.itemsize == ours.itemsize:
        array, theirs = array.view(ours), ours  # numpy's files do not know the names of these types
    kinds = [_kind(ours), _kind(theirs)]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"{source}: array '{target.name}' is {theirs.name}, but the model's input is {ours.name}; "
            "convert it as the program that uses the model does (scaling included) and save it again"
        )
    cast = array if ours == theirs else _cast(source, target, array)
    if (
        target.bound is not None
        and cast.size
        and not (-target.bound <= cast.min() <= cast.max() < target.bound)
    ):
        raise InputError(
            f"{source}: array '{target.name}' holds {cast.min()} to {cast.max()}, but it is an index into a "
            f"table of {target.bound} rows; keep it within 0 to {target.bound - 1}"
        )
    return cast


def _cast(source: object, target: Input, array: Array) -> Array:
    """The array in a type of the same kind, if nothing but digits is lost."""
    with np.errstate(all="ignore"):
        cast = array.astype(target.dtype)
    lost = np.isfinite(array) & ~np.isfinite(cast) if _kind(target.dtype) == "float" else cast != array
    if lost.any():
        raise InputError(
            f"{source}: array '{target.name}' is {array.dtype.name} and holds {array[lost].flat[0]}, which "
            f"the model's {target.dtype.name} cannot hold"
        )
    return cast


def _kind(dtype: np.dtype[Any]) -> str:
    """Types of one kind are cast to one another."""
    return next((kind for kind in ("float", "int") if kind in dtype.name), dtype.name)


def _need_binding(source: object, inputs: Sequence[Input], arrays: Mapping[str, Array]) -> dict[str, int]:
    """The free sizes by name, where shapes agree with the declared ones and with each other."""
    sizes: dict[str, int] = {}
    for target in inputs:
        shape = arrays[target.name].shape
        where = f"{source}: array '{target.name}' has shape {list(shape)}"
        if 0 in shape and 0 not in (target.shape or ()):
            raise InputError(f"{where}: it is empty, so there is nothing to run; give at least one row")
        if target.shape is not None:
            _need_shape(where, shape, target.shape, sizes)
    return sizes


def _need_shape(
    where: str, shape: Sequence[int], declared: Sequence[int | str], sizes: dict[str, int]
) -> None:
    """Hold one shape against the declared one; `sizes` has the free sizes until here, and gets new ones."""
    expected = f"[{', '.join(map(str, declared))}]"
    if len(declared) != len(shape):
        raise InputError(f"{where}, but the model's input has rank {len(declared)}: {expected}")
    for axis, (size, dim) in enumerate(zip(shape, declared, strict=True)):
        if isinstance(dim, int):
            if size != dim:
                raise InputError(f"{where}, but the model's input is {expected}: axis {axis} has to be {dim}")
        # Some exporters give every free size of an input one name, which then says nothing.
        elif declared.count(dim) == 1 and sizes.setdefault(dim, size) != size:
            raise InputError(
                f"{where}, so '{dim}' would be {size}, but another input makes it {sizes[dim]}; the model "
                "wants one size for it"
            )


def listed(names: Iterable[object]) -> str:
    """Names in quotes, for messages."""
    return ", ".join(f"'{name}'" for name in names) or "none"
