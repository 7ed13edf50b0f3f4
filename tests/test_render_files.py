"""Reports as JUnit, Markdown and annotations: what readers of each make of them, whatever names say."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest
from reports import HOSTILE, check, decision, facts, inspection, kept, report, verification

import bnfold
from bnfold import FailureReport, Reason, Verdict
from bnfold.changes import Changes, Size
from bnfold.render import SUFFIXES, as_json, github, lacking, written
from bnfold.render.digest import Case, Digest, Status, digest
from bnfold.render.junit import junit
from bnfold.render.markdown import LIMIT, escaped, markdown
from bnfold.render.surroundings import Surroundings
from bnfold.report import Report

HERE = Surroundings("bnfold inspect model.onnx", {"bnfold": "0.1.0"}, "Linux, 2 processors")
FAILED = inspection(facts("goes"), facts("stays", decision=kept("stays", Reason.SIGN)))
PASSED = report(decision("bn"), kept("other", Reason.OVERRIDABLE))


def digests(*reports: Report) -> list[Digest]:
    return [digest(found, fail_on={"foldable"}) for found in reports]


def hostile(name: str) -> list[Digest]:
    """Every place in which a name stands."""
    stays = kept(name, Reason.SIGN, detail=name)
    proof = verification(
        check(name, 40.0), reference=name, candidate=name, verdict=Verdict.FAIL, message=name
    )
    found = digests(
        replace(report(stays, decision(name, into=(name,))), source=name, target=name),
        replace(inspection(facts(name)), source=name),
        proof,
        FailureReport(name, name, 2),
    )
    # as somebody else might make one, who spells nothing out
    raw = Case(name, Status.FAIL, name)
    bare = Digest(
        PASSED, name, name, Status.FAIL, name, name, ((name, name),), (raw, raw), (name, f"`{name}`")
    )
    return [*found, bare]


def strange(name: str) -> Surroundings:
    return Surroundings(name, {name: name}, name)


class TestJUnit:
    def read(self, *reports: Report) -> Element:
        return ElementTree.fromstring(junit(digests(*reports), HERE).encode())

    def test_a_suite_per_model(self) -> None:
        suites = self.read(PASSED, FAILED, FailureReport("m.onnx", "m.onnx: is empty", 2)).findall(
            "testsuite"
        )
        assert [suite.get("name") for suite in suites] == ["model.onnx", "model.onnx", "m.onnx"]
        counts = [[suite.get(name) for name in ("failures", "errors", "skipped")] for suite in suites]
        assert counts == [["0", "0", "0"], ["2", "0", "0"], ["0", "1", "0"]]

    def test_counts_are_those_of_the_elements(self) -> None:
        root = self.read(PASSED, FAILED, FailureReport("m.onnx", "no", 3))
        for element in (root, *root.findall("testsuite")):
            assert element.get("tests") == str(len(list(element.iter("testcase"))))
            assert element.get("failures") == str(len(list(element.iter("failure"))))
            assert element.get("errors") == str(len(list(element.iter("error"))))

    def test_what_failed_says_why(self) -> None:
        suite = self.read(FAILED)[0]
        (failing,) = (
            case for case in suite.iter("testcase") if case.get("name") == "BatchNormalization 'goes'"
        )
        failure = failing.find("failure")
        assert failure is not None and failure.get("type") == "fail"
        assert failure.get("message") == failure.text == "would be pulled backward into Conv 'conv'"

    def test_what_stays_is_no_failure(self) -> None:
        suite = self.read(PASSED)[0]
        (stays,) = (
            case for case in suite.iter("testcase") if case.get("name") == "BatchNormalization 'other'"
        )
        assert "BNF401" in str(stays.findtext("system-out")) and len(stays) == 1

    def test_properties(self) -> None:
        properties = {p.get("name"): p.get("value") for p in self.read(PASSED)[0].iter("property")}
        assert properties["BatchNormalizations before"] == "2" and properties["command"] == HERE.command
        assert properties["worst ratio"] == "1.96" and properties["version of bnfold"] == "0.1.0"
        assert next(iter(self.read(PASSED)[0])).tag == "properties"  # before the tests, as the schema has it

    def test_names_are_told_apart(self) -> None:
        """GitLab takes tests of one name and class for one; Jenkins takes dots for packages."""
        cases = list(self.read(report(decision("bn"), decision("bn"))).iter("testcase"))
        names = [(case.get("classname"), case.get("name")) for case in cases]
        assert len(set(names)) == len(names)
        assert ("bnfold.optimize.model_onnx", "BatchNormalization 'bn' (2)") in names

    @pytest.mark.parametrize("name", HOSTILE, ids=ascii)
    def test_any_name(self, name: str) -> None:
        text = junit(hostile(name), strange(name))
        root = ElementTree.fromstring(text.encode())
        assert len(root) == 5
        whole = {"\x00": "\ufffd", "\ud800": "\ufffd", "\uffff": "\ufffd", "\x1b[31mred": "\ufffd[31mred"}
        (*_, raw) = root.iter("testcase")
        assert str(raw.get("name")).removesuffix(" (2)") == whole.get(name, name)

    def test_many(self) -> None:
        root = self.read(report(*(decision(f"bn{i}") for i in range(5000))))
        assert int(str(root.get("tests"))) > 5000

    def test_a_long_command_is_not_repeated(self) -> None:
        text = junit(digests(PASSED) * 100, replace(HERE, command="bnfold inspect " + "model.onnx " * 10_000))
        assert len(text) < 1_000_000


def cells(row: str) -> int:
    """How many cells GitHub sees."""
    return len(re.findall(r"(?<!\\)\|", row)) - 1


def plain(text: str) -> str:
    """What is seen of escaped text."""
    return html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text.replace("<!-- -->", "")))


class TestMarkdown:
    def test_a_pass(self) -> None:
        text = markdown(digests(PASSED), HERE)
        head, proof, *_ = text.split("\n\n")
        assert head == "## \u2705 PASS: model.onnx: 1 of 2 BatchNormalizations folded"
        assert proof.startswith("3 tensors of both models differ in float64 by 2 times")
        stays = text.index(f"- **BNF401**, 1 BatchNormalization: {Reason.OVERRIDABLE.sentence}")
        assert stays < text.index("- Deploy model.folded.onnx") < text.index(HERE.command)
        assert "What is wrong" not in text

    def test_failures_come_first(self) -> None:
        text = markdown(digests(PASSED, FAILED), HERE)
        assert text.startswith("## 2 models, 1 not passed\n")
        assert text.index("FAIL: model.onnx: 2 BatchNormalizations") < text.index("PASS: model.onnx: 1 of 2")
        wrong = text.index("### What is wrong")
        assert text.index("| BatchNormalization 'goes' | would be pulled") > wrong
        assert "- Fold: `bnfold optimize model.onnx`.\n" in text

    def test_tables_and_details_are_whole(self) -> None:
        text = markdown(digests(PASSED, FAILED, FailureReport("m.onnx", "no", 2)), HERE)
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            head, ruler, *rows = table.splitlines()
            assert re.fullmatch(r"\|( --- \|)+", ruler)
            assert {cells(row) for row in rows} == {cells(head)} == {cells(ruler)}
        assert text.count("<details>") == text.count("</details>") == 3

    @pytest.mark.parametrize("name", HOSTILE, ids=ascii)
    def test_any_name(self, name: str) -> None:
        text = markdown(hostile(name), strange(name))
        tags = set(re.findall(r"<[^>]*>", re.sub(r"```sh\n.*\n```|`[^`\n]*`", "", text)))
        assert tags <= {"<details>", "</details>", "<summary>", "</summary>", "<!-- -->"}
        for row in re.findall(r"^\|.*", text, re.MULTILINE):
            assert cells(row) in (2, 3)
        text.encode()

    @pytest.mark.parametrize("name", HOSTILE, ids=ascii)
    def test_names_mean_themselves(self, name: str) -> None:
        told = escaped(name)
        assert plain(told) == bnfold.render.page.printable(name)
        assert not re.search(r"[@#]\w|://|(?<!\\)[|`*_~$\[\]]", told.replace("<!-- -->", "\0"))

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("# head", "\\# head"),
            ("- item", "\\- item"),
            ("1. first", "1\\. first"),
            ("0.5", "0.5"),
            ("www.a.b GH-12 :tada:", "www<!-- -->.a.b GH-<!-- -->12 :<!-- -->tada:"),
            ("a\\|b", "a\\\\\\|b"),
        ],
    )
    def test_escaped(self, name: str, told: str) -> None:
        assert escaped(name) == told

    def test_code_cannot_be_left(self) -> None:
        bare = replace(
            digests(PASSED)[0], next=("Run `a` or `<b>` now", "Fold: `bnfold optimize '<i>.onnx'`.")
        )
        text = markdown([bare], HERE)
        assert "- Run \\`a\\` or \\`&lt;b&gt;\\` now\n" in text
        assert "- Fold: `bnfold optimize '<i>.onnx'`.\n" in text

    def test_size(self) -> None:
        """Whole rows are left out, and told."""
        whole = digests(inspection(*(facts("\u4e2d" * 80 + f"{i}") for i in range(2000))))
        text = markdown(whole, HERE)
        assert 0.9 * LIMIT < len(text.encode()) <= LIMIT
        shown = text.count("| would be pulled backward into Conv 'conv' |")
        assert f"\n{2000 - shown} more rows are left out here: `--report x.json` has all of them.\n" in text
        assert text.endswith("</details>\n") and text.count("<details>") == text.count("</details>")

    def test_many_models(self) -> None:
        found = digests(*(inspection(facts("bn" * 50)) for _ in range(5000)), FAILED)
        text = markdown(found, HERE)
        assert len(text.encode()) <= LIMIT
        assert (
            text.startswith("## 5001 models, 5001 not passed") and "more there is no room for details" in text
        )

    def test_every_reason_at_its_worst(self) -> None:
        worst = "#a" * 2000
        stay = [kept(worst, reason, detail=worst) for reason in Reason for _ in range(3)]
        assert len(markdown(digests(report(*stay, source=worst)), strange(worst)).encode()) <= LIMIT


def parsed(line: str) -> tuple[str, dict[str, str], str]:
    """A workflow command as the runner reads it: name, properties, message."""
    found = re.fullmatch(r"::(\w+) ([^:]*)::(.*)", line)
    assert found is not None, line
    properties = dict(part.split("=", 1) for part in found[2].split(","))

    def decoded(text: str, codes: str) -> str:
        for code in codes.split():
            text = text.replace(code, chr(int(code[1:], 16)))
        return text.replace("%25", "%")

    return (
        found[1],
        {name: decoded(value, "%0D %0A %3A %2C") for name, value in properties.items()},
        decoded(found[3], "%0D %0A"),
    )


class TestGitHub:
    def test_one_annotation_per_model(self) -> None:
        failures = (FailureReport("m.onnx", "no", code) for code in (1, 2, 3, 4))
        lines = github.annotations(digests(PASSED, FAILED, *failures)).splitlines()
        levels = [parsed(line)[0] for line in lines]
        assert levels == ["notice", "error", "error", "error", "warning", "error"]

    def test_message(self) -> None:
        _, properties, message = parsed(github.annotations(digests(FAILED)))
        assert properties == {"title": "bnfold inspect: fail"}
        assert "could be folded" in message and message.endswith("\nFold: `bnfold optimize model.onnx`.")

    def test_a_file_is_one_in_the_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "here").mkdir()
        for path in ("here/a,b: 5%.onnx", "out.onnx"):
            (tmp_path / path).write_bytes(b"")
        monkeypatch.chdir(tmp_path / "here")
        for source, file in (
            ("a,b: 5%.onnx", "a,b: 5%.onnx"),
            (str(tmp_path / "here" / "a,b: 5%.onnx"), "a,b: 5%.onnx"),
            ("../out.onnx", None),
            ("missing.onnx", None),
            (".", None),
            ("-", None),
        ):
            _, properties, _ = parsed(github.annotations(digests(replace(PASSED, source=source))))
            assert properties.get("file") == file

    @pytest.mark.parametrize("name", [*HOSTILE, "50%0A::error::", "\r\n::warning::"], ids=ascii)
    def test_any_name(self, name: str) -> None:
        lines = github.annotations(hostile(name)).split("\n")
        assert len(lines) == 5
        for line in lines:
            _, properties, message = parsed(line)
            assert set(properties) == {"title"} and message

    def test_a_long_message(self) -> None:
        assert len(github.annotations(digests(FailureReport("m.onnx", "x" * 100_000, 2)))) < 5000

    def test_mute(self) -> None:
        assert github.mute("  ::error::x", "word") == "::stop-commands::word\n  ::error::x\n::word::"


class TestWritten:
    def test_json_of_one_and_of_several(self) -> None:
        failure = FailureReport("m.onnx", "no", 2)
        one, many = (
            json.loads(written(".json", digests(*reports), HERE))
            for reports in ([failure], [PASSED, failure])
        )
        assert one == {"schema_version": 1, "source": "m.onnx", "message": "no", "exit_code": 2}
        assert many == [json.loads(as_json(PASSED)), one]

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_the_same_bytes(self, suffix: str) -> None:
        pytest.importorskip("bnfold.render.html") if suffix == ".html" else None
        size = Size(10, 40)
        found = replace(PASSED, changes=Changes(size, size, (), ()))
        assert written(suffix, digests(found), HERE) == written(suffix, digests(found), HERE) != ""

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_what_is_lacking(self, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert lacking(suffix) == ""
        monkeypatch.setattr("bnfold.render.find_spec", lambda name: None)
        expected = "it needs jinja2 and matplotlib: pip install 'bnfold[report]'" if suffix == ".html" else ""
        assert lacking(suffix) == expected
