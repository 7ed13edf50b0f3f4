"""What commands print as JSON is what docs/schema/ says, and docs/schema/ is what the dataclasses say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from graphs import model, norm
from jsonschema import Draft202012Validator, ValidationError

from bnfold.cli import main
from bnfold.render.schema import KINDS, attributes, files, schema
from bnfold.report import Report, as_dict
from bnfold.verification import Metrics

ROOT = Path(__file__).parent.parent
COMMITTED = ROOT / "docs" / "schema"
DIGITS = ROOT / "fixtures" / "digits.onnx"

FOLDS = """(float[N,3,H,W] x) => (float[N,4,P,Q] y)
{ c = Conv(x, w)  n = BatchNormalization(c, scale, bias, mean, var)  y = Relu(n) }"""
STAYS = "(float[N,4,H,W] x) => (float[N,4,H,W] y) { y = BatchNormalization(x, scale, bias, mean, var) }"
TRAINS = (
    "(float[N,4] x) => (float[N,4] y) { y = BatchNormalization<training_mode=1>(x, scale, bias, mean, var) }"
)
NAN = "(float[4] x) => (float[4] y) { z = Sub(x, x)  y = Div(z, z) }"

# What is run in a folder with `files_there`; what it prints; what it answers.
COMMANDS = {
    "optimize": ("optimize folds.onnx -o new.onnx", "optimize", 0),
    "optimize, with onnxruntime": ("optimize digits.onnx --dry-run --verify full", "optimize", 0),
    "optimize, unverified": ("optimize digits.onnx --dry-run --verify none", "optimize", 0),
    "optimize, recalibrated": ("optimize digits.onnx --dry-run --recalibrate images.npz", "optimize", 0),
    "optimize, nothing to do": ("optimize trains.onnx --dry-run", "optimize", 0),
    "optimize, no such file": ("optimize absent.onnx", "failure", 2),
    "inspect": ("inspect digits.onnx", "inspect", 0),
    "inspect, kept": ("inspect trains.onnx", "inspect", 0),
    "inspect, foldable": ("inspect digits.onnx --fail-on foldable", "inspect", 1),
    "inspect, several": ("inspect digits.onnx folds.onnx stays.onnx", "inspect", 0),
    "inspect, some unusable": ("inspect digits.onnx absent.onnx images.npz", "inspect", 2),
    "verify, pass": ("verify folds.onnx folds.onnx", "verify", 0),
    "verify, fail": ("verify folds.onnx other.onnx", "verify", 1),
    "verify, other outputs": ("verify folds.onnx stays.onnx", "verify", 1),
    "verify, undecided": ("verify nan.onnx nan.onnx --outputs-only", "verify", 3),
    "verify, unusable": ("verify folds.onnx images.npz", "failure", 2),
    "recalibrate": ("recalibrate digits.onnx --data images.npz --dry-run", "recalibrate", 0),
    "recalibrate, one sample": (
        "recalibrate digits.onnx --data images.npz --limit 1 --dry-run",
        "recalibrate",
        0,
    ),
    "recalibrate, in one pass": (
        "recalibrate digits.onnx --data images.npz --method onepass --dry-run",
        "recalibrate",
        0,
    ),
    "recalibrate, too uncertain": (
        "recalibrate digits.onnx --data images.npz --max-standard-error 1e-6",
        "recalibrate",
        1,
    ),
    "export": (
        "export --model nets:small --pythonpath . --input x:float32[N,3,8,8] -o net.onnx",
        "export",
        0,
    ),
    "export, unfolded": (
        "export --model nets:small --pythonpath . --input x:float32[N,3,8,8] --no-fold --dry-run",
        "export",
        0,
    ),
    "export, no such function": ("export --model nets:large --pythonpath . --dry-run", "failure", 2),
}
NETS = """
from torch import nn
def small():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
"""


@pytest.fixture(scope="module")
def files_there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, proto in {
        "folds": model(FOLDS, w=(4, 3, 3, 3), **norm(4)),
        "other": model(FOLDS, w=np.ones((4, 3, 3, 3), np.float32), **norm(4)),
        "stays": model(STAYS, **norm(4)),
        "trains": model(TRAINS, **norm(4)),
        "nan": model(NAN),
        "digits": onnx.load(DIGITS),
    }.items():
        onnx.save(proto, folder / f"{name}.onnx")
    images = np.load(DIGITS.with_suffix(".npz"))["calibration_images"][:16, None].astype(np.float32) / 16
    np.savez(folder / "images.npz", image=images)
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    return folder


@pytest.fixture
def printed(files_there: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Any]:
    monkeypatch.chdir(files_there)

    def run(line: str, exit_code: int) -> Any:
        if line.startswith("export"):
            pytest.importorskip("torch")
        result = CliRunner().invoke(main, [*line.split(), "--format", "json"])
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout)

    return run


def validator(kind: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((COMMITTED / f"{kind}.schema.json").read_text(encoding="utf-8")))


def nested(data: Any) -> Iterator[dict[str, Any]]:
    """All objects in a document, itself included."""
    if isinstance(data, dict):
        yield data
    for part in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from nested(part)


def test_what_is_committed_is_what_is_made() -> None:
    """`make docs` writes them."""
    committed = {path.name: path.read_text(encoding="utf-8") for path in COMMITTED.glob("*.json")}
    assert committed == files()


def test_every_report_has_a_schema() -> None:
    assert set(KINDS.values()) == set(Report.__args__)


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_is_one_and_says_what_every_field_means(kind: str) -> None:
    Draft202012Validator.check_schema(schema(kind))
    objects = [part for part in nested(schema(kind)) if part.get("additionalProperties") is False]
    assert objects
    for part in objects:
        assert part["required"] == list(part["properties"])
        assert all(field["description"] for field in part["properties"].values())


def test_several_attributes_may_be_described_at_once() -> None:
    told = attributes(Metrics)
    assert told["ulp_p50"] == told["ulp_max"] and told["ulp_max"].startswith("Quantiles of the difference")
    assert told["top1"].endswith("null below two columns.")


@pytest.mark.parametrize(("line", "kind", "exit_code"), COMMANDS.values(), ids=COMMANDS)
def test_what_is_printed_is_valid(
    printed: Callable[[str, int], Any], line: str, kind: str, exit_code: int
) -> None:
    document = printed(line, exit_code)
    validator(kind).validate(document)


def test_every_command_and_kind_is_tried() -> None:
    assert {kind for _, kind, _ in COMMANDS.values()} == set(KINDS)


@pytest.mark.parametrize("command", ["inspect", "verify, fail", "recalibrate", "export, no such function"])
def test_what_is_something_else_is_not_valid(printed: Callable[[str, int], Any], command: str) -> None:
    """Each field of an object of each form, in turn: gone, of another type, or joined by an unknown one."""
    line, kind, exit_code = COMMANDS[command]
    document, check = printed(line, exit_code), validator(kind)
    wrong: list[Any] = [None, [], [document], {**document, "schema_version": 2}]
    for form in {frozenset(part): None for part in nested(document) if part.keys() <= fields_of(kind)}:
        for field in sorted(form):
            without, other, more = (deepcopy(document) for _ in range(3))
            del like(form, without)[field]
            like(form, other)[field] = {"of": ["another type"]}
            like(form, more)[f"{field} of nobody"] = 0
            wrong += [without, other, more]
    assert len(wrong) > 12
    for changed in wrong:
        with pytest.raises(ValidationError):
            check.validate(changed)


def fields_of(kind: str) -> set[str]:
    """All names of fields in a schema: of objects that have other names in them, anything may be one."""
    closed = [part for part in nested(schema(kind)) if part.get("additionalProperties") is False]
    return {name for part in closed for name in part["properties"]}


def like(form: frozenset[str], document: Any) -> dict[str, Any]:
    """The first object with these fields."""
    return next(part for part in nested(document) if frozenset(part) == form)


def test_a_pair_is_two(printed: Callable[[str, int], Any]) -> None:
    document = printed("verify folds.onnx folds.onnx", 0)
    before, after = document["sizes"]
    for sizes in ([], [before], [before, after, after]):
        with pytest.raises(ValidationError):
            validator("verify").validate({**document, "sizes": sizes})


def test_a_figure_that_json_cannot_hold_is_null(printed: Callable[[str, int], Any]) -> None:
    document = printed(COMMANDS["recalibrate, one sample"][0], 0)
    assert document["layers"][0]["mean_error"] is None


def test_fields_are_those_of_the_library(printed: Callable[[str, int], Any]) -> None:
    import bnfold

    assert list(printed("inspect stays.onnx", 0)) == list(as_dict(bnfold.inspect("stays.onnx")))
