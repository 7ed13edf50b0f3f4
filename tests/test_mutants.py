"""The faults of `mutants.py` can be planted in the present code, and its verdicts can be trusted."""

from __future__ import annotations

import mutants
import pytest
from mutants import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: f"{m.module}: {m.what}")
def test_a_fault_can_be_planted(mutant: Mutant) -> None:
    assert mutant.is_current, f"{mutant.before!r} is not once in bnfold/{mutant.module}.py"
    assert mutant.source.replace(mutant.before, mutant.after) != mutant.source


def test_every_module_with_tests_has_a_fault() -> None:
    assert {mutant.module for mutant in MUTANTS} == set(mutants.TESTS)


@pytest.mark.slow
def test_a_fault_is_noticed_and_a_harmless_edit_is_not() -> None:
    fault = next(m for m in MUTANTS if m.module == "affine")
    assert not mutants.survives(fault)
    assert mutants.survives(Mutant("affine", "brackets", fault.before, f"({fault.before})"))
