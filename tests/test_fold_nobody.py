"""Folds that are exact, and that other tools leave: a line for each kind, with what remains."""

from __future__ import annotations

import numpy as np
import pytest
from cases import MERGED, PULLED, PUSHED, Case, case, check
from graphs import drawn, norm, positive

INTO_SEVERAL_READERS = [
    case(
        "a normalization before three convolutions",
        "b = BN(x) p = Conv(b, u) q = Conv(b, v) r = Conv(b, w) y = Sum(p, q, r)",
        "Conv Conv Conv Sum",
        PUSHED,
        u=(4, 3, 1, 1), v=(4, 3, 1, 1), w=(4, 3, 1, 1), **norm(3),
    ),
    case(
        "a normalization before a convolution and a transposed one",
        "b = BN(x) p = Conv(b, v) q = ConvTranspose <pads = [2,2,2,2]> (b, w) y, z = Identity(p), Identity(q)"
        .replace("y, z = Identity(p), Identity(q)", "y = Identity(p) z = Identity(q)"),
        "Conv ConvTranspose Identity Identity",
        PUSHED,
        gives="float[] z", v=(4, 3, 1, 1), w=(3, 4, 3, 3), **norm(3),
    ),
    case(
        "a normalization before pools, each with a classifier",
        "b = BN(x) p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, w, c) q = ReduceMean <axes = [2,3], keepdims = 0> (b) "
        "z = Gemm <transB = 1> (q, v)",
        "GlobalAveragePool Flatten Gemm ReduceMean Gemm",
        PUSHED,
        gives="float[] z", w=(3, 5), c=(5,), v=(6, 3), **norm(3),
    ),
    case(
        "a normalization before two slices of its channels",
        "b = BN(x) p = Slice(b, i0, i1, i1) q = Slice(b, i1, i3, i1) r = Conv(p, u) s = Conv(q, v) y = Add(r, s)",
        "Slice Slice Conv Conv Add",
        PUSHED,
        i0=[0], i1=[1], i3=[3], u=(4, 1, 1, 1), v=(4, 2, 1, 1), **norm(3),
    ),
]

INTO_GROUPS = [
    case(
        "before a grouped convolution",
        "b = BN(x) y = Conv <group = 2> (b, w)", "Conv", PUSHED,
        x="float[N,4,8,8]", w=(6, 2, 3, 3), **norm(4),
    ),
    case(
        "before a depthwise convolution with a multiplier",
        "b = BN(x) y = Conv <group = 3> (b, w, c)", "Conv", PUSHED,
        w=(6, 1, 3, 3), c=(6,), **norm(3),
    ),
    case(
        "after a grouped transposed convolution",
        "c = ConvTranspose <group = 2> (x, w) y = BN(c)", "ConvTranspose", PULLED,
        x="float[N,4,8,8]", w=(4, 3, 3, 3), **norm(6),
    ),
    case(
        "before a grouped transposed convolution, the scale alone",
        "b = Mul(x, s) y = ConvTranspose <group = 2, strides = [2,2]> (b, w)", "ConvTranspose", PUSHED,
        x="float[N,4,8,8]", w=(4, 3, 3, 3), s=(4, 1, 1),
    ),
    case(
        "before a grouped transposed convolution that cuts its border off",
        "b = BN(x) y = ConvTranspose <group = 2, pads = [2,4,2,4], dilations = [1,2]> (b, w)", "ConvTranspose", PUSHED,
        x="float[N,4,8,8]", w=(4, 3, 3, 3), **norm(4),
    ),
]

TO_THE_CLASSIFIER = [
    case(
        "normalization, average over the image, Gemm",
        "b = BN(x) p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, w, c)", "GlobalAveragePool Flatten Gemm", PUSHED,
        w=(3, 5), c=(5,), **norm(3),
    ),
    case(
        "normalization, average, squeeze, MatMul and its bias",
        "b = BN(x) p = ReduceMean <axes = [2,3], keepdims = 1> (b) f = Squeeze(p, i) m = MatMul(f, w) y = Add(m, c)",
        "ReduceMean Squeeze MatMul Add", PUSHED, PUSHED.__class__.KEPT and PUSHED,
        i=[2, 3], w=(3, 5), c=(5,), **norm(3),
    ),
    case(
        "normalization, Flatten, Gemm: each channel goes to 64 rows",
        "b = BN(x) f = Flatten(b) y = Gemm(f, w, c)", "Flatten Gemm", PUSHED,
        w=(192, 5), c=(5,), **norm(3),
    ),
    case(
        "normalization, Reshape, MatMul: the shift is one Add",
        "b = BN(x) f = Reshape(b, i) y = MatMul(f, w)", "Reshape MatMul Add", PUSHED,
        i=[0, -1], w=(192, 5), **norm(3),
    ),
    case(
        "convolution, average, normalization, Gemm: backwards is as good",
        "c = Conv(x, v) p = GlobalAveragePool(c) b = BN(p) f = Flatten(b) y = Gemm(f, w)",
        "Conv GlobalAveragePool Flatten Gemm", PULLED,
        v=(4, 3, 3, 3), w=(4, 5), **norm(4),
    ),
]


@pytest.mark.parametrize("case", [*INTO_SEVERAL_READERS, *INTO_GROUPS, *TO_THE_CLASSIFIER])
def test_forward(case: Case) -> None:
    check(case)
