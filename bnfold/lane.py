"""A run of a model in float64 that can be held up at each value: several go side by side that way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from .evaluate import Change, EvaluationError, Missing, Program

Array = NDArray[Any]

_NOTHING = Missing("")


class Lane:
    """A run that waits after each value to be told what to go on with.

    Attributes:
        name: Of the value it waits at; None when it has come to its end.
        value: That value.
        reply: What it is to go on with; None for its own value.
        failure: Why it ended before its time, or "".
    """

    def __init__(
        self, program: Program, feed: Mapping[str, Array], wanted: Sequence[str], change: Change | None = None
    ) -> None:
        self._run = program.run(feed, wanted=wanted, change=change)
        self.name: str | None = ""
        self.value: Array | Missing = _NOTHING
        self.reply: Array | None = None
        self.failure = ""

    def advance(self) -> None:
        reply, self.reply = self.reply, None
        self.value = _NOTHING  # nobody else may need it any more
        try:
            self.name, self.value = self._run.send(reply)
        except StopIteration:
            self.name = None
        except EvaluationError as error:
            self.name, self.failure = None, str(error)
