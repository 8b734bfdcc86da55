"""A short soak, and that a soak would tell what it is there to tell."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.soak import CLIENTS, Sample, problems

pytestmark = pytest.mark.functional

FLAT = [
    Sample(dict.fromkeys(CLIENTS, 100), dict.fromkeys(CLIENTS, 0), False, dict.fromkeys(CLIENTS, 1.0), 60.0, 25, 6)
    for _ in range(20)
]


def changed(**last: object) -> list[Sample]:
    """A run whose last fifth is otherwise."""
    return [*FLAT[:16], *(replace(sample, **last) for sample in FLAT[16:])]  # pyright: ignore[reportArgumentType]


def test_a_run_that_is_flat_and_right_has_no_problem() -> None:
    assert problems(FLAT, "INFO ready\n") == []


@pytest.mark.parametrize(
    ("samples", "log", "said"),
    [
        (changed(memory=80.0), "", "memory grew from 60 to 80 MB"),
        (changed(descriptors=40), "", "descriptors grew from 25 to 40"),
        (changed(threads=17), "", "threads grew from 6 to 17"),
        (changed(p99={**dict.fromkeys(CLIENTS, 1.0), "access": 50.0}), "", "p99 of access grew"),
        (changed(not_right={**dict.fromkeys(CLIENTS, 0), "known": 1}), "", "4 answers to known were not right"),
        (
            [replace(sample, answered={**dict.fromkeys(CLIENTS, 1), "new": 0}) for sample in FLAT],
            "",
            "no answer to new",
        ),
        ([replace(one, silent=True) for one in FLAT], "", "Keystone gave no answers in 20 of 20 slices"),
        (FLAT, "ERROR a fault of ours while a request was answered\n", "the log has"),
    ],
)
def test_what_is_not_flat_or_not_right_is_said(samples: list[Sample], log: str, said: str) -> None:
    (problem,) = problems(samples, log)
    assert said in problem


def test_half_a_minute_of_mixed_load_leaves_nothing_behind() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--minutes", "0.5"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
