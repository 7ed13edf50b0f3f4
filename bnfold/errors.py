"""The errors that reach a user.

    BnfoldError
    ├── InputError      the model (or another input) cannot be used       exit 2
    ├── OutputError     the result cannot be written                      exit 2
    ├── NotEquivalent   the result is not the function it was made from   exit 1
    ├── NotCalibrated   statistics are less sure or exact than was asked  exit 1
    └── Undecided       nothing could be compared                         exit 3

A message says what, where (file, node, value), why, and what to do next. That a node cannot be
folded is none of these: it is a `Decision` with a `Reason`, see `report`.
"""

from __future__ import annotations

from typing import ClassVar


class BnfoldError(Exception):
    """Base of all errors that bnfold raises on purpose.

    Attributes:
        exit_code: What the command line answers when this error ends it.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str) -> None:
        # Names come from files: what a terminal or a log might obey is spelled out.
        super().__init__(
            "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        )


class InputError(BnfoldError):
    """The model, or another input, cannot be used: missing, unreadable, or invalid."""


class OutputError(BnfoldError):
    """The result cannot be written; nothing was."""


class _Unproven(BnfoldError):
    """What was made did not pass its check.

    Attributes:
        report: All that was found out until then.
    """

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class NotEquivalent(_Unproven):
    """The result does not compute what the original computes; nothing was written."""

    exit_code: ClassVar[int] = 1


class NotCalibrated(_Unproven):
    """Recalibrated statistics are less certain, or less exact, than was asked; nothing was written."""

    exit_code: ClassVar[int] = 1


class Undecided(_Unproven):
    """Nothing could be compared, so nothing is claimed; nothing was written."""

    exit_code: ClassVar[int] = 3
