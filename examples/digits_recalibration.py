"""What recalibration gains on a trained network, what it does not, and what too few samples cost.

    python examples/digits_recalibration.py

The network is `fixtures/digits.onnx`, trained on handwritten digits. It is changed (half of the channels of
two convolutions are pruned), or its images are (other contrast and brightness). Then the running statistics
of its BatchNormalizations are those of something that is gone. They are measured again on 256 images without
labels, and accuracy is that on 360 others.

Recalibration makes statistics exact, and nothing else. What that is worth, the rows tell one by one: contrast
and brightness are what a normalization undoes, so nearly all comes back; white digits on black are other
images to the network, and nothing does. Four images are too few for a good network: they make it worse. With
sixteen it may be lucky; how uncertain they leave the statistics, the report tells in any case.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

import bnfold

F32 = NDArray[np.float32]

FIXTURES = Path(__file__).parent.parent / "fixtures"
WHITE = 16  # images are stored as 0 to 16
PRUNED = ("block1.body.conv1.weight", "block2.body.conv1.weight")
"""The first convolution of each residual block: what comes out of the block has all of its channels."""
SMALL = (4, 16, 64)
GATE = 0.2
"""Of --max-standard-error: a fifth of a standard deviation."""


@dataclass(frozen=True)
class Digits:
    """Images (n, 1, 8, 8) from 0 to 1: to calibrate with, and to test with, with what they show."""

    calibration: F32
    test: F32
    labels: NDArray[np.uint8]

    @classmethod
    def load(cls) -> Digits:
        with np.load(FIXTURES / "digits.npz") as file:
            calibration, test = (
                file[f"{part}_images"][:, None].astype(np.float32) / WHITE for part in ("calibration", "test")
            )
            return cls(calibration, test, file["test_labels"])

    def shifted(self, change: Callable[[F32], F32]) -> Digits:
        """With all images changed alike."""
        return Digits(change(self.calibration), change(self.test), self.labels)

    def drawn(self, count: int, seed: int) -> Digits:
        """With so many images to calibrate with, drawn at random."""
        chosen = np.random.default_rng(seed).permutation(len(self.calibration))[:count]
        return Digits(self.calibration[chosen], self.test, self.labels)


@dataclass(frozen=True)
class Gain:
    """Accuracy in percent, before and after recalibration."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Small:
    """What so many samples do to the network as it was.

    Attributes:
        samples: How many.
        accuracies: In percent, for each draw.
        errors: For each draw, the largest standard error of a statistic.
    """

    samples: int
    accuracies: list[float]
    errors: list[float]


def pruned(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which half of the channels of `PRUNED`, those with the smallest weights (L1), are zero."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in PRUNED:
            weight = onnx.numpy_helper.to_array(tensor).copy()
            sizes = np.abs(weight).sum(axis=(1, 2, 3))
            weight[np.argsort(sizes)[: len(sizes) // 2]] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    return result


def accuracy(model: onnx.ModelProto, digits: Digits) -> float:
    """In percent of the test images."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": digits.test})
    return 100 * float((logits.argmax(axis=1) == digits.labels).mean())


def recalibrated(
    model: onnx.ModelProto, digits: Digits, **gates: float
) -> tuple[onnx.ModelProto, bnfold.RecalibrateReport]:
    """The model with the statistics of the calibration images, and what was found."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "model.onnx"), Path(folder, "recalibrated.onnx")
        onnx.save(model, source)
        report = bnfold.recalibrate(source, target, data=[digits.calibration], **gates)  # type: ignore[arg-type]
        return onnx.load(target), report


def gains(model: onnx.ModelProto, digits: Digits) -> Iterator[Gain]:
    """Row by row."""
    for name, changed, images in (
        ("as it was trained", model, digits),
        ("half of the channels of two convolutions pruned", pruned(model), digits),
        ("half the contrast", model, digits.shifted(lambda x: x * np.float32(0.5))),
        ("faded: 0.6 of the contrast, brighter by 0.2", model, digits.shifted(_faded)),
        ("inverted", model, digits.shifted(lambda x: 1 - x)),
    ):
        after, _ = recalibrated(changed, images)
        yield Gain(name, accuracy(changed, images), accuracy(after, images))


def _faded(x: F32) -> F32:
    return x * np.float32(0.6) + np.float32(0.2)


def few(model: onnx.ModelProto, digits: Digits, samples: int, draws: int) -> Small:
    """The network as it was trained, recalibrated on too few samples."""
    found = [recalibrated(model, digits.drawn(samples, seed)) for seed in range(draws)]
    return Small(
        samples,
        [accuracy(after, digits) for after, _ in found],
        [max(max(layer.mean_error, layer.var_error) for layer in report.layers) for _, report in found],
    )


def refusal(model: onnx.ModelProto, digits: Digits) -> str:
    """What the gate says to 16 samples."""
    try:
        recalibrated(model, digits.drawn(16, 0), max_standard_error=GATE)
    except bnfold.NotCalibrated as error:
        return str(error).partition(": ")[2]
    raise AssertionError("16 samples are that certain?")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=positive, default=10, help="of few samples (default: 10)")
    options = parser.parse_args(arguments)
    model, digits = onnx.load(FIXTURES / "digits.onnx"), Digits.load()
    print(f"Accuracy on {len(digits.test)} images, recalibrated on {len(digits.calibration)} others")
    print(f"{'':50}{'before':>8}{'after':>8}{'gain':>8}")
    for row in gains(model, digits):
        print(f"{row.name:50}{row.before:7.1f}%{row.after:7.1f}%{row.after - row.before:+8.1f}")
    plain = accuracy(model, digits)
    # The binomial standard deviation of an accuracy, as of independent images.
    noise = 100 * (plain / 100 * (1 - plain / 100) / len(digits.test)) ** 0.5
    print(f"One image is {100 / len(digits.test):.1f} points; the noise of {plain:.1f}% is {noise:.1f}.")
    print(f"\nAs it was trained ({plain:.1f}%), recalibrated on few images, {options.draws} draws of them")
    print(f"{'images':>8}{'mean':>10}{'worst':>10}{'standard error told':>24}")
    for samples in SMALL:
        found = few(model, digits, samples, options.draws)
        figures = f"{fmean(found.accuracies):9.1f}%{min(found.accuracies):9.1f}%{median(found.errors):24.2f}"
        print(f"{samples:8}{figures}")
    print(f"\nmax_standard_error={GATE} and 16 images:\n{refusal(model, digits)}")


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    main()
