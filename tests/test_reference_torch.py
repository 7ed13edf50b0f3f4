"""The reference against torch: its own test samples, its autograd, its running statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from graphs import Array

from bnfold.errors import InputError
from bnfold.reference import (
    PYTORCH,
    Clip,
    Gradients,
    Normalized,
    Running,
    RunningDeviation,
    batch_normalization,
    batch_normalization_backward,
    batch_normalization_training,
    batch_normalization_training_backward,
    batch_renormalization,
    batch_renormalization_backward,
    group_normalization,
    group_normalization_backward,
    instance_normalization,
    instance_normalization_backward,
    layer_normalization,
    layer_normalization_backward,
)

torch: Any = pytest.importorskip("torch")

# Sums of up to 125 terms in another order than here; float32 samples are computed in float32 by torch.
ROUNDINGS = 64
UNIT = {np.dtype(np.float64): 2.0**-53, np.dtype(np.float32): 2.0**-24}


@dataclass(frozen=True)
class Call:
    """A normalization by torch's names, whichever of its functions was called.

    Attributes:
        x, weight, bias: As there.
        eps: As there.
        training: Whether batch normalization uses the batch's own statistics.
        momentum: Of the running statistics.
        running: Mean and variance; None where there are none.
        detail: Number of groups, or the shape that layer normalization covers.
    """

    x: Any
    weight: Any
    bias: Any
    eps: float = 1e-5
    training: bool = False
    momentum: float = 0.1
    running: Running | None = None
    detail: Any = None


Reading = Callable[..., Call]
Parts = tuple[Callable[[Call], Normalized | Array], Callable[[Array, Call], Gradients]]


def run_batch(c: Call) -> Normalized | Array:
    if c.training:
        return batch_normalization_training(c.x, c.weight, c.bias, epsilon=c.eps)
    assert c.running is not None
    return batch_normalization(c.x, c.weight, c.bias, c.running.mean, c.running.var, epsilon=c.eps)


def run_batch_backward(dy: Array, c: Call) -> Gradients:
    if c.training:
        return batch_normalization_training_backward(dy, c.x, c.weight, epsilon=c.eps)
    assert c.running is not None
    return batch_normalization_backward(dy, c.x, c.weight, c.running.mean, c.running.var, epsilon=c.eps)


BATCH: Parts = (run_batch, run_batch_backward)
LAYER: Parts = (
    lambda c: layer_normalization(c.x, c.weight, c.bias, axis=-len(c.detail), epsilon=c.eps),
    lambda dy, c: layer_normalization_backward(dy, c.x, c.weight, axis=-len(c.detail), epsilon=c.eps),
)
GROUP: Parts = (
    lambda c: group_normalization(c.x, c.detail, c.weight, c.bias, epsilon=c.eps),
    lambda dy, c: group_normalization_backward(dy, c.x, c.detail, c.weight, epsilon=c.eps),
)
INSTANCE: Parts = (
    lambda c: instance_normalization(c.x, c.weight, c.bias, epsilon=c.eps),
    lambda dy, c: instance_normalization_backward(dy, c.x, c.weight, epsilon=c.eps),
)


def running(mean: Array | None, var: Array | None) -> Running | None:
    return None if mean is None or var is None else Running(mean, var)


# How each of torch's functions takes its arguments.


def functional_batch(
    x: Array,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Call:
    return Call(x, weight, bias, eps, training, momentum, running(running_mean, running_var))


def native_batch(
    x: Array, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float
) -> Call:
    return Call(x, weight, bias, eps, training, momentum, running(mean, var))


def legit_batch(x: Array, weight: Any, bias: Any, *rest: Any) -> Call:
    return native_batch(x, weight, bias, *(rest if len(rest) == 5 else (None, None, *rest)))


def updating_batch(x: Array, weight: Any, bias: Any, mean: Any, var: Any, *rest: float) -> Call:
    return native_batch(x, weight, bias, mean, var, True, *rest)


def functional_layer(
    x: Array, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Call:
    return Call(x, weight, bias, eps, detail=normalized_shape)


def native_layer(x: Array, shape: Any, weight: Any, bias: Any, eps: float) -> Call:
    return Call(x, weight, bias, eps, detail=shape)


def functional_group(
    x: Array, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Call:
    return Call(x, weight, bias, eps, detail=num_groups)


def native_group(
    x: Array, weight: Any, bias: Any, n: int, c: int, size: int, groups: int, eps: float
) -> Call:
    return Call(x, weight, bias, eps, detail=groups)


def functional_instance(
    x: Array,
    running_mean: Any = None,
    running_var: Any = None,
    weight: Any = None,
    bias: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Call:
    assert use_input_stats
    return Call(x, weight, bias, eps)


@dataclass(frozen=True)
class Operator:
    """One of torch's, and how many samples it has.

    Attributes:
        read: Its arguments.
        parts: Forward and backward of the reference.
        compared: How many samples are compared.
        refused: How many hold nothing, or no rank of batch normalization.
    """

    read: Reading
    parts: Parts
    compared: int
    refused: int = 0


OPERATORS = {
    ("nn.functional.batch_norm", ""): Operator(functional_batch, BATCH, 10, 2),
    ("nn.functional.batch_norm", "without_cudnn"): Operator(functional_batch, BATCH, 10, 2),
    ("native_batch_norm", ""): Operator(native_batch, BATCH, 10),
    ("_native_batch_norm_legit", ""): Operator(legit_batch, BATCH, 10),
    ("_batch_norm_with_update", ""): Operator(updating_batch, BATCH, 9),
    ("nn.functional.layer_norm", ""): Operator(functional_layer, LAYER, 5, 1),
    ("native_layer_norm", ""): Operator(native_layer, LAYER, 16, 4),
    ("nn.functional.group_norm", ""): Operator(functional_group, GROUP, 17, 4),
    ("native_group_norm", ""): Operator(native_group, GROUP, 17, 4),
    ("nn.functional.instance_norm", ""): Operator(functional_instance, INSTANCE, 9),
}


def as_array(value: Any) -> Any:
    return value.detach().numpy().copy() if isinstance(value, torch.Tensor) else value


def op_db() -> list[Any]:
    # torch's test suite needs a package that torch itself does not; without it there are no samples.
    pytest.importorskip("expecttest", reason="torch's own test samples need the package expecttest")
    from torch.testing._internal.common_methods_invocations import op_db

    found: list[Any] = op_db
    return found


def samples(name: str, variant: str, dtype: Any) -> Iterator[tuple[Any, Any]]:
    (info,) = (op for op in op_db() if (op.name, op.variant_test_name) == (name, variant))
    torch.manual_seed(0)
    for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
        yield info.op, sample


def close(actual: Array, expected: Any, size: float, what: str) -> None:
    """Up to some roundings of numbers of a size; what torch has not is not compared."""
    if expected is None:
        return
    expected = as_array(expected)
    assert actual.dtype == expected.dtype, what
    bound = ROUNDINGS * UNIT[actual.dtype] * max(size, float(np.abs(expected).max()))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound, err_msg=what)


@dataclass(frozen=True)
class Answer:
    """What torch makes of a sample.

    Attributes:
        y: The output.
        dy: What the outputs are weighted with in the loss.
        dx: Its gradient.
        dscale, dbias: The same; None where there is no such parameter.
        after: The call with its running statistics after it.
    """

    y: Array
    dy: Array
    dx: Array
    dscale: Array | None
    dbias: Array | None
    after: Call


def asked(op: Any, sample: Any, operator: Operator) -> Answer:
    """Torch's forward, on copies of the sample's tensors, and its autograd."""
    fresh = [clone(a) for a in (sample.input, *sample.args)]
    named = {k: clone(v) for k, v in sample.kwargs.items()}
    before = operator.read(*fresh, **named)
    learned = {
        k: t for k, t in (("x", before.x), ("scale", before.weight), ("bias", before.bias)) if t is not None
    }
    for t in learned.values():
        t.requires_grad_()
    out = op(*fresh, **named)
    y = out[0] if isinstance(out, tuple) else out
    dy = torch.linspace(-1.0, 1.0, y.numel(), dtype=y.dtype).reshape(y.shape)
    grads = dict(zip(learned, torch.autograd.grad((y * dy).sum(), list(learned.values())), strict=True))
    after = operator.read(*map(as_array, fresh), **{k: as_array(v) for k, v in named.items()})
    dx, dscale, dbias = (as_array(grads.get(k)) for k in ("x", "scale", "bias"))
    return Answer(as_array(y), as_array(dy), dx, dscale, dbias, after)


def clone(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("name", "variant"), OPERATORS)
def test_torchs_own_samples(name: str, variant: str, dtype: str) -> None:
    operator = OPERATORS[name, variant]
    compared = refused = 0
    for op, sample in samples(name, variant, getattr(torch, dtype)):
        if sample.input.numel():
            compare(op, sample, operator)
            compared += 1
        else:
            with pytest.raises(InputError, match="holds no samples"):
                operator.parts[0](as_call(sample, operator))
            refused += 1
    assert (compared, refused) == (operator.compared, operator.refused)


def as_call(sample: Any, operator: Operator) -> Call:
    named = {k: as_array(v) for k, v in sample.kwargs.items()}
    return operator.read(as_array(sample.input), *map(as_array, sample.args), **named)


def compare(op: Any, sample: Any, operator: Operator) -> None:
    """Forward, gradients and running statistics of a sample."""
    call = as_call(sample, operator)
    forward, backward = operator.parts
    result, torchs = forward(call), asked(op, sample, operator)
    found = backward(torchs.dy, call)
    # x̂ is a difference of x/s and μ/s, so it is the size of those that counts; and the terms of dx cancel,
    # so |scale|/s·max|dy|, not what is left of it.
    hat = steepest(call, result) * float(np.abs(call.x).max())
    scale = 1.0 if call.weight is None else float(np.abs(call.weight).max())
    close(result if isinstance(result, np.ndarray) else result.y, torchs.y, scale * hat, "y")
    close(found.dx, torchs.dx, scale * steepest(call, result), "dx")
    close(found.dscale, torchs.dscale, torchs.y.size * hat, "dscale")
    close(found.dbias, torchs.dbias, torchs.y.size, "dbias")
    if call.training and call.running is not None:
        assert isinstance(result, Normalized)
        assert torchs.after.running is not None
        after = replace(PYTORCH, momentum=call.momentum).update(call.running, result.statistics)
        size = float(np.abs(call.x).max()) ** 2
        close(after.mean, torchs.after.running.mean, size, "running mean")
        close(after.var, torchs.after.running.var, size, "running variance")


def drawn_sample(shape: tuple[int, ...], parameters: tuple[int, ...], **kwargs: Any) -> Any:
    """A sample of our own, as torch's look."""
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64) * 2 + 1
    weight, bias = (torch.randn(parameters, dtype=torch.float64) for _ in range(2))
    return SimpleNamespace(input=x, args=(), kwargs={"weight": weight, "bias": bias, **kwargs})


def stored(channels: int) -> dict[str, Any]:
    """Running statistics by the names of torch.nn.functional."""
    mean, var = torch.randn(channels, dtype=torch.float64), torch.rand(channels, dtype=torch.float64) + 0.5
    return {"running_mean": mean, "running_var": var}


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5), (2, 4, 3, 2), (2, 4, 2, 2, 3)], ids=str)
class TestAutograd:
    """Samples of our own, larger than torch's and independent of its test suite."""

    @pytest.mark.parametrize("training", [True, False])
    def test_batch(self, shape: tuple[int, ...], training: bool) -> None:
        sample = drawn_sample(shape, (4,), training=training, momentum=0.3, **stored(4))
        operator = Operator(functional_batch, BATCH, 1)
        compare(torch.nn.functional.batch_norm, sample, operator)

    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_group(self, shape: tuple[int, ...], groups: int) -> None:
        sample = drawn_sample(shape, (4,), num_groups=groups)
        compare(torch.nn.functional.group_norm, sample, Operator(functional_group, GROUP, 1))

    def test_layer(self, shape: tuple[int, ...]) -> None:
        sample = drawn_sample(shape, shape[1:], normalized_shape=shape[1:])
        compare(torch.nn.functional.layer_norm, sample, Operator(functional_layer, LAYER, 1))

    def test_instance(self, shape: tuple[int, ...]) -> None:
        sample = drawn_sample((*shape, 2), (4,))  # torch wants positions
        compare(torch.nn.functional.instance_norm, sample, Operator(functional_instance, INSTANCE, 1))

    @pytest.mark.parametrize("clip", [Clip(), Clip(1.2, 0.3)])
    def test_batch_renormalization(self, shape: tuple[int, ...], clip: Clip) -> None:
        """With r and d detached, as the paper wants it."""
        x, scale, bias = (t.requires_grad_() for t in renormalized_leaves(shape))
        mean, std = stored(4).values()
        spread = (1, 4, *(1,) * (len(shape) - 2))
        others = [i for i in range(len(shape)) if i != 1]
        batch_mean = x.mean(others)
        s = (x.var(others, correction=0) + 1e-3).sqrt()
        r = (s / std).clamp(1 / clip.r_max, clip.r_max).detach()
        d = ((batch_mean - mean) / std).clamp(-clip.d_max, clip.d_max).detach()
        hat = (x - batch_mean.reshape(spread)) / s.reshape(spread)
        y = (hat * r.reshape(spread) + d.reshape(spread)) * scale.reshape(spread) + bias.reshape(spread)
        dy = torch.linspace(-1.0, 1.0, y.numel(), dtype=y.dtype).reshape(y.shape)
        dx, dscale, dbias = torch.autograd.grad((y * dy).sum(), [x, scale, bias])

        running = RunningDeviation(as_array(mean), as_array(std))
        x_, scale_, bias_, dy_ = (as_array(t) for t in (x, scale, bias, dy))
        result = batch_renormalization(x_, scale_, bias_, running, clip=clip, epsilon=1e-3)
        found = batch_renormalization_backward(dy_, x_, scale_, running, clip=clip, epsilon=1e-3)
        # |x|·|scale|·r/s is below 64 here
        close(result.y, y, 64.0, "y")
        close(found.dx, dx, 64.0, "dx")
        close(found.dscale, dscale, float(y.numel()), "dscale")
        close(found.dbias, dbias, float(y.numel()), "dbias")


def renormalized_leaves(shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    sample = drawn_sample(shape, (4,))
    return sample.input, sample.kwargs["weight"], sample.kwargs["bias"]


def steepest(call: Call, result: Normalized | Array) -> float:
    """The largest 1/s."""
    if isinstance(result, Normalized):
        var = result.statistics.population_var
    else:
        assert call.running is not None
        var = call.running.var.astype(np.float64)
    return float(1.0 / np.sqrt(var + call.eps).min())


class TestRunningStatistics:
    @pytest.mark.parametrize("momentum", [0.1, 0.35, 1.0, None])
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    def test_as_torch_nn_has_them(self, momentum: float | None, dtype: str) -> None:
        """Over batches of several sizes; None is the cumulative average."""
        layer = torch.nn.BatchNorm2d(3, momentum=momentum, dtype=getattr(torch, dtype))
        convention = replace(PYTORCH, momentum=momentum)
        ours = Running.initial(3, dtype)
        random = np.random.default_rng(0)
        for n in (2, 7, 3, 5, 2):
            x = (random.standard_normal((n, 3, 4, 2)) * n + n).astype(dtype)
            y = layer(torch.from_numpy(x))
            scale, bias = as_array(layer.weight), as_array(layer.bias)
            result = batch_normalization_training(x, scale, bias, epsilon=layer.eps)
            # torch loses the digits of mean/deviation, which is about 1 here
            close(result.y, y, 16.0, "y")
            ours = convention.update(ours, result.statistics)
            close(ours.mean, layer.running_mean, 16.0, "running mean")
            close(ours.var, layer.running_var, 64.0, "running variance")
            assert ours.batches == int(layer.num_batches_tracked)
        layer.eval()
        y = batch_normalization(x, scale, bias, ours.mean, ours.var, epsilon=layer.eps)
        close(y, layer(torch.from_numpy(x)), 16.0, "y in inference")

    def test_torch_refuses_one_value_as_well(self) -> None:
        layer = torch.nn.BatchNorm1d(3)
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            layer(torch.ones(1, 3))
        batch = batch_normalization_training(np.ones((1, 3)), None, None).statistics
        with pytest.raises(InputError, match="sample variance"):
            PYTORCH.update(Running.initial(3), batch)

    def test_the_defaults(self) -> None:
        layer = torch.nn.BatchNorm1d(1)
        assert (layer.momentum, layer.eps) == (PYTORCH.momentum, PYTORCH.epsilon)
        first = Running.initial(1)
        assert (first.mean, first.var) == (as_array(layer.running_mean), as_array(layer.running_var))
