"""Processes that share the data end with the same bits as one, or all of them end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from bnfold import InputError  # noqa: E402  # torch comes first
from bnfold.pytorch.ranks import joined  # noqa: E402
from bnfold.ranks import Alone  # noqa: E402

SCRIPT = """
import hashlib, os, sys
import torch
from torch import nn
from bnfold import BnfoldError
from bnfold.pytorch.ranks import joined
from bnfold.pytorch.recalibrate import recalibrate_module

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))
x = torch.randn(70, 3, 8, 8)
case, *more = sys.argv[1:]


class Data(list):
    def __iter__(self):
        self.reads = getattr(self, "reads", 0) + 1
        if case == "raises" and rank == 1 and self.reads == 4:
            raise ValueError("disk on fire")
        if case == "dies" and rank == 1 and self.reads == 4:  # while all measure
            os._exit(3)
        return super().__iter__()


def bits():
    return hashlib.sha256(b"".join(b.numpy().tobytes() for b in net.buffers())).hexdigest()


before = bits()
try:
    with joined() as ranks:
        rank = ranks.rank
        if case == "nan" and rank == 1:
            x[40] = torch.nan
        if case == "weights" and rank == 1:
            net[0].weight.data[0] += 1e-6
        share = {1: [x], 2: [x[:13], x[13:]], 3: [x[:3], x[3:3], x[3:]]}[ranks.size][rank]
        report = recalibrate_module(
            net,
            iter([share]) if case == "iterator" and rank == 1 else Data(share.split(5)),
            ranks=ranks,
            micro_batch=9 if (case, rank) == ("options", 1) else 8,
            cache=more[0] if more else "auto",
        ).report
        print(f"{bits()} {report.samples} {report.processes}\\n", end="", flush=True)
except BnfoldError as error:
    print(f"{type(error).__name__}: {error} {bits() == before}\\n", end="", flush=True)
    sys.exit(error.exit_code)
"""


def run(count: int, *arguments: str, folder: Path) -> tuple[int, list[str]]:
    """Exit code, and what the processes printed, sorted."""
    script = folder / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(count)] if count > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launcher, str(script), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    return done.returncode, sorted(done.stdout.splitlines())


def test_the_same_bits(tmp_path: Path) -> None:
    """Of one process, of two with unequal shares, and of three of which one has nothing."""
    code, (alone,) = run(1, "works", folder=tmp_path)
    bits, samples, processes = alone.split()
    assert (code, samples, processes) == (0, "70", "1")
    assert run(2, "works", folder=tmp_path) == (0, [f"{bits} 70 2"] * 2)
    assert run(3, "works", "none", folder=tmp_path) == (0, [f"{bits} 70 3"] * 3)


def test_one_refuses(tmp_path: Path) -> None:
    code, told = run(2, "nan", folder=tmp_path)
    assert code
    assert told == ["InputError: rank 1: the calibration data hold NaN in sample 27 (the first is 0); "
                    "repair or remove it True"] * 2  # fmt: skip


@pytest.mark.parametrize("case", ["weights", "options"])
def test_one_is_unlike(case: str, tmp_path: Path) -> None:
    """As if only one had loaded the weights."""
    code, told = run(2, case, folder=tmp_path)
    assert code
    message = (
        "InputError: Sequential: rank 1 has another module than rank 0, or other options; load the same "
        "weights and buffers in all processes, and give the same options True"
    )
    assert told == [message] * 2


def test_one_refuses_before_all(tmp_path: Path) -> None:
    """None waits for it."""
    code, told = run(2, "iterator", folder=tmp_path)
    assert code and len(told) == 2
    assert all("rank 1: the calibration data (list_iterator) can be read only once" in line for line in told)


def test_one_raises(tmp_path: Path) -> None:
    code, told = run(2, "raises", folder=tmp_path)
    assert code and told == ["InputError: rank 1: ValueError: disk on fire True"]


def test_one_ends(tmp_path: Path) -> None:
    began = time.monotonic()
    code, (told,) = run(2, "dies", folder=tmp_path)
    assert code and time.monotonic() - began < 60  # much less than any timeout; most of it is torch's start
    assert told.startswith("BnfoldError: rank 0: another of the 2 processes has ended") and told.endswith(
        "True"
    )


class TestJoined:
    def test_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for size in (None, "1"):
            if size:
                monkeypatch.setenv("WORLD_SIZE", size)
            with joined() as ranks:
                assert isinstance(ranks, Alone) and ranks.together(lambda: 3) == [3]

    def test_they_do_not_find_each_other(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.delenv("MASTER_ADDR", raising=False)
        with (
            pytest.raises(InputError, match="WORLD_SIZE is 2, but the processes do not find each other"),
            joined(),
        ):
            pass

    @pytest.mark.parametrize(
        ("variables", "match"),
        [
            ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc', no number"),
            ({"WORLD_SIZE": "2", "RANK": "5"}, "RANK is 5, but WORLD_SIZE is 2"),
        ],
    )
    def test_numbers_that_are_none(
        self, variables: dict[str, str], match: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=match), joined():
            pass

    def test_a_partner_that_does_not_come(self) -> None:
        """Who waits for it can be interrupted."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            port = str(taken.getsockname()[1])
        variables = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        code = "from bnfold.pytorch.ranks import joined\nprint('waits', flush=True)\nwith joined(): pass"
        with subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == "waits\n"
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == -signal.SIGINT

    def test_a_group_that_is_there(self, tmp_path: Path) -> None:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
        )
        try:
            with joined() as ranks:
                assert (ranks.rank, ranks.size) == (0, 1)
            assert torch.distributed.is_initialized()
        finally:
            torch.distributed.destroy_process_group()
