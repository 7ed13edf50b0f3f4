"""What `--data` may name, and what is said about what is not fit."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import sys
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from bnfold import data as module
from bnfold.data import Data, check, open_data
from bnfold.errors import InputError
from bnfold.feeds import Array, Input
from bnfold.images import ImageOptions

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)
ONE = [Input("x", FLOAT, ("N", 3))]
TWO = [*ONE, Input("z", FLOAT, ("N", 2))]
TABLE = [*ONE, Input("table", FLOAT, (5, 2))]
X = np.arange(30, dtype=np.float32).reshape(10, 3)
Z = np.arange(20, dtype=np.float32).reshape(10, 2)


ONCE = iter([X])


def rows(data: Data, name: str = "x") -> Array:
    return np.concatenate([batch[name] for batch in data])


@pytest.fixture
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows of ONE at a time."""
    monkeypatch.setattr(module, "_AT_ONCE", 36)


def tensor(path: Path, array: Array, name: str = "") -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    onnx.save_tensor(numpy_helper.from_array(array, name), str(path))


class TestFiles:
    @pytest.mark.usefixtures("small_reads")
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_an_archive_a_few_rows_at_a_time(self, save: Callable[..., None], tmp_path: Path) -> None:
        save(tmp_path / "a.npz", z=Z, x=X)
        data = open_data(str(tmp_path / "a.npz"), TWO)
        assert data.count == 10 and data.name == str(tmp_path / "a.npz")
        for _ in range(2):
            np.testing.assert_array_equal(rows(data), X)
            np.testing.assert_array_equal(rows(data, "z"), Z)
        assert len(list(data)) == 10  # 20 bytes each

    @pytest.mark.usefixtures("small_reads")
    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2"])
    def test_one_array(self, order: Any, dtype: str, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.asarray(X.astype(dtype), order=order))
        data = open_data(tmp_path / "a.npy", ONE)
        np.testing.assert_array_equal(rows(data), X)
        assert data.count == 10 and len(list(data)) > 1
        assert {batch["x"].dtype for batch in data} == {FLOAT}

    def test_two_arrays_cannot_be_one(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", X)
        with pytest.raises(InputError, match=r"a\.npy: is one array, but the model has 2 inputs"):
            open_data(tmp_path / "a.npy", TWO)

    @pytest.mark.usefixtures("small_reads")
    def test_shared_arrays_come_with_all_rows(self, tmp_path: Path) -> None:
        table = np.arange(10, dtype=np.float32).reshape(5, 2)
        orders: list[Any] = ["C", "F"]
        for order in orders:
            np.savez(tmp_path / "a.npz", x=X, table=np.asarray(table, order=order))
            for batch in open_data(tmp_path / "a.npz", TABLE):
                np.testing.assert_array_equal(batch["table"], table)

    def test_a_feed_without_rows_is_one_sample(self, tmp_path: Path) -> None:
        for i in range(3):
            np.save(tmp_path / f"{i}.npy", np.float32(i))
        data = open_data(tmp_path, [Input("x", FLOAT, ())])
        assert data.count == 3
        assert [float(batch["x"]) for batch in data] == [0, 1, 2]

    def test_a_fixed_batch_takes_any_number_of_rows(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", X)
        np.testing.assert_array_equal(rows(open_data(tmp_path / "a.npy", [Input("x", FLOAT, (4, 3))])), X)

    def test_bfloat16_as_its_own_bits(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", X.astype(ml_dtypes.bfloat16))
        found = rows(open_data(tmp_path / "a.npy", [Input("x", np.dtype(ml_dtypes.bfloat16), ("N", 3))]))
        assert found.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found.astype(np.float32), X)

    def test_a_folder_in_the_order_of_its_numbers(self, tmp_path: Path) -> None:
        for i in (10, 2, 1):
            np.save(tmp_path / f"part{i}.npy", X[:i])
        np.savez(tmp_path / "part3.npz", x=X[:0])
        (tmp_path / "notes.txt").write_text("not for us")
        data = open_data(tmp_path, ONE)
        assert data.count == 13
        assert [len(batch["x"]) for batch in data] == [1, 2, 10]

    def test_sizes_may_differ_between_files(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", X)
        np.save(tmp_path / "b.npy", X[:, :2])
        data = open_data(tmp_path, [Input("x", FLOAT, ("N", "W"))])
        assert [batch["x"].shape for batch in data] == [(10, 3), (10, 2)]

    def test_onnx_test_data(self, tmp_path: Path) -> None:
        tensor(tmp_path / "one" / "input_0.pb", X)
        tensor(tmp_path / "one" / "input_1.pb", Z)
        data = open_data(tmp_path / "one", TWO)
        assert data.count is None
        np.testing.assert_array_equal(rows(data, "z"), Z)
        assert data.count == 10
        for i in (10, 9):
            tensor(tmp_path / "many" / f"test_data_set_{i}" / "input_0.pb", X[:i])
        assert [len(batch["x"]) for batch in open_data(tmp_path / "many", ONE)] == [9, 10]

    def test_memory_does_not_grow_with_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_AT_ONCE", 1 << 16)
        wide = [Input("x", FLOAT, ("N", 256))]
        large = np.ones((16384, 256), np.float32)
        np.savez(tmp_path / "a.npz", x=large)
        np.savez_compressed(tmp_path / "b.npz", x=large)
        np.save(tmp_path / "c.npy", large)
        size = large.nbytes
        del large
        for name in ("a.npz", "b.npz", "c.npy"):
            tracemalloc.start()
            assert sum(len(batch["x"]) for batch in open_data(tmp_path / name, wide)) == 16384
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert peak < size / 16, name


class TestFits:
    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"x": X}, r"a\.npz: has no array for 'z'; it has 'x'"),
            ({"x": X, "z": Z, "y": Z}, r"a\.npz: has arrays that the model does not read: 'y'"),
            ({"x": X, "z": Z[:9]}, r"a\.npz: array 'x' has 10 rows, but 'z' has 9"),
            ({"x": X[:, :2], "z": Z}, r"'x' has shape \[\d+, 2\], but .* \[N, 3\]: axis 1 has to be 3"),
            ({"x": X[0], "z": Z[:3]}, r"'x' has shape \[\d+\], but the model's input has rank 2: \[N, 3\]"),
            ({"x": np.float32(1), "z": Z}, "'x' is a single number"),
            ({"x": X.astype(int), "z": Z}, "'x' is int64, but the model's input is float32"),
            ({"x": X.astype("U4"), "z": Z}, "'x' is str"),
            ({"x": np.zeros(10, [("a", "f4")]), "z": Z}, "a.npz: array 'x' is void"),
            ({"x": np.array([{}]), "z": Z}, r"a\.npz: holds pickled objects, which are never loaded"),
            ({"x": X[:0], "z": Z[:0]}, r"a\.npz: holds no samples"),
        ],
    )
    def test_what_headers_tell_is_told_at_once(
        self, arrays: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(InputError, match=message):
            open_data(tmp_path / "a.npz", TWO)

    def test_the_last_wrong_file_is_reported_before_the_first_is_used(self, tmp_path: Path) -> None:
        for i in range(3):
            np.save(tmp_path / f"{i}.npy", X if i < 2 else X[:, :2])
        with pytest.raises(InputError, match=r"2\.npy: array 'x' has shape"):
            open_data(tmp_path, ONE)

    @pytest.mark.usefixtures("small_reads")
    @pytest.mark.parametrize(
        ("value", "message"),
        [
            (np.nan, r"b\.npy, rows 6 to 8: array 'x' holds NaN in sample 17 of the data"),
            (
                1e300,
                r"b\.npy, rows 7 to 7: array 'x' is float64 and holds 1e\+300, which the model's float32",
            ),
        ],
    )
    def test_what_values_tell_names_the_rows(self, value: float, message: str, tmp_path: Path) -> None:
        wrong = X.astype(np.float64 if np.isfinite(value) else np.float32)
        wrong[7, 1] = wrong[9, 0] = value
        np.save(tmp_path / "a.npy", X)
        np.save(tmp_path / "b.npy", wrong)
        found = iter(open_data(tmp_path, ONE))
        for _ in range(4):
            next(found)
        with pytest.raises(InputError, match=message):
            list(found)

    def test_infinity_is_let_through(self, tmp_path: Path) -> None:
        """Attention masks are made of it."""
        np.save(tmp_path / "a.npy", np.full((1, 3), -np.inf, np.float32))
        assert len(list(open_data(tmp_path / "a.npy", ONE))) == 1

    def test_nan_in_a_shared_array(self) -> None:
        shared = [{"x": X, "table": np.zeros((5, 2), np.float32) * (np.nan if i else 1)} for i in range(2)]
        with pytest.raises(InputError, match="batch 1: array 'table' holds NaN in sample 10"):
            list(check(shared, TABLE, "mine"))

    def test_nan_in_a_small_type(self) -> None:
        small = X.astype(ml_dtypes.bfloat16)
        small[3] = np.nan
        with pytest.raises(InputError, match="NaN in sample 3"):
            list(check([small], [Input("x", np.dtype(ml_dtypes.bfloat16), ("N", 3))], "mine"))

    @pytest.mark.parametrize(("index", "fits"), [(8, True), (-9, True), (9, False), (-10, False)])
    def test_indices_have_to_be_in_the_table(self, index: int, fits: bool, tmp_path: Path) -> None:
        lookup = [Input("i", INT, ("N",), bound=9)]
        np.save(tmp_path / "a.npy", np.array([0, index]))
        if fits:
            assert rows(open_data(tmp_path / "a.npy", lookup), "i").tolist() == [0, index]
        else:
            with pytest.raises(InputError, match=r"'i' holds .* keep it within 0 to 8"):
                list(open_data(tmp_path / "a.npy", lookup))

    def test_a_free_size_is_the_same_in_a_batch(self) -> None:
        both = [Input("x", FLOAT, ("N", "T")), Input("z", FLOAT, ("N", "T"))]
        with pytest.raises(InputError, match=r"batch 0: array 'z' has .* 'T' would be 2, but another .* 3"):
            list(check([(X, Z)], both, "mine"))

    def test_fixed_batches_disagree(self) -> None:
        both = [Input("x", FLOAT, (1, 3)), Input("z", FLOAT, (1, 2))]
        assert len(list(check([(X, Z)], both, "mine"))) == 1
        with pytest.raises(InputError, match="batch 0: array 'x' has 10 rows, but 'z' has 5"):
            list(check([(X, Z[:5])], both, "mine"))

    @given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.integers(1, 9))
    def test_empty_batches_are_passed_over(self, sizes: list[int], extra: int) -> None:
        data = check([X[:size] for size in [*sizes, extra]], ONE, "mine")
        assert [len(batch["x"]) for batch in data] == [size for size in [*sizes, extra] if size]
        assert data.count == sum(sizes) + extra

    def test_an_empty_picture_is_no_sample(self) -> None:
        wide = [Input("x", FLOAT, ("N", "W"))]
        with pytest.raises(InputError, match=r"has shape \[10, 0\]: it is empty"):
            list(check([X[:, :0]], wide, "mine"))


class Trap:
    """Leaves a folder behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


class TestBadFiles:
    def test_nothing_is_unpickled(self, tmp_path: Path) -> None:
        sprung = tmp_path / "sprung"
        np.savez(tmp_path / "a.npz", x=np.array([Trap(sprung)], object))
        np.save(tmp_path / "b.npy", np.array([Trap(sprung)], object), allow_pickle=True)
        (tmp_path / "c.npy").write_bytes(pickle.dumps(Trap(sprung)))
        (tmp_path / "d.npz").write_bytes(pickle.dumps(Trap(sprung)))
        for name in ("a.npz", "b.npy", "c.npy", "d.npz"):
            with pytest.raises(InputError, match=f"{name}: (holds pickled|is corrupt)"):
                open_data(tmp_path / name, ONE)
        assert not sprung.exists()

    @pytest.mark.parametrize("name", ["a.npz", "b.npy"])
    def test_cut_off_anywhere(self, name: str, tmp_path: Path) -> None:
        np.savez_compressed(tmp_path / "a.npz", x=X)
        np.save(tmp_path / "b.npy", X)
        whole = (tmp_path / name).read_bytes()
        for keep in range(len(whole)):
            (tmp_path / name).write_bytes(whole[:keep])
            with pytest.raises(InputError, match=f"{name}: is corrupt") as refusal:
                open_data(tmp_path / name, ONE)
            assert "\n" not in str(refusal.value)

    def test_more_than_its_header_says(self, tmp_path: Path) -> None:
        with (tmp_path / "a.npy").open("wb") as file:
            np.save(file, X)
            np.save(file, X)
        with pytest.raises(InputError, match="header declares 120 bytes, but 368 follow"):
            open_data(tmp_path / "a.npy", ONE)

    @pytest.mark.usefixtures("small_reads")
    @pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
    def test_flipped_bits(self, save: Callable[..., None], tmp_path: Path) -> None:
        """Anywhere in the numbers: zip's sum tells."""
        save(tmp_path / "a.npz", x=X)
        whole = (tmp_path / "a.npz").read_bytes()
        with zipfile.ZipFile(tmp_path / "a.npz") as archive:
            end = archive.start_dir
        missed = set()
        for place in range(end - 60, end):
            flipped = bytearray(whole)
            flipped[place] ^= 4
            (tmp_path / "a.npz").write_bytes(flipped)
            try:
                found = rows(open_data(tmp_path / "a.npz", ONE))
            except InputError as error:
                assert "a.npz: is corrupt" in str(error)
            else:
                missed.add(place)
                np.testing.assert_array_equal(found, X)
        assert missed <= ({end - 1} if save is np.savez_compressed else set())  # which is part filling

    @pytest.mark.parametrize(
        "header",
        [
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-10, 3), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (-10, -3), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999, 3), }",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (10, 99999999999999999999999), }",
            "{'descr': '<f4', 'fortran_order': False}",
            "__import__('os').abort()",
        ],
    )
    def test_headers_that_lie(self, header: str, tmp_path: Path) -> None:
        text = header.ljust(117).encode() + b"\n"
        content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + X.tobytes()
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.npy: is corrupt"):
            open_data(tmp_path / "a.npy", ONE)

    def test_an_archive_of_other_things(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
            archive.writestr("x", "some text")
        with pytest.raises(InputError, match=r"a\.npz: is corrupt \(.*magic"):
            open_data(tmp_path / "a.npz", ONE)

    def test_corrupt_test_data(self, tmp_path: Path) -> None:
        (tmp_path / "input_0.pb").write_bytes(b"no protobuf")
        with pytest.raises(InputError, match=r"input_0\.pb: is corrupt"):
            list(open_data(tmp_path, ONE))

    @pytest.mark.parametrize("name", ["a.npy", "a.npz"])
    def test_a_file_that_changes_between_two_passes(self, name: str, tmp_path: Path) -> None:
        path = tmp_path / name

        def save(array: Array) -> None:
            np.savez(path, x=array) if name == "a.npz" else np.save(path, array)

        save(X)
        data = open_data(path, ONE)
        list(data)
        whole = path.read_bytes()
        path.write_bytes(whole[:-30])
        with pytest.raises(InputError, match=f"{name}: is corrupt"):
            list(data)
        save(X[:8])
        with pytest.raises(InputError, match="had 10 samples before, but 8 now"):
            list(data)
        path.unlink()
        with pytest.raises(InputError, match=f"{name}: cannot be read: No such file"):
            list(data)

    @pytest.mark.usefixtures("small_reads")
    def test_a_file_that_is_cut_off_while_it_is_read(self, tmp_path: Path) -> None:
        """Were it mapped into memory, this would end the process."""
        path = tmp_path / "a.npy"
        large = np.ones((100_000, 3), np.float32)
        np.save(path, large)
        found = iter(open_data(path, ONE))
        next(found)
        os.truncate(path, 200)
        with pytest.raises(InputError, match=r"a\.npy: is corrupt \(it ends early\)"):
            list(found)

    @pytest.mark.usefixtures("small_reads")
    def test_files_are_closed(self, tmp_path: Path) -> None:
        """Also by those who stop early; pytest turns a file that is left open into an error."""
        np.savez(tmp_path / "a.npz", x=X)
        np.save(tmp_path / "b.npy", X)
        before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()
        next(iter(open_data(tmp_path, ONE)))
        if before:
            assert set(os.listdir("/proc/self/fd")) == before

    def test_what_is_not_there_or_nothing_of_ours(self, tmp_path: Path) -> None:
        for wrong, message in [
            ("nothing.npz", "there is no such file or folder; give an .npz"),
            ("", "this folder holds no data; expected an .npz"),
            ("x.csv", r"x\.csv: is no data that can be read"),
            ("fifo.npy", r"fifo\.npy: is no data that can be read"),
            ("x" * 5000, "cannot be read: File name too long"),
        ]:
            with pytest.raises(InputError, match=message):
                open_data(tmp_path / wrong, ONE)
            if not wrong:
                (tmp_path / "x.csv").write_text("1,2,3")
                os.mkfifo(tmp_path / "fifo.npy")

    def test_options_for_images_without_images(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", X)
        for spec in (str(tmp_path), str(tmp_path / "a.npy"), "package.module:name"):
            with pytest.raises(InputError, match="is no folder of images; drop --image-size"):
                open_data(spec, ONE, images=ImageOptions(size=(8, 8)))
        assert open_data(tmp_path, ONE, images=ImageOptions()).count == 10


class Again:
    """Iterates over the same batches each time."""

    def __init__(self, *batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Foreign:
    """An array of somebody else's, such as a torch tensor."""

    def __init__(self, array: Array) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.array


class TestIterables:
    @pytest.mark.parametrize(
        "batches",
        [
            [{"x": X, "z": Z}],
            [(X, Z)],
            [[X, Z]],
            Again({"z": Z[:4], "x": X[:4]}, (X[4:], Z[4:])),
            lambda: Again((X, Z)),
            lambda: iter([(X, Z)]),
            lambda: ((X[i : i + 3], Z[i : i + 3]) for i in range(0, 10, 3)),
            {"x": X, "z": Z},
            lambda: {"x": X, "z": Z},
            [{"x": Foreign(X), "z": Foreign(Z.astype(np.float64))}],
        ],
    )
    def test_what_is_taken(self, batches: Any) -> None:
        data = check(batches, TWO, "mine")
        assert data.name == "mine" and data.count is None
        for _ in range(2):
            np.testing.assert_array_equal(rows(data), X)
            np.testing.assert_array_equal(rows(data, "z"), Z)
        assert data.count == 10

    @pytest.mark.parametrize("batches", [[X], X, lambda: X, [[X]], [Foreign(X)], Foreign(X)])
    def test_for_one_input(self, batches: Any) -> None:
        np.testing.assert_array_equal(rows(check(batches, ONE, "mine")), X)

    def test_a_class_that_is_iterable_is_called(self) -> None:
        class Loader(Again):
            def __init__(self) -> None:
                super().__init__(X)

        assert rows(check(Loader, ONE, "mine")).shape == (10, 3)

    def test_a_function_that_returns_what_can_be_repeated_is_called_once(self) -> None:
        calls = []

        def loader() -> list[Array]:
            calls.append(1)
            return [X]

        data = check(loader, ONE, "mine")
        list(data), list(data)
        assert len(calls) == 1

    @pytest.mark.parametrize("batches", [iter([X]), (X for _ in range(2)), lambda: ONCE])
    def test_what_can_be_read_once_only(self, batches: Any) -> None:
        with pytest.raises(
            InputError, match=r"mine: can be iterated once only, .* give a function that returns"
        ):
            check(batches, ONE, "mine")

    @pytest.mark.parametrize(
        ("batches", "message"),
        [
            (None, "mine: is None; give an iterable"),
            (3, "mine: is a value of type int; give an iterable"),
            (lambda: None, "mine: returned None; it has to return an iterable"),
            (lambda path: [X], "mine: calling it raised TypeError: .* missing 1 required .* 'path'"),
            ([], "mine: holds no samples"),
            ([X[:0]], "mine: holds no samples"),
            (["x"], "mine: batch 0: is a value of type str; give arrays"),
            ([X, None], "mine: batch 1: is None; give arrays"),
            ([(X, Z)], "mine: batch 0: is a tuple of 2, but the model has 1 inputs: 'x'; .* without labels"),
            ([{"X": X}], "mine: batch 0: has no array for 'x'; it has 'X'"),
            ([{"x": X, "y": Z}], "mine: batch 0: has arrays that the model does not read: 'y'"),
            ([{"x": X.tolist()}], "mine: batch 0: 'x' is a list of 10; give an array"),
            ([X[0]], r"mine: batch 0: array 'x' has shape \[3\], but .* rank 2"),
            ([X, X.astype(np.uint8)], "mine: batch 1: array 'x' is uint8"),
            ([X.astype(object)], "mine: batch 0: array 'x' holds no numbers"),
        ],
    )
    def test_what_is_not(self, batches: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            list(check(batches, ONE, "mine"))

    def test_one_array_for_two_inputs(self) -> None:
        with pytest.raises(InputError, match="batch 0: is one array, but the model has 2 inputs"):
            list(check([X], TWO, "mine"))

    def test_what_it_raises_names_the_batch(self) -> None:
        def broken() -> Iterator[Array]:
            yield X
            raise KeyError("no such\nfile")

        with pytest.raises(
            InputError, match=r"^mine: batch 1 raised KeyError: .*\(at .*test_data\.py:\d+\)$"
        ):
            list(check(broken, ONE, "mine"))

    def test_an_array_that_cannot_be_had(self) -> None:
        class OnADevice:
            def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
                raise TypeError("can't convert a tensor that is elsewhere")

        with pytest.raises(InputError, match="mine: batch 0: 'x' raised TypeError: can't convert"):
            list(check([OnADevice()], ONE, "mine"))

    def test_data_that_end_sooner_the_second_time(self) -> None:
        left = [X, X]

        def eaten() -> Iterator[Array]:
            yield X
            if left:
                yield left.pop()

        data = check(eaten, ONE, "mine")
        list(data), list(data)
        with pytest.raises(InputError, match="mine: had 20 samples before, but 10 now"):
            list(data)

    @pytest.mark.parametrize("stop", [KeyboardInterrupt, GeneratorExit])
    def test_an_interruption_is_no_fault_of_the_data(self, stop: type[BaseException]) -> None:
        def interrupted() -> Iterator[Array]:
            yield X
            raise stop

        with pytest.raises(stop):
            list(check(interrupted, ONE, "mine"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    yield tmp_path
    assert sys.path == path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path: Path, code: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("import numpy as np\n" + dedent(code), encoding="utf-8")


class TestModules:
    @pytest.mark.parametrize(
        "code",
        [
            "batches = [np.ones((10, 3), np.float32)]",
            "def batches():\n    yield np.ones((10, 3), np.float32)",
            "class batches:\n    def __iter__(self): return iter([np.ones((10, 3), np.float32)])",
        ],
    )
    def test_an_object_in_the_current_folder(self, code: str, folder: Path) -> None:
        write(folder / "calibration_data.py", code)
        data = open_data("calibration_data:batches", ONE)
        assert data.name == "calibration_data:batches"
        for _ in range(2):
            assert rows(data).shape == (10, 3)

    def test_deeper_names(self, folder: Path) -> None:
        write(folder / "calibration_package" / "part.py", "class A:\n    x = [np.ones((1, 3), np.float32)]")
        assert len(list(open_data("calibration_package.part:A.x", ONE))) == 1

    def test_what_it_prints_is_no_output_of_ours(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code = """
        print("import")
        def batches():
            print("call")
            def each():
                print("begin")
                yield np.ones((1, 3), np.float32)
                print("end")
            return each()
        """
        write(folder / "calibration_talk.py", code)
        for _ in open_data("calibration_talk:batches", ONE):
            print("ours")
        out, err = capsys.readouterr()
        assert out == "ours\n"
        assert set(err.split()) == {"import", "call", "begin", "end"}

    def test_it_may_import_from_the_current_folder_later(self, folder: Path) -> None:
        write(folder / "calibration_second.py", "x = np.ones((1, 3), np.float32)")
        late = "def batches():\n    from calibration_second import x\n    yield x"
        write(folder / "calibration_first.py", late)
        assert len(list(open_data("calibration_first:batches", ONE))) == 1

    def test_a_path_with_a_colon_is_a_path(self, folder: Path) -> None:
        np.save(folder / "a:b.npy", X)
        assert open_data("a:b.npy", ONE).count == 10
        np.save(folder / "module:name", X)
        shutil.move("module:name.npy", "module:name")
        with pytest.raises(InputError, match="module:name: is no data that can be read"):
            open_data("module:name", ONE)
        for text in (r"C:\data\a.npz", "C:/data/a.npz"):
            with pytest.raises(InputError, match="there is no such file or folder"):
                open_data(text, ONE)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            (
                "missing_one:x",
                "missing_one:x: there is no module 'missing_one', neither in the current folder",
            ),
            ("wrong_one:x", r"importing wrong_one raised ZeroDivisionError: .*\(at wrong_one\.py:2\)"),
            ("wrong_one.py:x", r"wrong_one\.py:x: names a file; write wrong_one:x, in the folder of"),
            ("syntax_one:x", r"importing syntax_one raised SyntaxError: .*\(at syntax_one\.py:2\)"),
            (
                "needs_one:x",
                r"importing needs_one raised ModuleNotFoundError: No .* 'absent_one' \(at needs_one",
            ),
            ("ends_one:x", r"importing ends_one raised SystemExit: 0 \(at ends_one\.py:2\)"),
            ("fine_one:y", r"fine_one:y: there is no 'y'; fine_one was imported from .*fine_one\.py"),
            ("fine_one:x.y", "there is no 'y'"),
            ("fine_one:x", "fine_one:x: is a value of type int; give an iterable"),
            ("fine_one:f", r"fine_one:f: batch 0 raised ValueError: no \(at fine_one\.py:4\)"),
            ("fine_one:g", r"fine_one:g: calling it raised RuntimeError \(at fine_one\.py:6\)"),
            ("fine_one:once", "fine_one:once: can be iterated once only"),
            ("fine_one:nan", "fine_one:nan: batch 0: array 'x' holds NaN in sample 0"),
            ("fine_one:", "is neither a file that exists nor package.module:name"),
            ("https://host/a.npz", "is neither a file that exists nor package.module:name"),
        ],
    )
    def test_what_goes_wrong_is_told_in_one_line(self, spec: str, message: str, folder: Path) -> None:
        write(folder / "wrong_one.py", "1 / 0")
        write(folder / "syntax_one.py", "def x(:")
        write(folder / "needs_one.py", "import absent_one")
        write(folder / "ends_one.py", "raise SystemExit(0)")
        write(
            folder / "fine_one.py",
            """\
            x = 1
            def f():
                raise ValueError("no"); yield
            def g():
                raise RuntimeError
            once = iter([np.ones((1, 3))])
            nan = [np.full((1, 3), np.nan)]
            """,
        )
        with pytest.raises(InputError, match=message) as refusal:
            list(open_data(spec, ONE))
        assert "\n" not in str(refusal.value)

    def test_being_told_to_end_is_no_fault_of_the_data(self, folder: Path) -> None:
        """A handler of ours, which raises SystemExit, may run in the middle of somebody else's code."""
        code = "from bnfold.cli.program import _end\ndef batches():\n    _end(15, None)\n    yield"
        write(folder / "calibration_ended.py", code)
        with pytest.raises(SystemExit, match="143"):
            list(open_data("calibration_ended:batches", ONE))


def test_torch_tensors_are_taken_by_their_protocol() -> None:
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(torch.from_numpy(X), batch_size=4, shuffle=True)
    found = rows(check(loader, ONE, "mine"))
    assert sorted(found[:, 0].tolist()) == X[:, 0].tolist()
    learned = torch.from_numpy(X.copy()).requires_grad_()
    with pytest.raises(InputError, match="mine: batch 0: 'x' raised RuntimeError: Can't call numpy"):
        list(check([learned], ONE, "mine"))


def test_numbers_in_a_stream_that_is_no_file(tmp_path: Path) -> None:
    """Columns read what an archive holds, however that is packed."""
    content = io.BytesIO()
    np.save(content, X)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", content.getvalue())
    np.testing.assert_array_equal(rows(open_data(tmp_path / "a.npz", ONE)), X)
