"""A command-line option whose value is a comma-separated choice of names."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable


def several_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """The `type` of such an option for argparse, which reports unknown names as wrong usage."""
    known = tuple(known)

    def parse(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",")]
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)} not among {', '.join(known)}")
        return names

    return parse
