"""Opens the data that a user calibrates with, and checks each batch against the model's inputs.

They are files (`.npz`, `.npy`, a folder of them, ONNX's `test_data_set_*`, a folder of images) or Python's
(`package.module:name`, or any iterable). Data are read several times, from the start each time, a few rows at
a time. What is read is held against the model before anybody sees it, so a fault has a name and a place.
Nothing is unpickled.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
import sysconfig
import traceback
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from .errors import InputError
from .feeds import Array, Input
from .given import fitted, listed, need_names, only, reading, sources, test_data
from .images import ImageOptions, Preparation, find
from .samples import Rows

# A batch that nobody has looked at yet, and where it is from
Found = tuple[str, Mapping[str, Array]]

_KINDS = (
    "an .npz or .npy file, a folder of them, ONNX test data, a folder of images, or package.module:name for "
    "an iterable"
)
# Bytes of a file that are read at once, if a single row is not larger.
_AT_ONCE = 1 << 24


class Data(Protocol):
    """Batches that fit a model: arrays by name of the input, from the start for each `iter`.

    Attributes:
        name: What the user calls them.
        count: How many samples they are; None as long as nobody has read them all.
    """

    @property
    def name(self) -> str: ...
    @property
    def count(self) -> int | None: ...
    def __iter__(self) -> Iterator[Mapping[str, Array]]: ...


def open_data(
    spec: str | os.PathLike[str],
    inputs: Sequence[Input],
    *,
    rows: Rows | None = None,
    images: ImageOptions | None = None,
) -> Data:
    """The data that a path or the name of a Python object stands for.

    The headers of all files are read and checked here, so that the last wrong one is reported before anything
    runs.

    Args:
        spec: A file, a folder, or `package.module:name`: an iterable, or a function without arguments that
            returns one. The module is searched for in the current folder first, as by `python -m`.
        inputs: What the model reads.
        rows: Which inputs hold one row per sample; None for `Rows.of`.
        images: What the model does not tell about a folder of images.

    Raises:
        InputError: There is nothing of that name, it does not fit the model, holds no samples, or would have
            to be unpickled. While the data are read: the same, or NaN in them, or other samples than before.
    """
    name = os.fspath(spec)
    fit = _Fit.of(inputs, rows)
    if isinstance(spec, str) and _is_python(spec):
        _need_no_images(name, images)
        return _iterable(name, fit, _imported(name), _as_program)
    path = Path(spec)
    with reading(path):
        if not path.exists():
            raise InputError(f"{name}: there is no such file or folder; give {_KINDS}")
    files = sources(path)
    if not files:
        pictures = find(path)
        if not pictures:
            raise InputError(f"{name}: this folder holds no data; expected {_KINDS}")
        return _pictures(name, fit, Preparation.of(inputs, images or ImageOptions()), pictures)
    _need_no_images(name, images)
    if not path.is_dir() and not (path.suffix in (".npz", ".npy") and path.is_file()):
        raise InputError(f"{name}: is no data that can be read; give {_KINDS}")
    counts = [None if file.is_dir() else _need_headers(file, fit) for file in files]
    known = [count for count in counts if count is not None]
    return _Batches(
        name,
        fit,
        lambda: (found for file in files for found in _stored(file, fit)),
        sum(known) if len(known) == len(files) else None,
    )


def check(batches: Any, inputs: Sequence[Input], name: str, *, rows: Rows | None = None) -> Data:
    """The data of a Python object.

    Args:
        batches: An iterable, or a function without arguments that returns one. Each batch is a mapping by
            name of the input, a tuple or list in the order of the inputs, or one array if there is one input.
            An array is whatever numpy can make one of by its protocol. A mapping or an array in place of the
            iterable is the only batch.
        inputs: What the model reads.
        name: What messages call the data.
        rows: Which inputs hold one row per sample; None for `Rows.of`.

    Raises:
        InputError: It cannot be iterated, or only once. While the data are read: the iterable raises, or a
            batch does not fit.
    """
    return _iterable(name, _Fit.of(inputs, rows), batches, nullcontext)


@dataclass(frozen=True)
class _Fit:
    """What batches are held against.

    Attributes:
        inputs: The model's, but with a free first dimension, "*", where it counts samples: they are put
            together anew later.
        rows: Which those are.
    """

    inputs: tuple[Input, ...]
    rows: Rows

    @classmethod
    def of(cls, inputs: Sequence[Input], rows: Rows | None) -> _Fit:
        rows = rows or Rows.of(inputs)

        def loose(target: Input) -> Input:
            if target.name not in rows.batched or not target.shape or isinstance(target.shape[0], str):
                return target
            return replace(target, shape=("*", *target.shape[1:]))

        return cls(tuple(map(loose, inputs)), rows)

    def count(self, where: str, arrays: Mapping[str, Any]) -> int:
        """How many samples there are in something like arrays."""
        need_names(where, self.inputs, arrays)
        return self.rows.count({name: array.shape for name, array in arrays.items()}, where)

    def need(self, where: str, arrays: Mapping[str, Array], start: int) -> dict[str, Array]:
        """The arrays in the types of the inputs, the first sample of which is the one of index `start`."""
        typed, _ = fitted(where, self.inputs, arrays)
        for target in self.inputs:
            if "float" not in target.dtype.name or not (wrong := np.isnan(typed[target.name])).any():
                continue
            sample = start
            if target.name in self.rows.batched:
                sample += int(wrong.any(axis=tuple(range(1, wrong.ndim))).argmax())
            raise InputError(
                f"{where}: array '{target.name}' holds NaN in sample {sample} of the data (the first is 0); "
                "leave that sample out"
            )
        return typed


class _Batches:
    """Data from a source that can be asked again and again."""

    def __init__(
        self, name: str, fit: _Fit, source: Callable[[], Iterable[Found]], count: int | None = None
    ) -> None:
        self.name = name
        self.count = count
        self._fit = fit
        self._source = source
        self._need_samples(count)

    def __iter__(self) -> Iterator[Mapping[str, Array]]:
        start = 0
        for where, arrays in self._source():
            if count := self._fit.count(where, arrays):
                yield self._fit.need(where, arrays, start)
                start += count
        if self.count not in (None, start):
            raise InputError(
                f"{self.name}: had {self.count} samples before, but {start} now; data are read several times "
                "and have to stay the same"
            )
        self._need_samples(start)
        self.count = start

    def _need_samples(self, count: int | None) -> None:
        if count == 0:
            raise InputError(f"{self.name}: holds no samples; give at least one row")


# Files


def _pictures(name: str, fit: _Fit, preparation: Preparation, files: Sequence[Path]) -> Data:
    target = preparation.target.name
    return _Batches(
        name, fit, lambda: ((str(file), {target: preparation.read(file)}) for file in files), len(files)
    )


def _need_no_images(name: str, options: ImageOptions | None) -> None:
    if options not in (None, ImageOptions()):
        raise InputError(f"{name}: is no folder of images; drop --image-size, --mean, --std and --layout")


def _need_headers(file: Path, fit: _Fit) -> int:
    """How many samples a file says that it has, after a check of what else it says."""
    with _opened(file, fit) as columns:
        count = fit.count(str(file), columns)
        if count:
            batched = fit.rows.batched
            shapes = {n: (1, *c.shape[1:]) if n in batched else c.shape for n, c in columns.items()}
            with reading(file):
                zeros = {name: np.zeros(shape, columns[name].dtype) for name, shape in shapes.items()}
            fit.need(str(file), zeros, 0)
        return count


def _stored(source: Path, fit: _Fit) -> Iterator[Found]:
    """The rows of one file or folder of arrays, some at a time."""
    if source.is_dir():
        yield str(source), test_data(source, fit.inputs)
        return
    with _opened(source, fit) as columns:
        count = fit.count(str(source), columns)
        streamed = {name: columns[name] for name in fit.rows.batched}
        with reading(source):
            shared = {name: column.take() for name, column in columns.items() if name not in streamed}
        step = max(1, _AT_ONCE // max(1, sum(column.row_bytes for column in streamed.values())))
        for start in range(0, count, step):
            stop = min(start + step, count)
            where = str(source) if stop - start == count else f"{source}, rows {start} to {stop - 1}"
            with reading(source):
                arrays = {name: column.take(stop - start) for name, column in streamed.items()}
            yield where, {**shared, **arrays}


@contextmanager
def _opened(source: Path, fit: _Fit) -> Iterator[Mapping[str, _Column]]:
    """The arrays of an .npz or .npy file, by name."""
    with ExitStack() as stack:
        with reading(source):
            if source.suffix == ".npz":
                archive = stack.enter_context(zipfile.ZipFile(source))
                names = {name.removesuffix(".npy"): name for name in archive.namelist()}
                need_names(source, fit.inputs, names)
                sizes = {own: archive.getinfo(name).file_size for own, name in names.items()}
                streams = {own: stack.enter_context(archive.open(name)) for own, name in names.items()}
            else:
                target = only(source, fit.inputs).name
                sizes = {target: source.stat().st_size}
                streams = {target: stack.enter_context(source.open("rb"))}
            columns = {name: _Column(stream, sizes[name]) for name, stream in streams.items()}
        yield columns


class _Column:
    """An array in numpy's format, read from its start as it is asked for.

    It is read and not mapped into memory: a file that is cut off while it is mapped ends the process.

    Attributes:
        shape: Of the whole array.
        dtype: Of its elements.
        row_bytes: Size of one row.
    """

    def __init__(self, stream: IO[bytes], size: int) -> None:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version[0]}.{version[1]} of the format, which is no array of numbers")
        old, new = np.lib.format.read_array_header_1_0, np.lib.format.read_array_header_2_0
        self.shape, self._by_columns, self.dtype = (old if version == (1, 0) else new)(stream)
        if self.dtype.hasobject:
            raise ValueError("it is pickled")
        if any(size < 0 for size in self.shape):
            raise ValueError(f"its shape is {list(self.shape)}")
        declared, found = math.prod(self.shape) * self.dtype.itemsize, size - stream.tell()
        if declared != found:
            raise ValueError(f"its header declares {declared} bytes, but {found} follow")
        self.row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        self._stream = stream
        self._whole: Array | None = None
        self._taken = 0

    def take(self, rows: int | None = None) -> Array:
        """The next rows; without their number, the whole array."""
        if rows is None:
            return self._read(self.shape)
        if not self._by_columns:
            return self._read((rows, *self.shape[1:]))
        if self._whole is None:  # a row is spread over all of it
            self._whole = self._read(self.shape)
        self._taken += rows
        return self._whole[self._taken - rows : self._taken]

    def _read(self, shape: tuple[int, ...]) -> Array:
        size = math.prod(shape) * self.dtype.itemsize
        content = self._stream.read(size)
        if len(content) < size:
            raise ValueError("it ends early")  # it was cut off since its header was read
        return np.ndarray(shape, self.dtype, content, order="F" if self._by_columns else "C")


# Python


def _is_python(spec: str) -> bool:
    """Whether it names an object: neither does such a file exist, nor does it look like one of Windows."""
    return ":" in spec and not os.path.exists(spec) and not re.match(r"[A-Za-z]:[\\/]", spec)


def _imported(spec: str) -> Any:
    """The object that `package.module:attribute.path` names."""
    module_name, _, attribute = spec.partition(":")
    if module_name.endswith(".py"):
        file = Path(module_name)
        raise InputError(
            f"{spec}: names a file; write {file.stem}:{attribute or 'name'}, in the folder of {file}"
        )
    if not all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        raise InputError(f"{spec}: is neither a file that exists nor package.module:name; give {_KINDS}")
    importlib.invalidate_caches()  # files may be younger than the folder's listing
    try:
        with _telling(f"{spec}: importing {module_name}"), _as_program():
            found: Any = importlib.import_module(module_name)
    except InputError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and f"{module_name}.".startswith(f"{missing.name}."):
            raise InputError(
                f"{spec}: there is no module '{missing.name}', neither in the current folder nor installed"
            ) from missing
        raise
    file_name, nothing = getattr(found, "__file__", None) or "Python itself", object()
    for part in attribute.split("."):
        with _telling(f"{spec}: reading {part}"), _as_program():
            found = getattr(found, part, nothing)
        if found is nothing:
            raise InputError(f"{spec}: there is no '{part}'; {module_name} was imported from {file_name}")
    return found


def _iterable(
    name: str, fit: _Fit, batches: Any, context: Callable[[], AbstractContextManager[None]]
) -> Data:
    """Data from an object whose own code runs in a context."""
    make = _repeatable(name, batches, context)

    def found() -> Iterator[Found]:
        with _telling(f"{name}: starting to iterate"), context():
            iterator = iter(make())
        ended = object()
        number = 0
        while True:
            where = f"{name}: batch {number}"
            with _telling(where), context():
                batch = next(iterator, ended)
            if batch is ended:
                return
            yield where, _named(where, batch, fit.inputs)
            number += 1

    return _Batches(name, fit, found)


def _repeatable(
    name: str, batches: Any, context: Callable[[], AbstractContextManager[None]]
) -> Callable[[], Any]:
    """What gives an iterable for each time that the data are read."""
    made = batches
    if isinstance(batches, type) or not _is_iterable(batches):
        if not callable(batches):
            raise InputError(f"{name}: is {_described(batches)}; give an iterable of batches")
        with _telling(f"{name}: calling it"), context():
            made = batches()
            is_fresh = isinstance(made, Iterator) and batches() is not made
        if is_fresh:
            make: Callable[[], Any] = batches
            return make
        if not _is_iterable(made):
            raise InputError(f"{name}: returned {_described(made)}; it has to return an iterable of batches")
    if isinstance(made, Iterator):
        raise InputError(
            f"{name}: can be iterated once only, but data are read several times; give a function that "
            "returns a new iterator each time"
        )
    return lambda: [made] if isinstance(made, Mapping) or hasattr(made, "__array__") else made


def _is_iterable(value: Any) -> bool:
    return any(hasattr(value, protocol) for protocol in ("__iter__", "__getitem__", "__array__"))


def _named(where: str, batch: Any, inputs: Sequence[Input]) -> dict[str, Array]:
    """The arrays of a batch by name."""
    if isinstance(batch, Mapping):
        return {str(name): _array(where, name, value) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        if len(batch) != len(inputs):
            raise InputError(
                f"{where}: is {_described(batch)}, but the model has {len(inputs)} inputs: "
                f"{listed(i.name for i in inputs)}; give their arrays only, without labels"
            )
        pairs = zip(inputs, batch, strict=True)
        return {target.name: _array(where, target.name, value) for target, value in pairs}
    if not hasattr(batch, "__array__"):
        raise InputError(
            f"{where}: is {_described(batch)}; give arrays, by name of the input or in their order"
        )
    target = only(where, inputs)
    return {target.name: _array(where, target.name, batch)}


def _array(where: str, name: object, value: Any) -> Array:
    if not hasattr(value, "__array__"):
        raise InputError(f"{where}: '{name}' is {_described(value)}; give an array")
    with _telling(f"{where}: '{name}'"):
        return np.asarray(value)


@contextmanager
def _as_program() -> Iterator[None]:
    """The current folder is searched for modules, and what is printed is no result of ours."""
    folder = os.getcwd()
    known = folder in sys.path
    if not known:
        sys.path.insert(0, folder)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if not known and folder in sys.path:
            sys.path.remove(folder)


@contextmanager
def _telling(what: str) -> Iterator[None]:
    """What somebody else's code raises is told in one line, with the line where it happened."""
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = [f.filename for f in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SystemExit) and frames[-1].startswith(_OURS):  # by a signal
            raise
        said = ": ".join(filter(None, [type(error).__name__, " ".join(str(error).split())[:200]]))
        raise InputError(f"{what} raised {said}{_at(error)}") from error


_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep


def _at(error: BaseException) -> str:
    """Where in the user's code it happened: " (at data.py:12)"."""
    places = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        places.append((error.filename, error.lineno))
    places = [place for place in places if not place[0].startswith(("<", _OURS))]
    installed = tuple(path + os.sep for path in sysconfig.get_paths().values())
    own = [place for place in places if not place[0].startswith(installed)] or places
    if not own:
        return ""
    file, line = own[-1]
    relative = os.path.relpath(file)
    return f" (at {file if relative.startswith(os.pardir) else relative}:{line})"


def _described(value: object) -> str:
    """What a value is, for a message."""
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else f"a value of type {type(value).__name__}"
