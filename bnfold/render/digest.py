"""A report in the few words that every form of it begins with: the verdict, why, what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ..report import Report


class Status(StrEnum):
    """What is said at the top, and what a test runner makes of it."""

    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"
    ERROR = "error"


@dataclass(frozen=True)
class Case:
    """One thing that was looked at, as a test runner counts it.

    Attributes:
        name: What: "output 'y'", "BatchNormalization 'bn1'", "onnxruntime".
        status: What was found.
        message: What is wrong, or why it stays and what to do, or what was done; may be "".
    """

    name: str
    status: Status
    message: str = ""


@dataclass(frozen=True)
class Digest:
    """A report at a glance.

    Attributes:
        report: All of it.
        command: What was run: "optimize".
        source: The model, as its user calls it.
        status: The verdict.
        headline: What happened, in a sentence.
        message: What decided; "" on a pass.
        figures: Names and values that people ask for first, in order: "BatchNormalizations after", "0".
        cases: The worst first.
        next: What to do now, a sentence each.
    """

    report: Report
    command: str
    source: str
    status: Status
    headline: str
    message: str
    figures: tuple[tuple[str, str], ...]
    cases: tuple[Case, ...]
    next: tuple[str, ...]
