"""Runs a module on micro-batches while somebody looks at what comes into its normalizations.

The module is a copy, at rest and without gradients: whatever happens here leaves no trace on the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import BnfoldError, InputError
from ..moments import SampleMoments
from .apart import Apart
from .batches import MicroBatch
from .failure import RAISED, told, where
from .forks import Fork
from .normalizing import have_proven, input_of
from .norms import Norm

Visit = Callable[[int, torch.Tensor], None]
Call = Callable[[nn.Module, Any], object]


class Failed(InputError):
    """The module cannot run on a micro-batch."""


class Uneven(InputError):
    """What comes into a normalization does not consist of as many rows for each sample."""


class Enough(BaseException):
    """Raised by a visitor that has seen what it wants; nothing that catches exceptions should catch it."""


class Observed:
    """A module with a visitor.

    Attributes:
        module: Itself.
        norms: Its normalizations.
        name: What the user calls it, for messages.
    """

    def __init__(self, module: nn.Module, norms: Sequence[Norm], call: Call, name: str, apart: Apart) -> None:
        """Nothing runs yet.

        Args:
            module: A copy.
            norms: Its normalizations.
            call: Runs it on what a micro-batch holds.
            name: What the user calls it, for messages.
            apart: The original.
        """
        self.module, self.norms, self.name = module, norms, name
        self._call, self._apart = call, apart
        self._visit: Visit = _ignore
        for i, norm in enumerate(norms):
            have_proven(norm)
            norm.module.register_forward_pre_hook(self._hook(i), with_kwargs=True)

    def run(self, batch: MicroBatch, visit: Visit) -> None:
        """Run it.

        Args:
            batch: What on.
            visit: Called with the number of each normalization and its input, just before it computes.

        Raises:
            Failed: It cannot run.
            InputError: It uses a normalization twice.
        """
        seen = set[int]()

        def once(i: int, x: torch.Tensor) -> None:
            self._need_first(i, seen)
            visit(i, x)

        with suppress(Enough), self._visited_by(once), torch.no_grad(), self._failing_on(batch):
            self._call(self.module, batch.content)

    def _hook(self, i: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._visit(i, input_of(self.norms[i], args, kwargs))

        return hook

    @contextmanager
    def _visited_by(self, visit: Visit) -> Iterator[None]:
        before, self._visit = self._visit, visit
        try:
            yield
        finally:
            self._visit = before

    @contextmanager
    def _failing_on(self, batch: MicroBatch) -> Iterator[None]:
        try:
            with self._apart.running():
                yield
        except BnfoldError:
            raise
        except RAISED as error:
            place = where(error, self.module)
            raise Failed(
                f"{self.name}: cannot run on {_samples(batch)} of the calibration data: "
                f"{type(error).__name__}: {told(error)}" + (f" ({place})" if place else "")
            ) from error

    def _need_first(self, i: int, seen: set[int]) -> None:
        if i in seen:
            raise InputError(
                f"BatchNormalization '{self.norms[i].name}': is used twice in one run, and one set of "
                "statistics cannot be right for two inputs; use a copy of the module in one of the places "
                "(copy.deepcopy)"
            )
        seen.add(i)


class Pass:
    """A pass that stops at each normalization.

    Attributes:
        batch: What it runs on.
        fork: Its thread.
        seen: The normalizations at which it was.
    """

    def __init__(self, observed: Observed, batch: MicroBatch) -> None:
        self.batch = batch
        self.seen = set[int]()
        self._observed = observed
        self.fork = Fork(lambda: observed._call(observed.module, batch.content))

    @property
    def at(self) -> tuple[int, torch.Tensor] | None:
        """The normalization where it stands, and its input."""
        value: tuple[int, torch.Tensor] | None = self.fork.value
        return value

    def go_on(self) -> bool:
        """Go to the next normalization; False if there is none.

        Raises:
            Failed: It cannot run.
            InputError: It uses a normalization twice.
        """

        def visit(i: int, x: torch.Tensor) -> None:
            self._observed._need_first(i, self.seen)
            self.fork.stop((i, x))

        observed = self._observed
        with observed._visited_by(visit), torch.no_grad(), observed._failing_on(self.batch):
            return self.fork.resume()


def moments_of(norm: Norm, x: torch.Tensor, batch: MicroBatch) -> SampleMoments | None:
    """The moments of what comes into a normalization, for each sample that counts; None if nothing does.

    Raises:
        Uneven: The rows of the input are not those of the samples.
        InputError: The input has other channels, or is not finite.
    """
    if x.ndim < 2 or x.shape[1] != norm.channels:
        raise InputError(
            f"BatchNormalization '{norm.name}': its input has shape {tuple(x.shape)}, where axis 1 should "
            f"have {norm.channels} channels"
        )
    each, rest = divmod(len(x), batch.rows)
    if rest:
        raise Uneven(
            f"BatchNormalization '{norm.name}': its input has {len(x)} rows for {batch.rows} samples; "
            "pass sample='row' to run them one by one"
        )
    if not x.numel():
        return None
    count = len(batch.indices)
    found = SampleMoments.of(numbers(x[: count * each]), count)
    if not found.finite.all():
        sample = batch.indices[int(np.argmin(found.finite))]
        raise InputError(
            f"BatchNormalization '{norm.name}': its input is not finite in {batch.unit} {sample} of the "
            "calibration data (the first is 0); look for what overflows before it, or for broken data"
        )
    return found


def numbers(x: torch.Tensor) -> NDArray[Any]:
    """The numbers of a tensor, in a type that NumPy has."""
    plain = x.detach().cpu()
    array: NDArray[Any] = (plain.float() if plain.dtype is torch.bfloat16 else plain).numpy()
    return array


def _samples(batch: MicroBatch) -> str:
    first, last = min(batch.indices), max(batch.indices)
    return f"{batch.unit} {first}" if first == last else f"{batch.unit}s {first} to {last}"


def _ignore(i: int, x: torch.Tensor) -> None:
    """Nobody looks."""
