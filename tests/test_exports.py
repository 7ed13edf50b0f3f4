"""What `import bnfold` offers, what it costs, and which module may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import bnfold

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "bnfold"
FIXTURE = ROOT / "fixtures" / "digits.onnx"

# A module imports only what stands in a line above its own.
LAYERS = """
changes declared enclosures errors formulas kinds later moments multiset pages pipes recalibration shapes wire
verification
evaluate.outcome
nudge report double_double origin wellformed runtime feeds measure structure evaluate.block evaluate.file
estimate places ranks session stages
journal
affine nodes write given samples sweep evaluate.node
reference.edges
reference.statistics
reference.conventions reference.kernel reference.standardization
reference.batch reference.per_sample
reference.renormalization
reference
constants chains model images evaluate.scope evaluate.stored evaluate.windows
data evaluate.borrowed evaluate.control evaluate.convolutions evaluate.elementwise evaluate.linear
evaluate.normalizations evaluate.pools evaluate.resize evaluate.shapes
evaluate.recurrent evaluate.sampling facts tensors
evaluate.operators moves sources recompute
evaluate.frame arithmetic carriers selections sinks certificate
evaluate.program rules
evaluate plan
borrow alike lane rounding edit
algebra_gate
runtime_gate fold network running sketch pytorch.ranks
recalibrate verify
optimize
pytorch
pytorch.archive pytorch.factory pytorch.failure pytorch.grammar pytorch.inputs pytorch.outputs pytorch.quiet
pytorch.forks pytorch.guards pytorch.leaves pytorch.norms pytorch.pin pytorch.reach pytorch.trees
pytorch.batches
pytorch.settle pytorch.signature pytorch.training
pytorch.arguments pytorch.duplicate pytorch.normalizing pytorch.tidy
pytorch.apart
pytorch.observed
pytorch.network pytorch.probe
pytorch.recalibrate
pytorch.trace
pytorch.calls pytorch.hooks
pytorch.capture pytorch.equal pytorch.shadow pytorch.wide
pytorch.axes pytorch.pointwise pytorch.surgery pytorch.windows
pytorch.aliases pytorch.layers
pytorch.translate
pytorch.fold
pytorch.against pytorch.script_export
pytorch.sides
pytorch.equivalent
pytorch.misfit pytorch.pickles pytorch.torchscript
pytorch.plain pytorch.state_dict
pytorch.load
pytorch.export
__init__
render.blocks render.page
render.assertion render.surroundings render.comparison render.recalibration
render.drawing render.figures render.text render.reasons render.schema
render.comparison_sections render.fold_sections render.recalibration_sections
render.cases
render.afterwards
render.digest
render.answers render.github render.junit render.markdown
render.html
render
artifacts
testing
pytest_plugin
cli.failures cli.files cli.options cli.terminal
cli.reporting
cli.program
cli
__main__
"""

# Each outside package that is slow to import or somebody else's, and who may know it.
GUESTS = {
    "onnxruntime": {"runtime"},
    "torch": {"pytorch"},
    "safetensors": {"pytorch"},
    "click": {"cli"},
    "threadpoolctl": {"algebra_gate"},
    "PIL": {"images"},
    "jinja2": {"render.html"},
    "markupsafe": {"render.html"},
    "matplotlib": {"render.figures", "render.html"},
    "pytest": {"pytest_plugin"},
}
# The checker shares nothing with what it checks.
FOLDING = """affine arithmetic carriers chains constants double_double edit facts fold model moves nodes
origin plan rules selections shapes sinks sources wellformed wire write"""
CHECKING = """algebra_gate alike borrow certificate declared enclosures evaluate feeds given lane measure
nudge recompute rounding runtime runtime_gate session structure tensors verify"""


@cache
def modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(name: str, tree: ast.Module) -> set[str]:
    """What a module imports anywhere in it: our modules as `.name`, other packages as `name`."""
    known = set(modules())
    is_package = any(other.startswith(f"{name}.") for other in known)
    inside = [name] if is_package else name.split(".")[:-1]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package = alias.name.split(".")[0]
                found.add(".__init__" if package == "bnfold" else package)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            package, _, inner = str(node.module).partition(".")
            found.add(f".{inner}" if package == "bnfold" and inner else package)
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1]
            path = [*base, *([node.module] if node.module else [])]
            submodules = {".".join([*path, alias.name]) for alias in node.names} & known
            found |= {f".{submodule}" for submodule in submodules} or {"." + ".".join(path)}
    return found


def late_homes() -> dict[str, str]:
    """Name and module of what `__init__` shows to type checkers."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def python(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


class TestNames:
    def test_the_public_names(self) -> None:
        expected = """load fold inspect optimize recalibrate verify save load_torch export inspect_module
        fold_module recalibrate_module as_dict FoldPass OptimizeReport ExportReport ModuleCheck InspectReport
        FoldReport Decision Outcome Reason Counts BatchNormFacts RecalibrateReport LayerReport Method
        Recalibration ImageOptions Moments SampleMoments VerifyReport Verdict Limit Difference
        AlgebraReport OutputCheck TensorCheck Metrics RuntimeReport RuntimeCheck Certificate FailureReport
        BnfoldError InputError OutputError NotEquivalent NotCalibrated Undecided"""
        assert bnfold.__all__ == expected.split()

    @pytest.mark.parametrize("name", bnfold.__all__)
    def test_each_is_there(self, name: str) -> None:
        assert callable(getattr(bnfold, name))
        assert name in dir(bnfold)

    def test_late_imports_are_what_type_checkers_see(self) -> None:
        assert late_homes() == bnfold._HOMES

    def test_an_unknown_name(self) -> None:
        with pytest.raises(AttributeError, match="'bnfold' has no attribute 'folded'"):
            bnfold.folded  # type: ignore[attr-defined]  # noqa: B018  # that is the point

    @pytest.mark.parametrize("first", ["import bnfold.fold, bnfold.optimize", "from bnfold.fold import fold"])
    def test_functions_win_over_modules_of_their_name(self, first: str) -> None:
        """Python would bind `bnfold.fold` to the module once anything has imported that."""
        text = python(f"{first}\nimport bnfold\nprint(bnfold.fold.__name__, bnfold.optimize.__name__)")
        assert text == "fold optimize\n"


class TestWhatIsLoaded:
    def test_import(self) -> None:
        loaded = python("import bnfold, sys; print(*sys.modules)").split()
        assert not {"numpy", "onnx", "onnx_ir", "onnxruntime", "click", "rich"} & set(loaded)

    @pytest.mark.parametrize("arguments", ["['--help']", "['optimize', '--help']", "['explain', 'BNF101']"])
    def test_help(self, arguments: str) -> None:
        loaded = python(MAIN.format(arguments)).splitlines()[-1].split()
        assert "bnfold.cli" in loaded
        assert not {"numpy", "onnx", "onnx_ir", "onnxruntime", "rich"} & set(loaded)

    def test_optimize(self) -> None:
        """onnxruntime is loaded as well, but by the process that the check starts."""
        loaded = python(MAIN.format(["optimize", str(FIXTURE), "--dry-run"])).splitlines()[-1].split()
        assert "onnx_ir" in loaded
        assert not {"torch", "onnxruntime", "rich"} & set(loaded)


MAIN = """
import sys
from bnfold.cli import main
try:
    main({0})
except SystemExit as end:
    assert not end.code, end.code
print(*sys.modules)
"""


class TestArrows:
    def test_every_module_has_its_layer(self) -> None:
        assert sorted(LAYERS.split()) == sorted(modules()), "say in LAYERS where a new module belongs"

    def test_imports_go_one_way(self) -> None:
        level = {name: i for i, line in enumerate(LAYERS.strip().splitlines()) for name in line.split()}
        wrong = [
            f"{name} imports {other[1:]}"
            for name, tree in modules().items()
            for other in imports(name, tree)
            if other.startswith(".") and level.get(other[1:], 0) >= level.get(name, 99)
        ]
        assert not wrong

    @pytest.mark.parametrize("guest", GUESTS)
    def test_guests_stay_where_they_are_known(self, guest: str) -> None:
        hosts = {name for name, tree in modules().items() if guest in imports(name, tree)}
        assert {name for name in hosts if not {name, name.split(".")[0]} & GUESTS[guest]} == set()

    def test_the_checker_shares_nothing_with_the_fold(self) -> None:
        checking = [name for name in modules() if name.split(".")[0] in CHECKING.split()]
        assert {name.split(".")[0] for name in checking} == set(CHECKING.split())
        shared = {
            f"{name} imports {other[1:]}"
            for name in checking
            for other in imports(name, modules()[name])
            if other[1:] in FOLDING.split()
        }
        assert not shared

    def test_the_command_line_uses_public_names_only(self) -> None:
        parts = {name: tree for name, tree in modules().items() if name.split(".")[0] == "cli"}
        own = {
            other for name, tree in parts.items() for other in imports(name, tree) if other.startswith(".")
        }
        own -= {f".{name}" for name in parts}
        # `later` is about how the process starts, `kinds` about names of files, not about models.
        names = "digest github markdown page surroundings text"
        reports = {".render", *(f".render.{name}" for name in names.split())}
        assert own <= {".__init__", ".kinds", ".later"} | reports
