"""Models that live in PyTorch: loaded, exported, folded. The only place that knows torch."""

from ..errors import InputError

try:
    import torch  # noqa: F401  # here, so that every way in says the same
except ImportError as error:
    raise InputError(
        "PyTorch models need PyTorch, which is not installed; pip install 'bnfold[torch]'"
    ) from error
