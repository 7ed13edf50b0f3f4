"""A slice of the random graphs of `fuzz.py`, and that there is something of everything among them."""

from __future__ import annotations

from pathlib import Path

import fuzz
import onnx
import onnx_ir as ir
import pytest
from cases import all_ops
from fuzz_graphs import grown
from fuzz_growth import FLOATS

from bnfold import fold

SLICE = range(1, 61)


@pytest.mark.parametrize("seeds", [SLICE[i : i + 10] for i in range(0, len(SLICE), 10)], ids=str)
def test_random_graphs_keep_the_promises(seeds: range, tmp_path: Path) -> None:
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        fuzz.check(grown(seed), folder)


def test_a_seed_is_a_valid_graph() -> None:
    for seed in SLICE:
        proto = grown(seed)
        onnx.checker.check_model(proto, full_check=True)
        assert proto.SerializeToString() == grown(seed).SerializeToString()


def test_there_is_something_of_everything() -> None:
    protos = [grown(seed) for seed in range(400)]
    met = {op for proto in protos for op in all_ops(proto)}
    assert met >= {"BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul", "If", "Concat", "Mystery"}
    assert any(proto.functions for proto in protos)
    assert {i.version for p in protos for i in p.opset_import if not i.domain} == {*range(7, 23)}
    assert {t.data_type for p in protos for t in p.graph.initializer} >= {*FLOATS}
    assert sum(fold(ir.from_proto(p)).modified for p in protos) > len(protos) / 4
