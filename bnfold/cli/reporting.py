"""What a command reports: on the standard output in the format asked for, and in files, whatever happens.

Nothing that goes wrong with a report takes away the verdict, or the model: it is a line on the standard
error, and an exit code where there would have been none.
"""

from __future__ import annotations

import os
import secrets
import shlex
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import bnfold

from .failures import complain, say, told
from .files import make_ready, replace
from .options import REPORTS
from .terminal import is_first, page, write

if TYPE_CHECKING:
    from ..render.digest import Digest
    from ..render.surroundings import Surroundings

_SUFFIXES = {
    "json": ".json",
    "junit": ".xml",
    "markdown": ".md",
}  # in UTF-8 everywhere: XML says so of itself
_UNWRITTEN = 2  # the exit code, if the verdict's is 0
# No failures of the work: its reader is gone, its user has had enough, it is over.
_PASSING = (BrokenPipeError, click.Abort, click.exceptions.Exit)


@contextmanager
def reporting(
    how: dict[str, Any],
    source: str | None,
    *touched: str | None,
    err: bool = False,
    fail_on: Collection[str] = (),
) -> Iterator[Reporting]:
    """Report what is added in the block, or the error that ends it, and exit as the reports say.

    Args:
        how: All options; those about reports are taken out.
        source: What the user calls the model.
        touched: Other files that the command reads or writes.
        err: Whether the standard output is for the model, and reports go to the standard error.
        fail_on: As for `render.digest`.
    """
    form, paths, as_json = how.pop("form"), how.pop("reports"), how.pop("as_json")
    _need_apart(paths, [source, *touched])
    clash = as_json and form not in (None, "json")
    found = Reporting(
        "text" if clash else "json" if as_json else form or "text",
        how.pop("quiet", False),
        how.pop("verbose"),
        err=err,
        fail_on=fail_on,
    )
    found.prepare(paths)
    try:
        if clash:
            raise click.UsageError(
                f"--json is short for --format json, and --format {form} was given as well"
            )
        yield found
    except _PASSING:
        raise
    except Exception as error:
        found.fail(source or "", error)
        found.finish()
        raise
    found.finish()
    click.get_current_context().exit(found.code)


class Command(click.Command):
    """One that reports, if it has the options for it, also of a command line that it cannot read."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if any(option.name == "reports" for option in self.params):
                _unread(given, error)
            raise


def _unread(arguments: Sequence[str], error: click.UsageError) -> None:
    """Report it as far as the arguments can be understood."""
    forms = [*_guessed(arguments, "--format"), *(["json"] if "--json" in arguments else [])]
    known = [form for form in forms if form in (*_SUFFIXES, "github")]
    found = Reporting(known[-1] if known else "text", "-q" in arguments, 0, err="-" in arguments)
    paths = _guessed(arguments, "--report")
    found.prepare([path for path in paths if Path(path).suffix.lower() in REPORTS])
    found.fail("", error)
    found.finish()


def _guessed(arguments: Sequence[str], flag: str) -> list[str]:
    """The values of an option in arguments of which not all make sense."""
    own = list(takewhile(lambda argument: argument != "--", arguments))
    apart = [value for name, value in pairwise(own) if name == flag]
    return apart + [a.removeprefix(f"{flag}=") for a in own if a.startswith(f"{flag}=")]


class Reporting:
    """Gathers the reports of a command.

    Attributes:
        pictured: Whether one of the files shows what becomes of the graph.
        code: The exit code, as far as it is known.
    """

    def __init__(
        self,
        form: str,
        quiet: bool,
        verbose: int,
        *,
        err: bool = False,
        fail_on: Collection[str] = frozenset(),
    ) -> None:
        self._form, self._quiet, self._verbose, self._err = form, quiet, verbose, err
        self._fail_on = fail_on
        self._found: list[tuple[Any, bnfold.BnfoldError | None]] = []  # reports, and what carried them
        self._files: list[str] = []
        self._is_lost = False
        self.pictured = False
        self.code = 0

    def prepare(self, paths: Collection[str]) -> None:
        """Look what can be written, before the work."""
        for path in paths if is_first() else ():
            if why := make_ready(path):
                self._lose(path, why)
            else:
                self._files.append(path)
        self.pictured = any(path.lower().endswith(".html") for path in self._files)

    def add(self, report: Any, code: int = 0) -> None:
        """A result, and what the exit code says of it."""
        self._found.append((report, None))
        self.code = max(self.code, code)

    def fail(self, source: str, error: Exception) -> None:
        """An error in the place of a result."""
        message, code = told(error, self._arguments)
        self.code = max(self.code, code)
        report = getattr(error, "report", None)
        if report is not None and isinstance(error, bnfold.BnfoldError):
            self._found.append((report, error))
        else:
            self._found.append((bnfold.FailureReport(source, message, code), None))

    @contextmanager
    def one_of_many(self, source: str) -> Iterator[None]:
        """Work on one model, whose failure does not keep the others from theirs."""
        try:
            yield
        except _PASSING:
            raise
        except Exception as error:
            self.fail(source, error)
            complain(error, self._arguments)

    def finish(self) -> None:
        """Write all that was asked for: the files first, for the reader of a stream may leave."""
        for path in self._files:
            self._attempt(path, lambda path=path: replace(path, self._as(Path(path).suffix.lower())))
        if is_first():
            if self._form == "github":
                self._attempt("$GITHUB_STEP_SUMMARY", self._summarize, counts=False)
            if not self._quiet:
                self._print()
        if self._is_lost and not self.code:
            self.code = _UNWRITTEN

    def _print(self) -> None:
        try:
            if text := self._shown():
                write(text, err=self._err, utf8=self._form in _SUFFIXES)
        except bnfold.OutputError as error:
            if not self.code:
                raise
            say("warning", str(error))

    def _shown(self) -> str:
        if self._form in _SUFFIXES:
            return self._as(_SUFFIXES[self._form]).rstrip("\n")
        from ..render import as_text

        sheet = page(self._verbose, err=self._err)
        results = [report for report, error in self._found if error is None and not _is_failure(report)]
        text = "\n\n".join(as_text(report, sheet) for report in results)
        if self._form == "text":
            return text
        from ..render.github import annotations, mute

        return "\n".join([*([mute(text, secrets.token_hex(16))] if text else []), annotations(self._digests)])

    def _as(self, suffix: str) -> str:
        from ..render import as_json, written

        if suffix == ".json":
            return as_json(*(report for report, _ in self._found)) + "\n"
        return written(suffix, self._digests, self._surroundings)

    def _summarize(self) -> None:
        """Append to the summary of the step, which GitHub throws away if it gets too long."""
        from ..render.markdown import LIMIT, markdown

        name = os.environ.get("GITHUB_STEP_SUMMARY")
        if not name:
            return
        if os.path.exists(name) and not os.path.isfile(name):
            raise OSError(0, "there is something that is no file")
        with open(name, "a+b") as file:
            file.seek(max(file.tell() - 1, 0))  # a line that has not ended would take up the first one
            gap = b"" if file.read(1) in (b"", b"\n") else b"\n"
            room = min(LIMIT, 2 * LIMIT - file.tell() - len(gap))
            told = markdown(self._digests, self._surroundings, room)
            content = gap + told.encode("utf-8", "backslashreplace")
            if len(content) > room + len(gap):
                raise OSError(0, "the summary of this step is full")
            file.write(content)

    @cached_property
    def _digests(self) -> list[Digest]:
        from ..render.digest import digest

        command = click.get_current_context().info_name or ""
        return [
            digest(report, command=command, fail_on=self._fail_on, error=error)
            for report, error in self._found
        ]

    @cached_property
    def _surroundings(self) -> Surroundings:
        from ..render.surroundings import surroundings

        return surroundings(shlex.join(["bnfold", *self._arguments]))

    @property
    def _arguments(self) -> list[str]:
        return list(click.get_current_context().obj)

    def _attempt(self, path: str, work: Any, *, counts: bool = True) -> None:
        try:
            work()
        except OSError as error:
            self._lose(path, error.strerror or str(error), counts=counts)
        except bnfold.BnfoldError as error:
            self._lose(path, str(error), counts=counts)
        except Exception as error:  # a defect, which must not take the verdict with it
            if self._verbose > 1:
                traceback.print_exc()
            self._lose(path, f"internal error: {type(error).__name__}: {error}", counts=counts)

    def _lose(self, path: str, why: str, *, counts: bool = True) -> None:
        say("warning", f"{path}: the report cannot be written: {why}")
        self._is_lost = self._is_lost or counts


def _need_apart(paths: Collection[str], touched: Collection[str | None]) -> None:
    """Refuse reports in the place of other files."""
    others = {os.path.realpath(name) for name in touched if name}
    for path in paths:
        if (goal := os.path.realpath(path)) in others:
            raise click.UsageError(f"--report {path} is given twice, or names another file of this command")
        others.add(goal)


def _is_failure(report: Any) -> bool:
    return isinstance(report, bnfold.FailureReport)
