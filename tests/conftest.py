"""What holds for all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from threadpoolctl import threadpool_limits

HAS_TORCH = find_spec("torch") is not None
collect_ignore_glob = (
    [] if HAS_TORCH else ["test_pytorch_*", "test_cli_export.py", "test_docs.py", "test_evaluate_torch.py"]
)


def pytest_report_header() -> str:
    return "" if HAS_TORCH else "PyTorch is not installed: the tests of its side are left out"


@pytest.fixture(autouse=True)
def own_nets() -> None:
    """Several tests write a module of this name and have it imported: none gets that of another."""
    sys.modules.pop("nets", None)


@pytest.fixture(autouse=True)
def same_numbers_each_time() -> None:
    """Modules draw their first weights from the numbers of the process."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def one_thread_each() -> Iterator[None]:
    """Tests run side by side; if each asked for all cores, they would wait for one another in busy loops."""
    with threadpool_limits(1, user_api="blas"):
        yield
