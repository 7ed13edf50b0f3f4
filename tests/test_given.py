"""Inputs that a user gives: what is taken, and what is said about what is not."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from bnfold.errors import InputError
from bnfold.given import given

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
TWO = "(float[N,3] x, float[N,2] z) => (float[] y) { y = Relu(x) }"
ONE = "(float[N,3] x) => (float[] y) { y = Relu(x) }"
X, Z = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 2), np.float32)


def model(graph: str) -> onnx.ModelProto:
    return parser.parse_model(f"{HEADER} g {graph}")


def read(path: Path, text: str) -> list[dict[str, NDArray[Any]]]:
    return [dict(feed.arrays) for feed in given(path, model(text))]


def tensor(path: Path, array: NDArray[Any], name: str = "") -> None:
    path.parent.mkdir(exist_ok=True)
    onnx.save_tensor(numpy_helper.from_array(array, name), str(path))


class TestKinds:
    def test_an_archive(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", z=Z, x=X)
        ((feed),) = list(given(tmp_path / "a.npz", model(TWO)))
        np.testing.assert_array_equal(feed.arrays["x"], X)
        np.testing.assert_array_equal(feed.arrays["z"], Z)
        assert feed.description == f"{tmp_path / 'a.npz'}, N=2"

    def test_one_array_for_one_input(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", X)
        np.testing.assert_array_equal(read(tmp_path / "a.npy", ONE)[0]["x"], X)
        with pytest.raises(InputError, match=r"a\.npy: is one array, but the model has 2 inputs: 'x', 'z'"):
            given(tmp_path / "a.npy", model(TWO))

    def test_a_folder_in_the_order_of_its_numbers(self, tmp_path: Path) -> None:
        for i in (10, 2, 1):
            np.save(tmp_path / f"image{i}.npy", X[:1] * 0 + i)
        np.savez(tmp_path / "image3.npz", x=X[:1] * 0 + 3)
        (tmp_path / "notes.txt").write_text("not for us")
        assert [int(f["x"][0, 0]) for f in read(tmp_path, ONE)] == [1, 2, 3, 10]

    def test_onnx_test_data_by_number(self, tmp_path: Path) -> None:
        tensor(tmp_path / "input_1.pb", Z)
        tensor(tmp_path / "input_0.pb", X)
        tensor(tmp_path / "output_0.pb", X)
        (feed,) = read(tmp_path, TWO)
        np.testing.assert_array_equal(feed["x"], X)
        np.testing.assert_array_equal(feed["z"], Z)

    def test_onnx_test_data_by_name(self, tmp_path: Path) -> None:
        tensor(tmp_path / "input_0.pb", Z, "z")
        tensor(tmp_path / "input_1.pb", X, "x")
        np.testing.assert_array_equal(read(tmp_path, TWO)[0]["x"], X)

    def test_a_folder_of_onnx_test_data(self, tmp_path: Path) -> None:
        for i in (0, 2, 10):
            tensor(tmp_path / f"test_data_set_{i}" / "input_0.pb", X + np.float32(i))
        assert [int(f["x"][0, 0]) for f in read(tmp_path, ONE)] == [0, 2, 10]

    def test_they_are_read_as_they_are_asked_for(self, tmp_path: Path) -> None:
        for i in range(2):
            np.save(tmp_path / f"{i}.npy", X)
        feeds = given(tmp_path, model(ONE))
        next(feeds)
        os.remove(tmp_path / "1.npy")
        with pytest.raises(InputError, match=r"1\.npy: cannot be read"):
            next(feeds)

    def test_the_last_wrong_one_is_reported_before_the_first_is_used(self, tmp_path: Path) -> None:
        for i in range(3):
            np.save(tmp_path / f"{i}.npy", X if i < 2 else X[:, :2])
        with pytest.raises(InputError, match=r"2\.npy"):
            given(tmp_path, model(ONE))


class TestTypes:
    @pytest.mark.parametrize(
        ("ours", "theirs"), [("float", "float64"), ("float16", "float32"), ("double", "float16")]
    )
    def test_floats_of_another_width_are_cast(self, ours: str, theirs: str, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", X.astype(theirs))
        x = read(tmp_path / "a.npy", ONE.replace("float[N,3]", f"{ours}[N,3]"))[0]["x"]
        assert x.dtype == np.dtype({"float": "float32", "double": "float64"}.get(ours, ours))
        np.testing.assert_array_equal(x, X)

    def test_bfloat16_as_floats_and_as_its_own_bits(self, tmp_path: Path) -> None:
        text = ONE.replace("float[N,3]", "bfloat16[N,3]")
        for array in (X, X.astype(ml_dtypes.bfloat16)):
            np.save(tmp_path / "a.npy", array)
            x = read(tmp_path / "a.npy", text)[0]["x"]
            assert x.dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(x.astype(np.float32), X)

    def test_integers_of_another_width_are_cast_if_they_fit(self, tmp_path: Path) -> None:
        text = "(uint8[N,3] x) => (uint8[] y) { y = Identity(x) }"
        np.save(tmp_path / "a.npy", np.array([[0, 1, 255]]))
        assert read(tmp_path / "a.npy", text)[0]["x"].dtype == np.uint8
        np.save(tmp_path / "a.npy", np.array([[0, 1, 256]]))
        with pytest.raises(InputError, match="holds 256, which the model's uint8 cannot hold"):
            given(tmp_path / "a.npy", model(text))

    def test_nan_and_infinity_may_be_given(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.array([[np.nan, np.inf, 1]]))
        assert np.isnan(read(tmp_path / "a.npy", ONE)[0]["x"]).sum() == 1

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.array([[1, 2, 3]]), "array 'x' is int64, but the model's input is float32"),
            (np.array([[1, 2, 300]], np.uint16), "is uint16, but .* float32; convert it"),
            (np.ones((1, 3), bool), "is bool, but"),
            (np.ones((1, 3), complex), "is complex128, but"),
            (np.array([["a", "b", "c"]]), "is str"),
            (np.array([[1e300, 1, 1]]), "holds 1e\\+300, which the model's float32 cannot hold"),
        ],
    )
    def test_other_types(self, array: NDArray[Any], message: str, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(InputError, match=message):
            given(tmp_path / "a.npy", model(ONE))

    @pytest.mark.parametrize(
        ("indices", "fits"), [([0, 8], True), ([-9, 0], True), ([0, 9], False), ([-10, 0], False)]
    )
    def test_indices_have_to_be_in_the_table(self, indices: list[int], fits: bool, tmp_path: Path) -> None:
        lookup = model("(int64[N] i) => (float[] y) { y = Gather(w, i) }")
        lookup.graph.initializer.append(numpy_helper.from_array(np.zeros((9, 2), np.float32), "w"))
        np.save(tmp_path / "a.npy", np.array(indices))
        if fits:
            assert next(given(tmp_path / "a.npy", lookup)).arrays["i"].tolist() == indices
        else:
            with pytest.raises(InputError, match=r"'i' holds .* a table of 9 rows; keep it within 0 to 8"):
                given(tmp_path / "a.npy", lookup)


class TestShapes:
    @pytest.mark.parametrize(
        ("x", "z", "message"),
        [
            (X[:, :2], Z, r"'x' has shape \[2, 2\], but the model's input is \[N, 3\]: axis 1 has to be 3"),
            (X[0], Z, r"'x' has shape \[3\], but the model's input has rank 2: \[N, 3\]"),
            (X[:1], Z, r"'z' has shape \[2, 2\], so 'N' would be 2, but another input makes it 1"),
            (X[:0], Z[:0], r"'x' has shape \[0, 3\]: it is empty"),
        ],
    )
    def test_those_that_do_not_bind(
        self, x: NDArray[Any], z: NDArray[Any], message: str, tmp_path: Path
    ) -> None:
        np.savez(tmp_path / "a.npz", x=x, z=z)
        with pytest.raises(InputError, match=message):
            given(tmp_path / "a.npz", model(TWO))

    def test_a_name_for_every_free_size_of_an_input_says_nothing(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", np.zeros((1, 3, 8, 9), np.float32))
        assert read(tmp_path / "a.npy", "(float[N,3,N,N] x) => (float[] y) { y = Relu(x) }")

    def test_an_input_of_unknown_rank_takes_any(self, tmp_path: Path) -> None:
        unranked = model(ONE)
        unranked.graph.input[0].type.tensor_type.ClearField("shape")
        np.save(tmp_path / "a.npy", np.zeros((1, 3, 8), np.float32))
        assert next(given(tmp_path / "a.npy", unranked)).arrays["x"].shape == (1, 3, 8)
        np.save(tmp_path / "a.npy", np.zeros((0, 3), np.float32))
        with pytest.raises(InputError, match="it is empty"):
            given(tmp_path / "a.npy", unranked)


class TestNames:
    def test_a_missing_array(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=X)
        with pytest.raises(InputError, match=r"a\.npz: has no array for 'z'; it has 'x'; .* 'x', 'z'"):
            given(tmp_path / "a.npz", model(TWO))

    def test_an_array_too_many(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=X, z=Z, mask=Z)
        with pytest.raises(InputError, match=r"arrays that the model does not read: 'mask'; .* 'x', 'z'"):
            given(tmp_path / "a.npz", model(TWO))

    def test_tensors_too_many(self, tmp_path: Path) -> None:
        tensor(tmp_path / "input_0.pb", X)
        tensor(tmp_path / "input_1.pb", X)
        with pytest.raises(InputError, match=r"does not read: 'input_1\.pb'"):
            given(tmp_path, model(ONE))


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.path),)


class TestFiles:
    def test_nothing_is_unpickled(self, tmp_path: Path) -> None:
        sprung = tmp_path / "sprung"
        np.savez(tmp_path / "a.npz", x=np.array([Trap(sprung)], object))
        np.save(tmp_path / "b.npy", np.array([Trap(sprung)], object), allow_pickle=True)
        (tmp_path / "c.npz").write_bytes(pickle.dumps(Trap(sprung)))
        for name in ("a.npz", "b.npy", "c.npz"):
            with pytest.raises(InputError, match=f"{name}: holds pickled objects, which are never loaded"):
                given(tmp_path / name, model(ONE))
        assert not sprung.exists()

    @pytest.mark.parametrize("keep", [0, 20, 200])
    def test_cut_off(self, keep: int, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=X)
        np.save(tmp_path / "b.npy", np.zeros((100, 3), np.float32))
        for name in ("a.npz", "b.npy"):
            path = tmp_path / name
            path.write_bytes(path.read_bytes()[:keep])
            with pytest.raises(InputError, match=f"{name}: ") as refusal:
                given(path, model(ONE))
            assert "\n" not in str(refusal.value)

    def test_a_flipped_bit(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=X)
        content = bytearray((tmp_path / "a.npz").read_bytes())
        content[content.index(X.tobytes())] ^= 1
        (tmp_path / "a.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"is corrupt .*CRC"):
            given(tmp_path / "a.npz", model(ONE))

    @pytest.mark.parametrize("content", [b"", b"\xff\xff\xff", b"no protobuf"])
    def test_onnx_test_data_that_is_none(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "input_0.pb").write_bytes(content)
        with pytest.raises(InputError, match=r"input_0\.pb: is corrupt"):
            given(tmp_path, model(ONE))

    def test_onnx_test_data_with_numbers_elsewhere(self, tmp_path: Path) -> None:
        proto = numpy_helper.from_array(X)
        onnx.external_data_helper.set_external_data(proto, "secret")
        proto.ClearField("raw_data")
        (tmp_path / "input_0.pb").write_bytes(proto.SerializeToString())
        with pytest.raises(InputError, match="keeps its numbers in another file"):
            given(tmp_path, model(ONE))

    def test_what_is_not_there_or_nothing_of_ours(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="there is no such file or folder"):
            given(tmp_path / "nothing.npz", model(ONE))
        with pytest.raises(InputError, match="this folder holds no inputs; expected"):
            given(tmp_path, model(ONE))
        (tmp_path / "x.csv").write_text("1,2,3")
        with pytest.raises(InputError, match=r"x\.csv: is neither \.npz nor \.npy"):
            given(tmp_path / "x.csv", model(ONE))
        (tmp_path / "input_a.pb").write_text("")
        with pytest.raises(InputError, match=r"input_a\.pb: is not numbered"):
            given(tmp_path, model(ONE))
