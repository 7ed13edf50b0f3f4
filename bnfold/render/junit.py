"""Reports as JUnit XML, which Jenkins, GitLab and others read: a test suite per model, a test per case."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from .digest import Case, Digest, Status
from .surroundings import Surroundings

# What XML 1.0 has no way to write, not even as a reference.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAGS = {Status.FAIL: "failure", Status.UNDECIDED: "error", Status.ERROR: "error"}
_LONGEST = 1000  # characters of a command


def junit(digests: Sequence[Digest], surroundings: Surroundings) -> str:
    """The document. No time is told, so that the same report gives the same bytes."""
    root = Element("testsuites", {"name": "bnfold", **_counts(case for d in digests for case in d.cases)})
    for digest in digests:
        suite = SubElement(root, "testsuite", {"name": _clean(digest.source), **_counts(digest.cases)})
        properties = SubElement(suite, "properties")
        for name, value in (*digest.figures, *_around(surroundings).items()):
            SubElement(properties, "property", name=_clean(name), value=_clean(value))
        # Readers take what stands behind the last dot of a class for its name, and the rest for packages.
        classname = _clean(f"bnfold.{digest.command or 'run'}.{digest.source.replace('.', '_')}")
        seen = Counter[str]()
        for case in digest.cases:
            seen[case.name] += 1
            number = f" ({seen[case.name]})" if seen[case.name] > 1 else ""
            _case(suite, case, classname, number)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _case(suite: Element, case: Case, classname: str, number: str) -> None:
    test = SubElement(suite, "testcase", classname=classname, name=_clean(case.name) + number, time="0")
    message = _clean(case.message)
    if case.status in _TAGS:
        SubElement(test, _TAGS[case.status], message=message, type=case.status.value).text = message
    elif message:
        SubElement(test, "system-out").text = message


def _counts(cases: Iterable[Case]) -> dict[str, str]:
    tags = Counter(_TAGS.get(case.status, "") for case in cases)
    counts = {"tests": tags.total(), "failures": tags["failure"], "errors": tags["error"], "skipped": 0}
    return {name: str(number) for name, number in counts.items()} | {"time": "0"}


def _around(surroundings: Surroundings) -> Mapping[str, str]:
    command = surroundings.command
    if len(command) > _LONGEST:  # it stands in every suite, and may name all of them
        command = f"{command[:_LONGEST]} ..."
    versions = {f"version of {name}": version for name, version in surroundings.versions.items()}
    return {"command": command, "system": surroundings.system, **versions}


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
