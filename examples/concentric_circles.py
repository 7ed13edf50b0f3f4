"""Two rings, one network, with and without batch normalization: how many epochs until it sees the rings?

    python examples/concentric_circles.py
    python examples/concentric_circles.py --plot rings.png      (needs matplotlib)

A point belongs to the inner or to the outer of two noisy concentric circles. The network is of the kind for
which batch normalization was invented: several hidden layers of *sigmoid* units, with initial weights of
variance 1/inputs. Each layer squashes what it gets to a narrow range around 1/2, so that behind the third the
output hardly depends on the input, for many epochs. (With initial weights of variance 1 the plain network
needs some ten epochs, not eighty: the claim is about this setting, not about all.)

Both networks are trained with plain SGD in NumPy on the same data, from the same initial weights, with the
same order of batches; forward and backward of the normalization are those of `bnfold.reference`. In the test
it uses its running statistics. Everything is repeated for several seeds, and the medians count.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from bnfold import reference

F64 = NDArray[np.float64]

POINTS = 600
"""For training, and as many for the test; half of them on each ring."""
RADII = (0.5, 1.0)
NOISE = 0.1
HIDDEN = (16, 16, 16)
BATCH = 30
RATE = 3.0
"""In favour of the plain network: at 1 it takes twice as long, at 4 it fails for some seeds."""
GOAL = 0.6
HELD = 3
"""So many epochs in a row count as reached: one alone may be luck."""


def rings(random: np.random.Generator) -> tuple[F64, F64]:
    """Points (POINTS, 2) and the ring of each, (POINTS, 1): 0 or 1."""
    ring = np.arange(POINTS) % 2
    angle = random.uniform(0.0, 2 * np.pi, POINTS)
    circle = np.array(RADII)[ring] * np.array([np.cos(angle), np.sin(angle)])
    return circle.T + random.normal(0.0, NOISE, (POINTS, 2)), ring[:, None].astype(np.float64)


def sigmoid(x: F64) -> F64:
    y: F64 = 1.0 / (1.0 + np.exp(-x))
    return y


class Dense:
    """y = x @ weight + bias."""

    def __init__(self, inputs: int, outputs: int, random: np.random.Generator) -> None:
        self.weight = random.normal(0.0, inputs**-0.5, (inputs, outputs))
        self.bias = np.zeros(outputs)

    def forward(self, x: F64, training: bool) -> F64:
        self.x = x
        y: F64 = x @ self.weight + self.bias
        return y

    def backward(self, dy: F64) -> F64:
        dx: F64 = dy @ self.weight.T
        self.weight -= RATE * (self.x.T @ dy)
        self.bias -= RATE * dy.sum(axis=0)
        return dx


class BatchNormalization:
    """By the batch while training, by running statistics in the test."""

    def __init__(self, channels: int) -> None:
        self.scale, self.bias = np.ones(channels), np.zeros(channels)
        self.running = reference.Running.initial(channels, np.float64)

    def forward(self, x: F64, training: bool) -> F64:
        if not training:
            mean, var = self.running.mean, self.running.var
            return reference.batch_normalization(x, self.scale, self.bias, mean, var)
        self.x = x
        result = reference.batch_normalization_training(x, self.scale, self.bias)
        self.running = reference.PYTORCH.update(self.running, result.statistics)
        return result.y

    def backward(self, dy: F64) -> F64:
        gradients = reference.batch_normalization_training_backward(dy, self.x, self.scale)
        self.scale -= RATE * gradients.dscale
        self.bias -= RATE * gradients.dbias
        return gradients.dx


class Sigmoid:
    """y = 1/(1 + exp(-x))."""

    def forward(self, x: F64, training: bool) -> F64:
        self.y = sigmoid(x)
        return self.y

    def backward(self, dy: F64) -> F64:
        return dy * self.y * (1.0 - self.y)


Layer = Dense | BatchNormalization | Sigmoid


def network(normalized: bool, random: np.random.Generator) -> list[Layer]:
    """From points to the logit of the outer ring."""
    layers: list[Layer] = []
    inputs = 2
    for width in HIDDEN:
        layers.append(Dense(inputs, width, random))
        if normalized:
            layers.append(BatchNormalization(width))
        layers.append(Sigmoid())
        inputs = width
    return [*layers, Dense(inputs, 1, random)]


def forward(layers: Sequence[Layer], x: F64, training: bool) -> F64:
    for layer in layers:
        x = layer.forward(x, training)
    return x


def train(normalized: bool, seed: int, epochs: int) -> list[float]:
    """Test accuracy after each epoch. All that is random depends on the seed alone."""
    random = np.random.default_rng(seed)
    (x, ring), (test_x, test_ring) = rings(random), rings(random)
    layers = network(normalized, random)
    accuracies = []
    for _ in range(epochs):
        for rows in np.split(random.permutation(POINTS), POINTS // BATCH):
            logit = forward(layers, x[rows], training=True)
            gradient = (sigmoid(logit) - ring[rows]) / BATCH  # of the mean cross-entropy
            for layer in reversed(layers):
                gradient = layer.backward(gradient)
        found = forward(layers, test_x, training=False) > 0.0
        accuracies.append(float((found == test_ring).mean()))
    return accuracies


def reached(accuracies: Sequence[float]) -> float:
    """The epoch, counted from 1, from which GOAL holds for HELD epochs; infinite if there is none."""
    good = [accuracy >= GOAL for accuracy in accuracies]
    starts = (i + 1 for i in range(len(good) - HELD + 1) if all(good[i : i + HELD]))
    return next(starts, float("inf"))


@dataclass(frozen=True)
class Runs:
    """One of the two networks, trained once per seed.

    Attributes:
        name: As it is printed.
        accuracies: Per seed, after each epoch.
    """

    name: str
    accuracies: list[list[float]]

    @property
    def epochs_needed(self) -> list[float]:
        """Per seed; infinite where GOAL was not reached."""
        return [reached(run) for run in self.accuracies]

    @property
    def final(self) -> list[float]:
        """Accuracy at the end, per seed."""
        return [run[-1] for run in self.accuracies]


def compare(seeds: int, epochs: int) -> tuple[Runs, Runs]:
    """Without and with batch normalization."""
    plain, normalized = ([train(kind, s, epochs) for s in range(seeds)] for kind in (False, True))
    return Runs("without batch normalization", plain), Runs("with batch normalization", normalized)


def epochs_text(needed: float, epochs: int) -> str:
    return f"{needed:g}" if needed <= epochs else f"more than {epochs}"


def show(both: Sequence[Runs], epochs: int) -> None:
    widths = ", ".join(map(str, HIDDEN))
    print(
        f"Two rings: {POINTS} points to train on, {POINTS} to test; hidden sigmoid layers of {widths} units;"
    )
    print(
        f"SGD, batches of {BATCH}, learning rate {RATE:g}, {epochs} epochs; same data and weights for both."
    )
    for runs in both:
        needed = runs.epochs_needed
        each = ", ".join(epochs_text(n, epochs) for n in needed)
        print(f"\n{runs.name}")
        print(f"  epochs to {GOAL:.0%}:     {epochs_text(median(needed), epochs)} (median of {each})")
        each = ", ".join(f"{accuracy:.1%}" for accuracy in runs.final)
        print(f"  accuracy at the end: {median(runs.final):.1%} (median of {each})")


def plot(both: Sequence[Runs], path: Path) -> None:
    """Each run as a thin line, the median of each epoch as a thick one."""
    try:
        from matplotlib.figure import Figure  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        sys.exit(f"{path} was not drawn: matplotlib is not installed (pip install matplotlib)")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for runs, color in zip(both, ("tab:orange", "tab:blue"), strict=True):
        epoch = range(1, len(runs.accuracies[0]) + 1)
        for accuracies in runs.accuracies:
            axes.plot(epoch, accuracies, color=color, linewidth=0.6, alpha=0.4)
        middle = np.median(runs.accuracies, axis=0)
        axes.plot(epoch, middle, color=color, linewidth=2.2, label=f"{runs.name} (median)")
    axes.axhline(GOAL, color="gray", linestyle="--", linewidth=1)
    axes.set(xlabel="epoch", ylabel="test accuracy", ylim=(0.4, 1.02), title="Two concentric rings")
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=150)
    print(f"\nplot: {path}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=positive, default=5, help="how often to repeat all (default: 5)")
    parser.add_argument("--epochs", type=positive, default=200, help="how long to train (default: 200)")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw the accuracies into this PNG file")
    options = parser.parse_args(arguments)
    both = compare(options.seeds, options.epochs)
    show(both, options.epochs)
    if options.plot:
        plot(both, options.plot)


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    main()
