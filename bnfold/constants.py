"""`Constant`: a tensor known before the model runs, as an affine image of stored numbers.

A fold that changes a constant does not round it: it composes one more elementwise affine on top of the
stored numbers. So a weight that takes two folds is still rounded once, when it is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .affine import Elementwise
from .double_double import BFLOAT16, F64, SPLITTABLE, DoubleDouble, narrow
from .formulas import Formula, combined
from .pages import let_go
from .report import Declined, Reason

FLOATS = frozenset(np.dtype(t) for t in (np.float16, BFLOAT16, np.float32, np.float64))

_Numbers = TypeVar("_Numbers", NDArray[Any], DoubleDouble)

_TINY = float(np.finfo(np.float16).tiny)
# A float64 product of the weight and the leading half of its scale is within 2**-51 of the exact one.
_DOWN, _UP = 1.0 - 2.0**-51, 1.0 + 2.0**-51
_NOTHING: Formula = ("number", 0.0)
_ONE: Formula = ("number", 1.0)
_BLOCK = 1 << 16  # elements per step: the float64 intermediates stay in the cache


@dataclass(frozen=True, eq=False)
class Constant:
    """scale · base + shift, in the dtype of the base.

    Attributes:
        base: The stored numbers (a view of the file where possible).
        scale: Factors that broadcast with `base`; None is 1.
        shift: Summands that broadcast with it; None is 0.
        stored: What the base is in the original model, see `formulas`; None if nobody can tell.
    """

    base: NDArray[Any]
    scale: DoubleDouble | None = None
    shift: DoubleDouble | None = None
    stored: Formula | None = None

    @classmethod
    def nothing(cls, dtype: DTypeLike) -> Constant:
        """The 0 that an absent input counts as."""
        return cls(np.zeros((), dtype), stored=_NOTHING)

    @classmethod
    def exactly(cls, numbers: DoubleDouble, dtype: DTypeLike) -> Constant:
        """Numbers that are stored nowhere yet."""
        return cls(np.zeros((), dtype), None, numbers, _NOTHING)

    @classmethod
    def factors(cls, numbers: DoubleDouble, dtype: DTypeLike) -> Constant:
        """The same for numbers that data are multiplied by: `check` takes care that none of them vanishes."""
        return cls(np.ones((), dtype), numbers, None, _ONE)

    @property
    def formula(self) -> Formula | None:
        """How its numbers, before rounding, come from those of the original model."""
        formula = self.stored
        if self.scale is None and self.shift is None:
            return formula
        if self.shift is not None and formula is _NOTHING:
            return self.shift.formula
        if self.scale is not None:
            formula = combined("mul", (formula, self.scale.formula))
        return formula if self.shift is None else combined("add", (formula, self.shift.formula))

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        kept: tuple[int, ...] | None = self.__dict__.get("_shape")
        if kept is not None:
            return kept
        shape = self.base.shape
        for part in (self.scale, self.shift):
            if part is not None:
                shape = _broadcast(shape, part.shape)
        self.__dict__["_shape"] = shape
        return shape

    def line(self, axis: int | None) -> DoubleDouble:
        """Its numbers before rounding along one axis, or just one, at the start of all other axes."""
        at = tuple(slice(None) if k == axis else 0 for k in range(len(self.shape)))
        scale, shift = (p and p.broadcast_to(self.shape)[at] for p in (self.scale, self.shift))
        numbers = Constant(np.broadcast_to(self.base, self.shape)[at], scale, shift).exact()
        formula = self.formula
        return DoubleDouble(numbers.hi, numbers.lo, formula and ("line", formula, axis))

    def reshape(self, *shape: int) -> Constant:
        """The same numbers in another shape."""
        return Constant.exactly(self.exact().broadcast_to(self.shape).reshape(*shape), self.dtype)

    def mapped(self, change: Elementwise) -> Constant:
        """Its image under one more affine."""
        scale, shift = self.scale, self.shift
        if change.scale is not None and (shift is not None or not self._is_zero):
            scale = change.scale if scale is None else change.scale * scale
            shift = None if shift is None else change.scale * shift
        if change.shift is not None:
            shift = change.shift if shift is None else shift + change.shift
        return Constant(self.base, scale, shift, self.stored)

    def exact(self) -> DoubleDouble:
        """Its numbers before rounding."""
        if self._is_zero and self.shift is not None:
            return self.shift
        numbers = DoubleDouble.of(self.base, self.stored)
        if self.scale is not None:
            numbers = numbers * self.scale
        if self.shift is not None:
            numbers = numbers + self.shift
        return numbers

    @property
    def _is_zero(self) -> bool:
        """Whether there is nothing but the shift."""
        return self.base.ndim == 0 and not self.base

    @np.errstate(all="ignore")  # underflow is a correct rounding; the rest was checked
    def rounded(self) -> NDArray[Any]:
        """Its numbers, each the correctly rounded exact value."""
        if self.scale is None and self.shift is None:
            return self.base
        kept: NDArray[Any] | None = self.__dict__.get("_kept")
        if kept is not None:
            return kept
        result = np.empty(self.shape, self.dtype)
        for rows, part in self._parts():
            result[rows] = part._round()
        let_go(self.base)
        if self.shift is not None and result.size <= _BLOCK:
            self.__dict__["_kept"] = result  # `check` has to round it, and it is a small bias
        return result

    def _parts(self) -> Iterator[tuple[slice | tuple[()], Constant]]:
        """Blocks of rows that fit into the cache, whatever the size of the whole."""
        shape, size = self.shape, math.prod(self.shape)
        if size <= _BLOCK:
            yield (), self
            return
        step = max(1, _BLOCK * shape[0] // size)
        for first in range(0, shape[0], step):
            rows = slice(first, first + step)
            scale = None if self.scale is None else _rows(self.scale, rows, shape)
            shift = None if self.shift is None else _rows(self.shift, rows, shape)
            yield rows, Constant(_rows(self.base, rows, shape), scale, shift)

    def _round(self) -> NDArray[Any]:
        if self.scale is None or self.shift is not None:
            return self.exact().round(self.dtype)
        if self.dtype == np.float64:
            return self.exact().round(self.dtype, settled=not self.scale.lo.any())
        return _scaled(np.broadcast_to(self.base, self.shape), self.scale)

    def check(self, name: str) -> None:
        """Raise `Declined` if the rounded numbers would not be fit to take the place of the exact ones.

        Args:
            name: What to call the constant in the message.
        """
        if self.shift is None:
            self._check_scaled(name)
            return
        for _, part in self._parts():
            if np.isfinite(part.rounded().astype(np.float64)).all():
                continue
            if not part.exact().is_finite():
                raise Declined(Reason.NOT_FINITE, f"{name} holds NaN or infinity")
            raise Declined(Reason.OVERFLOW, f"{name} would exceed the range of {self.dtype}")

    def _check_scaled(self, name: str) -> None:
        """The same from the largest magnitude per scale, without computing the products."""
        scale = np.abs(np.ones(()) if self.scale is None else self.scale.hi)
        largest = _magnitude(self.base, scale.shape)
        let_go(self.base)
        if not np.isfinite(largest).all() or not np.isfinite(scale).all():
            raise Declined(Reason.NOT_FINITE, f"{name} holds NaN or infinity")
        if self.dtype == np.float64 and max(largest.max(), scale.max()) > SPLITTABLE:
            raise Declined(Reason.OVERFLOW, f"{name} holds numbers above {SPLITTABLE:.0e}")
        product = largest * scale
        stored = narrow(product, self.dtype).astype(np.float64)
        if not np.isfinite(stored).all():
            raise Declined(
                Reason.OVERFLOW, f"{name} would reach {product.max():.3g}, too much for {self.dtype}"
            )
        # What vanishes in the wider types vanishes there when the original runs as well.
        if self.dtype == np.float16 and np.any((product > 0.0) & (product < _TINY) & (largest >= _TINY)):
            least = product[product > 0.0].min()
            raise Declined(
                Reason.UNDERFLOW, f"a channel of {name} would be at most {least:.3g} in {self.dtype}"
            )


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """`np.broadcast_shapes` of two, quick where b merely spreads over a."""
    if not a:
        return b
    if len(a) == len(b) and all(n in (1, m) for m, n in zip(a, b, strict=True)):
        return a
    return np.broadcast_shapes(a, b)


def _rows(numbers: _Numbers, rows: slice, shape: tuple[int, ...]) -> _Numbers:
    """These rows of numbers that broadcast to the shape."""
    per_row = len(numbers.shape) == len(shape) and numbers.shape[0] > 1
    return numbers[rows] if per_row else numbers


def _magnitude(base: NDArray[Any], shape: tuple[int, ...]) -> F64:
    """The largest |number| of the base for each entry of a scale of this shape."""
    shape = (1,) * (base.ndim - len(shape)) + shape
    axes = tuple(i for i, n in enumerate(shape[len(shape) - base.ndim :]) if n == 1)
    if base.dtype == BFLOAT16:
        base = base.astype(np.float32)
    if not base.size:
        return np.zeros(())
    above, below = base.max(axis=axes, keepdims=True), base.min(axis=axes, keepdims=True)
    largest: F64 = np.maximum(above.astype(np.float64), -below.astype(np.float64))
    return largest


def _scaled(base: NDArray[Any], scale: DoubleDouble) -> NDArray[Any]:
    """base · scale, correctly rounded to the dtype of the base.

    Ziv's test: round a little below and a little above. Where both agree, the exact product rounds to
    the same; where they do not (about once in 10**8 for float32), 106 bits decide.
    """
    wide = base.astype(np.float64)
    low, high = (np.asarray(narrow(wide * (scale.hi * by), base.dtype)) for by in (_DOWN, _UP))
    doubtful = np.asarray(low != high)  # a single number is an array as well
    if doubtful.any():
        factor = scale.broadcast_to(base.shape)[doubtful]
        low[doubtful] = (DoubleDouble.of(base[doubtful]) * factor).round(base.dtype)
    return low
