"""What `assert_equivalent` finds within a test becomes properties of the test, as JUnit carries them, and
what failed is kept in a folder. Nothing is printed, and nothing heavy is imported."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Generator, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from . import testing
from .artifacts import discard

_OPTION, _PREFIX = "bnfold_artifacts", "bnfold_"
_NOTED = pytest.StashKey[list[tuple[str, object]]]()
_LONGEST = 100  # file systems take 255 bytes


def pytest_addoption(parser: pytest.Parser) -> None:
    told = "where to keep models, inputs and a report of each assert_equivalent that does not pass"
    group = parser.getgroup("bnfold", "models that are compared (bnfold)")
    group.addoption("--bnfold-artifacts", metavar="DIR", help=told)
    parser.addini(_OPTION, f"{told}, relative to the root folder", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder absolute; processes of pytest-xdist get it from the one that starts them."""
    given, base = config.getoption(_OPTION), config.invocation_params.dir
    if given is None:
        given, base = config.getini(_OPTION), config.rootpath
    config.option.bnfold_artifacts = os.path.abspath(base / os.path.expanduser(given)) if given else ""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Watch while a test is set up, runs and is torn down, whatever thread compares."""
    before, testing.watcher = testing.watcher, _Watcher(item)
    try:
        return (yield)
    finally:
        testing.watcher = before


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    """Begin before anybody else may skip the test."""
    if isinstance(testing.watcher, _Watcher):
        testing.watcher.begin()
    return (yield)


class _Watcher:
    """Takes down what is found within a test."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        folder = item.config.getoption(_OPTION)
        self._folder = Path(folder) / _file_name(item.nodeid) if folder else None
        self.begin()

    def begin(self) -> None:
        """Forget what was found when the same test ran before."""
        self._calls, self._failures = count(1), count(1)
        noted = self._item.stash.setdefault(_NOTED, [])
        for old in noted:
            with suppress(ValueError):  # somebody has removed it
                self._item.user_properties.remove(old)
        noted.clear()
        if self._folder is not None:
            with suppress(OSError):
                discard(self._folder)

    @property
    def keeps(self) -> bool:
        """Whether failures are kept."""
        return self._folder is not None

    def folder(self) -> Path:
        """Where the next failure is to be kept: that of the test, then folders of numbers in it."""
        assert self._folder is not None
        number = next(self._failures)
        return self._folder if number == 1 else self._folder / str(number)

    def called(self, folder: Path) -> str:
        """Relative to the root folder of the tests, if it is in there."""
        root = self._item.config.rootpath
        return str(folder.relative_to(root) if folder.is_relative_to(root) else folder)

    def note(self, properties: Mapping[str, str]) -> None:
        """As `bnfold_verdict` and so on; as `bnfold_2_verdict` for the second comparison of a test."""
        number = next(self._calls)
        prefix = _PREFIX if number == 1 else f"{_PREFIX}{number}_"
        found: list[tuple[str, object]] = [(prefix + name, value) for name, value in properties.items()]
        self._item.user_properties += found
        self._item.stash[_NOTED] += found


def _file_name(node_id: str) -> str:
    """A name for a folder, of characters that all file systems have; what is lost, a digest tells apart."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", node_id)[-_LONGEST:].strip("._-")
    return f"{plain}-{hashlib.sha256(node_id.encode('utf-8', 'replace')).hexdigest()[:8]}"
