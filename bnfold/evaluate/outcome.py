"""What evaluation can end in other than a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Missing:
    """Stands for a value that nothing could compute; a node that reads one makes one.

    Attributes:
        reason: Which node it began with, and why.
    """

    reason: str


class Unsupported(Exception):
    """An operator, or this form of it, that cannot be run here. The model may well be valid."""


class Random(Exception):
    """An operator whose results are drawn anew each time, so that nobody can be asked for them."""


class EvaluationError(Exception):
    """The model, or what it is fed, has no value: it is invalid, or too large. The message is one line."""


def in_a_line(error: BaseException) -> str:
    """What an exception says, on one line; its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
