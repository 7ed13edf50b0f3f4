"""What holds for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from threadpoolctl import threadpool_limits


@pytest.fixture(autouse=True, scope="session")
def one_thread_each() -> Iterator[None]:
    """Tests run side by side; if each asked for all cores, they would wait for one another in busy loops."""
    with threadpool_limits(1, user_api="blas"):
        yield
