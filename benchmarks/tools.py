"""bnfold, its peers and two baselines: what a user would type to fold a model.

Each is a whole process that reads one file and writes another. The peers are development dependencies
only, and each is asked for its own fold of BatchNormalization with its own default settings.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from enum import Enum
from importlib import metadata
from pathlib import Path

import process

SOURCE, TARGET = "{source}", "{target}"


class Role(Enum):
    """What a tool is in the comparison."""

    OURS = "bnfold itself"
    PYTHON = "a peer that one uses from Python"
    RUNTIME = "a runtime whose own loader folds and saves"
    BASELINE = "folds nothing: what reading and writing alone costs"


@dataclass(frozen=True)
class Tool:
    """A program under measurement.

    Attributes:
        name: As shown in the tables.
        package: The distribution whose version is shown; "" for none.
        role: Decides which bars it takes part in.
        arguments: For the Python interpreter; `SOURCE` and `TARGET` stand for the two files.
    """

    name: str
    package: str
    role: Role
    arguments: tuple[str, ...]

    def run(self, source: Path, target: Path, *, timeout: float) -> process.Run:
        """Make `target` from `source`, in the target's folder: some tools leave or remove files there.

        Leaving no target behind is a failure too, whatever the exit code.
        """
        target.parent.mkdir(exist_ok=True)
        target.unlink(missing_ok=True)
        files = {SOURCE: str(source.resolve()), TARGET: str(target.resolve())}
        command = [sys.executable, *(files.get(argument, argument) for argument in self.arguments)]
        done = process.run(command, cwd=target.parent, timeout=timeout)
        return done if done.failure or target.exists() else replace(done, failure="wrote no file")

    @property
    def version(self) -> str:
        """The installed version; "-" where there is none to tell, as for a source tree."""
        try:
            return metadata.version(self.package) if self.package else "-"
        except metadata.PackageNotFoundError:
            return "-"


def _program(source: str) -> tuple[str, ...]:
    return ("-c", source, SOURCE, TARGET)


_COPY = """
import shutil, sys
shutil.copyfile(sys.argv[1], sys.argv[2])
"""

_ONNX_IR = """
import sys, onnx_ir
onnx_ir.save(onnx_ir.load(sys.argv[1]), sys.argv[2])
"""

_ONNXRUNTIME = """
import sys, onnxruntime
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
options.optimized_model_filepath = sys.argv[2]
onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
"""

_ONNXSCRIPT = """
import sys, onnx_ir
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules import common
rules = [
    common.fuse_batchnorm_into_conv_rule,
    common.fuse_batchnorm_into_conv_transpose_rule,
    common.fuse_batchnorm_into_gemm_rule,
]
onnx_ir.save(rewrite(onnx_ir.load(sys.argv[1]), rules), sys.argv[2])
"""

_ONNXSLIM = """
import sys, onnxslim
onnxslim.slim(sys.argv[1], sys.argv[2])
"""

_ONNXSIM = """
import sys, onnx, onnxsim
model, _ = onnxsim.simplify(sys.argv[1])
onnx.save(model, sys.argv[2])
"""

# Without the second pass the file would keep every parameter of the folded nodes.
_ONNXOPTIMIZER = """
import sys, onnx, onnxoptimizer
passes = ["fuse_bn_into_conv", "eliminate_unused_initializer"]
onnx.save(onnxoptimizer.optimize(onnx.load(sys.argv[1]), passes), sys.argv[2])
"""

_BNFOLD = ("-m", "bnfold", "optimize", SOURCE, "-o", TARGET, "--force", "--verify", "none", "-q")

TOOLS = (
    Tool("bnfold", "bnfold", Role.OURS, _BNFOLD),
    Tool("onnxruntime", "onnxruntime", Role.RUNTIME, _program(_ONNXRUNTIME)),
    Tool("onnxscript", "onnxscript", Role.PYTHON, _program(_ONNXSCRIPT)),
    Tool("onnxslim", "onnxslim", Role.PYTHON, _program(_ONNXSLIM)),
    Tool("onnxsim", "onnxsim", Role.PYTHON, _program(_ONNXSIM)),
    Tool("onnxoptimizer", "onnxoptimizer", Role.PYTHON, _program(_ONNXOPTIMIZER)),
    Tool("load + save", "onnx-ir", Role.BASELINE, _program(_ONNX_IR)),
    Tool("copy", "", Role.BASELINE, _program(_COPY)),
)
