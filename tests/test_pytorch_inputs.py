"""`x:float32[N,3,224,224]`, and what `forward` makes of it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from bnfold import InputError

torch = pytest.importorskip("torch")

from bnfold.pytorch.inputs import DTYPES, Call, Input, bind, parse  # noqa: E402  # torch comes first


def x(data: Any) -> None: ...
def x_mask(x: Any, mask: Any) -> None: ...
def x_mask_none(x: Any, mask: Any = None) -> None: ...
def x_keyword(x: Any, *, z: Any) -> None: ...
def many(*xs: Any) -> None: ...
def named(x: Any, **more: Any) -> None: ...
def nothing() -> None: ...


def bound(inputs: list[str], forward: Any) -> Call:
    return bind("net", inputs, inspect.signature(forward))


class TestParse:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("x:float32[N,3,224,224]", Input("x", "float32", ("N", 3, 224, 224))),
            (" x : int64 [ batch , 7 ] ", Input("x", "int64", ("batch", 7))),
            ("lengths:bool[]", Input("lengths", "bool", ())),
            ("a.b/c:bfloat16[1]", Input("a.b/c", "bfloat16", (1,))),
        ],
    )
    def test_forms(self, text: str, expected: Input) -> None:
        assert parse(text) == expected
        assert parse(str(expected)) == expected

    @pytest.mark.parametrize(
        "text", ["x", "x:float32", "x[1,2]", "x:float32[1", "x:float32[[1]]", ":float32[1]", ""]
    )
    def test_another_form(self, text: str) -> None:
        with pytest.raises(
            InputError, match=r"not of the form NAME:DTYPE\[SIZE,...\]; an example is x:float32\["
        ):
            parse(text)

    def test_an_unknown_dtype_lists_the_known_ones(self) -> None:
        with pytest.raises(InputError, match=r"input 'x': the dtype 'float' is not known; .*int64.*bool"):
            parse("x:float[1]")

    @pytest.mark.parametrize("size", ["0", "-1", "?", "", "1.5", "N+1"])
    def test_a_size_that_is_none(self, size: str) -> None:
        with pytest.raises(
            InputError, match=f"the size '{size.replace('?', '[?]').replace('+', '[+]')}' is neither"
        ):
            parse(f"x:float32[1,{size}]")

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_examples(self, dtype: str) -> None:
        tensor = parse(f"x:{dtype}[N,3]").tensor({"N": 2})
        assert tuple(tensor.shape) == (2, 3)
        assert tensor.dtype is DTYPES[dtype]
        if not tensor.dtype.is_floating_point:
            assert not tensor.to(torch.int64).any() or dtype == "bool"


class TestBind:
    def test_by_name_in_the_order_of_the_parameters(self) -> None:
        call = bound(["mask:bool[N]", "x:float32[N]"], x_mask)
        assert [i.name for i in call.inputs] == ["x", "mask"]
        assert call.arguments([1, 2]) == ((1, 2), {})

    def test_a_parameter_with_a_default_may_be_passed_over(self) -> None:
        assert bound(["x:float32[N]"], x_mask_none).arguments([1]) == ((1,), {})
        assert bound(["z:float32[N]", "x:float32[N]"], x_keyword).arguments([1, 2]) == ((1,), {"z": 2})

    def test_by_position_under_any_name(self) -> None:
        call = bound(["image:float32[N]"], x)
        assert call.arguments([1]) == ((1,), {})
        assert call.note() == "inputs by position: 'image' is the argument 'data'"
        assert bound(["a:float32[1]", "b:float32[1]"], many).arguments([1, 2]) == ((1, 2), {})

    def test_by_name_there_is_nothing_to_note(self) -> None:
        assert bound(["x:float32[N]"], x_mask_none).note() is None

    def test_any_keyword(self) -> None:
        assert bound(["x:float32[1]", "w:float32[1]"], named).arguments([1, 2]) == ((1,), {"w": 2})

    def test_none_given(self) -> None:
        message = r"net: what it is called with has to be told; its forward\(x, mask\) takes x and mask; "
        with pytest.raises(
            InputError, match=message + r"for example --input x:float32\[N,3,224,224\] --input mask:"
        ):
            bound([], x_mask)
        assert bound([], nothing).inputs == ()

    @pytest.mark.parametrize(
        ("inputs", "forward", "message"),
        [
            (["x:float32[1]", "msk:bool[1]"], x_mask, "has no parameter 'msk'"),
            (["x:float32[1]"], x_mask, "also needs mask"),
            (
                ["a:float32[1]", "b:float32[1]"],
                x,
                "2 inputs are given, but its forward.data. takes 1; leave out 'b'",
            ),
            (["a:float32[1]"], nothing, "takes none; leave out 'a'"),
            (["x:float32[1]", "x:float32[1]"], x_mask, "two inputs are called 'x'"),
        ],
    )
    def test_what_does_not_fit(self, inputs: list[str], forward: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            bound(inputs, forward)

    def test_equal_names_are_equal_sizes_and_others_differ(self) -> None:
        call = bound(["x:float32[N,3,H,W]", "mask:bool[N,H]"], x_mask)
        image, mask = next(call.examples())
        n, _, h, w = image.shape
        assert (n, h) == tuple(mask.shape)
        assert n > 1, "torch would take a size of 1 for one that never changes"
        assert len({n, h, w}) == 3
