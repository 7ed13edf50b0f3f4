"""What is postponed is not loaded, and works all the same."""

import subprocess
import sys


def test_symbols_still_add_up() -> None:
    code = """
import sys
from bnfold.later import postpone
postpone("sympy")
import onnx_ir as ir
assert "sympy.core" not in sys.modules
size = ir.SymbolicDim("N")
assert "sympy.core" not in sys.modules
assert str(size + 1) == "N + 1" and "sympy.core" in sys.modules
import sympy
assert ir.SymbolicDim(sympy.Symbol("M") * 2).value == "2*M"
assert str(ir.SymbolicDim("max(A, B)") + 0) == "Max(A, B)"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
