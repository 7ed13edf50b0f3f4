"""Opening and saving ONNX models.

`load` maps the file and hands out an ordinary `onnx_ir.Model` whose large weights are views of the
mapped file. `save` writes what was changed and copies the rest byte for byte (see `write`), as a
transaction: everything is written under other names into the folder of the target and synchronised,
and renaming the model is the one step that makes it count. Killed at any point, the target is the
old model or the new one. External data lie beside the model in a file that is named by its content,
so the old data stay whole until the new model stands.

A target that is a symbolic link is written through: the file that it points to is replaced.
"""

from __future__ import annotations

import errno
import gc
import logging
import mmap
import os
import secrets
import shutil
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # it has no stubs

from . import wire, write
from .errors import BnfoldError, InputError, OutputError
from .origin import META, Source, remember
from .wellformed import check

_STANDARD_INPUT = "the model on standard input"
_BUFFER_BYTES = 1 << 20


def load(source: str | os.PathLike[str] | BinaryIO) -> ir.Model:
    """Open a model.

    Large weights are not read, they are mapped: the file must not be changed in place while the model
    is in use (replacing it by renaming, as `save` does, is fine). Sparse initializers, which onnx_ir
    does not know, appear as values that nothing makes; `save` carries them along.

    Args:
        source: The path of the file, or a binary stream that holds it.

    Returns:
        The model. `model.meta["bnfold.source"]` remembers what `save` needs.

    Raises:
        InputError: The file cannot be read, or it is not a valid model. One line.
    """
    if isinstance(source, str | os.PathLike):
        path = os.path.abspath(source)
        name = os.fspath(source)
        if not name:
            raise InputError("the name of the model is empty; give the path of a file")
        view, file_id = _open(path, name)
        return _model(view, name, path, file_id)
    return _model(memoryview(source.read()), _STANDARD_INPUT, None, None)


def save(model: ir.Model, target: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write the model: `stage` and commit.

    Saving over the model's own file may remove the external data from which the model still reads; open
    it again to go on working with it.

    Raises:
        OutputError: The target exists and `force` is not given, or it cannot be written. Nothing was.
    """
    with stage(model, target, force=force) as staged:
        staged.commit()


def stage(model: ir.Model, target: str | os.PathLike[str], *, force: bool = False) -> Staged:
    """Prepare to write the model: inside the returned context it is complete under another name.

    Args:
        model: The model; one that was not opened by `load` is written as onnx_ir would.
        target: Where the model shall be.
        force: Whether a file that is there may be replaced.

    Raises:
        OutputError: The target exists and `force` is not given, or it cannot be written (this may
            also come from entering the context).
    """
    return Staged(model, os.fspath(target), force=force)


def to_bytes(model: ir.Model) -> bytes:
    """The model as one piece, with all its data inside.

    Raises:
        OutputError: When it would have more than 2 GiB.
    """
    sink = _Bytes()
    with _undisturbed():
        write.emit(write.render_embedded(model, _source(model)), sink)
    return b"".join(sink.chunks)


def is_trainable(model: ir.Model) -> bool:
    """Whether the file has `training_info`: graphs, unknown to onnx_ir, that use the weights by name."""
    source = model.meta.get(META)
    return isinstance(source, Source) and any(f.number == wire.MODEL_TRAINING for f in source.fields)


def rest(model: ir.Model) -> None:
    """Let go of the memory that the pages of the model's file take, until something reads them again."""
    source = model.meta.get(META)
    content = source.view.obj if isinstance(source, Source) else None
    if isinstance(content, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        content.madvise(mmap.MADV_DONTNEED)


class Staged:
    """A model that is written but does not count yet; a context manager.

    Attributes:
        path: The complete temporary model file, in the target's folder or, with its external data, in
            a temporary folder there. It exists from entering the context until leaving or committing.
    """

    path: str

    def __init__(self, model: ir.Model, target: str, *, force: bool) -> None:
        self._model = model
        self._name = target
        self._target = os.path.realpath(target)
        self._folder = os.path.dirname(self._target)
        self._force = force
        self._source = _source(model)
        self._mode = self._permitted()
        self._keep: frozenset[str] = frozenset()  # data files that the new model refers to
        self._data: frozenset[str] = frozenset()  # those among them that are new
        self._own = os.path.join(self._folder, f".bnfold-{secrets.token_hex(6)}")
        self.path = f"{self._own}.onnx"

    def __enter__(self) -> Self:
        try:
            with _undisturbed():
                self._write()
        except OSError as error:
            self._discard()
            raise self._refusal(error) from error
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def commit(self) -> None:
        """Make it count: the temporary model becomes the target, data of its predecessor are removed.

        Raises:
            OutputError: The target cannot be replaced; it is as it was.
        """
        self._permitted()  # the world may have changed meanwhile
        old = self._predecessors_data()
        try:
            for name in self._data:
                os.replace(os.path.join(self._own, name), os.path.join(self._folder, name))
            os.replace(self.path, self._target)
        except OSError as error:
            raise self._refusal(error) from error
        self._discard()
        _synchronise(self._folder)
        for name in old - self._keep:
            with suppress(OSError):  # the model is saved; a data file too many is no reason to fail
                os.unlink(os.path.join(self._folder, name))

    def _permitted(self) -> int | None:
        """The mode of the file that is replaced; None when there is none. Raises when it must not be."""
        if not os.path.basename(self._name):
            raise OutputError(f"{self._name or 'the target'}: is not the name of a file; add one")
        try:
            facts = os.stat(self._target)
        except FileNotFoundError:
            if os.path.isdir(self._folder):
                return None
            raise OutputError(f"{self._name}: the folder {self._folder} does not exist; create it") from None
        except OSError as error:
            raise self._refusal(error) from error
        if stat.S_ISDIR(facts.st_mode):
            raise OutputError(f"{self._name}: is a folder; name the file in it")
        if not stat.S_ISREG(facts.st_mode):
            raise OutputError(f"{self._name}: is no regular file (a device or a pipe) and cannot be replaced")
        if not self._force:
            if (facts.st_dev, facts.st_ino) == self._source.file_id:
                raise OutputError(
                    f"{self._name}: is the model that was read; choose another name, or pass --force"
                )
            raise OutputError(f"{self._name}: exists already; choose another name, or pass --force")
        return stat.S_IMODE(facts.st_mode)

    def _write(self) -> None:
        parts, data = write.render(self._model, self._source, self._target)
        if data:
            # Together in a folder of their own, under their final names: until they are committed, no
            # other run can come to depend on them.
            os.mkdir(self._own)
            self.path = os.path.join(self._own, self._basename())
            unnamed = os.path.join(self._own, ".data")
            with self._create(unnamed, self._mode) as file:  # weights are no less private than the model
                data.write(file)
                _flush(file)
            os.replace(unnamed, os.path.join(self._own, data.name))
            self._data = self._keep = frozenset((data.name,))
        else:
            self._keep = self._source.locations
        with self._create(self.path, self._mode) as file:
            write.emit(parts, file)
            _flush(file)

    def _create(self, path: str, mode: int | None) -> BinaryIO:
        """A new file; as the umask wants it, or with the mode of the one that it will replace."""
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if mode is not None:
            os.chmod(path, mode)
        return open(handle, "wb", buffering=_BUFFER_BYTES)

    def _discard(self) -> None:
        """Remove what is still there of the temporary files."""
        with suppress(OSError):
            os.unlink(self.path)
        shutil.rmtree(self._own, ignore_errors=True)

    def _predecessors_data(self) -> set[str]:
        """The data files, named by bnfold after the target, to which the model refers that is there now."""
        own = {name for name in os.listdir(self._folder) if write.is_content_named(name) == self._basename()}
        if not own - self._keep:
            return set()
        try:
            view, _ = _open(self._target, self._target)
            locations = _locations(view)
        except (BnfoldError, wire.Malformed, DecodeError):
            return set()  # no model, or one that we do not understand: nothing is certain to be unused
        return own & locations

    def _basename(self) -> str:
        return os.path.basename(self._target)

    def _refusal(self, error: OSError) -> OutputError:
        remedy = {
            errno.ENOSPC: "; free some space or choose another folder",
            errno.EDQUOT: "; free some space or choose another folder",
            errno.EACCES: "; choose another folder or change its permissions",
            errno.EROFS: "; choose another folder",
        }.get(error.errno or 0, "")
        what = f"cannot be written: {error.strerror or error}{remedy}"
        return OutputError(f"{self._name}: {what}; nothing was changed")


class _Bytes:
    """A file in memory that copies nothing."""

    def __init__(self) -> None:
        self.chunks: list[bytes | memoryview] = []

    def write(self, data: bytes | memoryview, /) -> None:
        self.chunks.append(data)


def _open(path: str, name: str) -> tuple[memoryview, tuple[int, int]]:
    """The bytes of a file, mapped when it is a regular one, and its device and inode."""
    try:
        with open(path, "rb") as file:
            facts = os.fstat(file.fileno())
            if stat.S_ISREG(facts.st_mode) and facts.st_size:
                content: mmap.mmap | bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            else:
                content = file.read()
    except FileNotFoundError:
        raise InputError(f"{name}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{name}: is a folder; name the model file in it") from None
    except PermissionError:
        raise InputError(f"{name}: may not be read; change its permissions") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read: {error}") from error
    return memoryview(content), (facts.st_dev, facts.st_ino)


def _model(view: memoryview, name: str, path: str | None, file_id: tuple[int, int] | None) -> ir.Model:
    if not len(view):
        raise InputError(f"{name}: is empty; export or download the model again")
    with _undisturbed():
        try:
            split = wire.split(view)
            if split is None:
                raise InputError(
                    f"{name}: is not an ONNX model: it has no graph, or several; export it again"
                )
            proto = onnx.ModelProto.FromString(split.skeleton)
            lengths = {place: raw.end - raw.body for place, raw in split.weights.items()}
            locations = check(proto, lengths, name, None if path is None else os.path.dirname(path))
            model = _deserialize(proto, name)
            _attach_weights(model, proto, view, split)
            source = remember(model, proto, view, split, path=path, file_id=file_id, locations=locations)
        except (wire.Malformed, DecodeError) as error:
            raise InputError(_no_model(view, name, error)) from error
    if path is not None and locations:
        for graph in model.graphs():
            ir.external_data.set_base_dir(graph, os.path.dirname(path))
    model.meta[META] = source
    rest(model)  # looking for the weights touches the pages around their heads
    return model


def _deserialize(proto: onnx.ModelProto, name: str) -> ir.Model:
    try:
        return ir.serde.deserialize_model(proto)
    except Exception as error:  # whatever it may be, it is the model that onnx_ir cannot take
        _set_aside(proto)
        try:
            return ir.serde.deserialize_model(proto)
        except Exception:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            reason = " ".join(str(cause).split())[:200]
            raise InputError(f"{name}: onnx_ir cannot represent this model: {reason}") from error


def _set_aside(proto: onnx.ModelProto) -> None:
    """Take out what onnx_ir has no words for: types of maps, sparse tensors in attributes.

    The bytes of the file still have them, and it is those that are written.
    """
    graphs = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            nodes += graph.node
            for info in (*graph.input, *graph.output, *graph.value_info):
                if _holds_map(info.type):
                    info.ClearField("type")
            continue
        for attribute in nodes.pop().attribute:
            graphs += (attribute.g,) if attribute.HasField("g") else attribute.graphs
            if attribute.HasField("sparse_tensor") or attribute.sparse_tensors:
                attribute.type = onnx.AttributeProto.UNDEFINED


def _holds_map(kind: onnx.TypeProto) -> bool:
    while kind.HasField("sequence_type") or kind.HasField("optional_type"):
        nested = kind.sequence_type if kind.HasField("sequence_type") else kind.optional_type
        kind = nested.elem_type
    return bool(kind.HasField("map_type"))


def _attach_weights(model: ir.Model, proto: onnx.ModelProto, view: memoryview, split: wire.Split) -> None:
    for place, raw in split.weights.items():
        stored = proto.graph.initializer[place]
        dtype = ir.DataType(stored.data_type)
        if dtype == ir.DataType.STRING or stored.data_location == onnx.TensorProto.EXTERNAL:
            continue  # bytes that nobody reads
        content = view[raw.body : raw.end]
        tensor: ir.TensorProtocol
        if dtype.bitwidth < 8:
            packed = np.frombuffer(content, np.uint8)
            tensor = ir.PackedTensor(packed, dtype, shape=ir.Shape(stored.dims), name=stored.name)
        else:
            array = np.frombuffer(content, np.dtype(dtype.numpy()).newbyteorder("<")).reshape(stored.dims)
            tensor = ir.Tensor(array, dtype, name=stored.name)
        tensor.doc_string = stored.doc_string or None
        model.graph.initializers[stored.name].const_value = tensor


def _no_model(view: memoryview, name: str, error: Exception) -> str:
    """What to say about bytes that cannot be parsed."""
    if bytes(view[:23]) == b"version https://git-lfs":
        return f"{name}: is a pointer of Git LFS, not the model itself; run git lfs pull"
    begins_like_one = view[0] == 0x08  # the IR version, which every writer puts first
    if begins_like_one and isinstance(error, wire.Malformed) and error.missing:
        return f"{name}: is cut off (at {len(view)} bytes); download or export it again"
    if begins_like_one:
        return f"{name}: is damaged, or nested deeper than any reader allows; download or export it again"
    return f"{name}: is not an ONNX model (no protobuf message); is it another format, or text?"


def _locations(view: memoryview) -> set[str]:
    """The external files of a model."""
    split = wire.split(view)
    if split is None:
        return set()
    proto = onnx.ModelProto.FromString(split.skeleton)
    entries = (entry for tensor in proto.graph.initializer for entry in tensor.external_data)
    return {entry.value for entry in entries if entry.key == "location"}


def _source(model: ir.Model) -> Source:
    """Where the model came from; for one that was not opened here, what it is without its weights."""
    source = model.meta.get(META)
    if isinstance(source, Source) and source.knows(model):
        return source
    weights: dict[str, ir.TensorProtocol] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and (isinstance(tensor, ir.ExternalTensor) or tensor.nbytes >= wire.LARGE):
            weights[name] = tensor
    try:
        for name in weights:
            model.graph.initializers[name].const_value = None
        with _undisturbed():
            proto = ir.serde.serialize_model(model)
    finally:
        for name, tensor in weights.items():
            model.graph.initializers[name].const_value = tensor
    outside = (t.location for t in weights.values() if isinstance(t, ir.ExternalTensor))
    locations = frozenset(os.fspath(location) for location in outside)
    view = memoryview(proto.SerializeToString())
    split = wire.split(view)
    assert split is not None
    return remember(model, proto, view, split, locations=locations)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without the garbage collector, which would look at every node again and again, and without the
    warnings of onnx and onnx_ir: what they are about was checked, or is meant."""
    logger = logging.getLogger("onnx_ir.serde")
    collecting, silent = gc.isenabled(), logger.disabled
    gc.disable()
    logger.disabled = True
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.disabled = silent
        if collecting:
            if not gc.get_freeze_count():  # call the new objects old: the next collection may skip them
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _synchronise(folder: str) -> None:
    """Make the new names in the folder last; where a system cannot, the rename has to do."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
