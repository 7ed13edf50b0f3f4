"""JSON Schema for each kind of report, out of its dataclasses: `python -m bnfold.render.schema DIR`."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..recalibration import RecalibrateReport
from ..report import SCHEMA_VERSION, ExportReport, FailureReport, InspectReport, OptimizeReport, Report
from ..verification import VerifyReport

KINDS: dict[str, type[Report]] = {
    "optimize": OptimizeReport,
    "inspect": InspectReport,
    "verify": VerifyReport,
    "recalibrate": RecalibrateReport,
    "export": ExportReport,
    "failure": FailureReport,
}

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_OMITTED = {"changes", "formulas"}  # `as_dict` leaves them out
_SCALARS = {str: "string", bool: "boolean", int: "integer"}


def schema(kind: str) -> dict[str, Any]:
    """The schema of what a command prints as JSON; `inspect` prints a list if it is given several models."""
    shared: dict[str, Any] = {}
    root = _report(KINDS[kind], shared)
    if kind == "inspect":
        shared |= {"InspectReport": root, "FailureReport": _report(FailureReport, shared)}
        one, failure = _reference(InspectReport), _reference(FailureReport)
        several = {"type": "array", "minItems": 2, "items": {"anyOf": [one, failure]}}
        root = {"anyOf": [one, several]}
    head = {"$schema": _DIALECT, "$id": f"{kind}.schema.json", "title": KINDS[kind].__name__}
    return {**head, **root, **({"$defs": dict(sorted(shared.items()))} if shared else {})}


def files() -> dict[str, str]:
    """The schemas as files, by name."""
    return {
        f"{kind}.schema.json": json.dumps(schema(kind), indent=2, ensure_ascii=False) + "\n" for kind in KINDS
    }


def _report(cls: type, shared: dict[str, Any]) -> dict[str, Any]:
    """A report that stands by itself: its fields, and which version of them."""
    data = _object(cls, shared)
    version = {"const": SCHEMA_VERSION, "description": "Which version of this schema it follows."}
    data["properties"] = {"schema_version": version, **data["properties"]}
    data["required"] = list(data["properties"])
    return data


def _object(cls: type, shared: dict[str, Any]) -> dict[str, Any]:
    """A dataclass; those that it holds are put into `shared`."""
    hints, told = get_type_hints(cls), attributes(cls)
    properties = {}
    for name in (field.name for field in fields(cls) if field.name not in _OMITTED):
        described = {"description": told[name]} if name in told else {}
        properties[name] = {**_type(hints[name], shared), **described}
    return {
        "type": "object",
        "description": _summary(cls),
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _type(hint: Any, shared: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return {"anyOf": [_type(argument, shared) for argument in arguments]}
    if origin is tuple and arguments[1] is ...:
        return {"type": "array", "items": _type(arguments[0], shared)}
    if origin is tuple:
        items = [_type(argument, shared) for argument in arguments]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _type(arguments[1], shared)}
    if hint is float:  # JSON has neither NaN nor infinity
        return {"type": ["number", "null"]}
    if hint is NoneType:
        return {"type": "null"}
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    if hint.__name__ not in shared:
        shared[hint.__name__] = _enumeration(hint) if issubclass(hint, StrEnum) else _object(hint, shared)
    return _reference(hint)


def _enumeration(cls: type[StrEnum]) -> dict[str, Any]:
    return {"description": _summary(cls), "enum": [member.value for member in cls]}


def _reference(cls: type) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _summary(cls: type) -> str:
    """The first paragraph of the docstring."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())


def attributes(cls: type) -> dict[str, str]:
    """What the docstring says of each attribute; several may be described at once: "before, after: ..."."""
    _, _, section = inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:\n")
    entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n     .*)*)", section, re.MULTILINE)
    return {name: _in_json(text) for names, text in entries for name in names.split(", ")}


def _in_json(text: str) -> str:
    return re.sub(r"\bNone\b", "null", " ".join(text.split()))


if __name__ == "__main__":
    for name, text in files().items():
        (Path(sys.argv[1]) / name).write_text(text, encoding="utf-8")
