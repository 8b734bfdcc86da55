"""The sums of docs/freshness.md are those of the defaults and of the flags that the charm sets."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import flags
from keystone_authenticator.authentication import SLOT_PATIENCE
from keystone_authenticator.keystone import DEADLINE
from tests.documents import table

ROWS = table("freshness.md", "| Layer")
DEFAULTS = yaml.safe_load((Path(__file__).parents[3] / "config.yaml").read_text())["options"]


def seconds(cell: str) -> float:
    return float(cell.removesuffix(" s"))


def test_each_layer_takes_what_sets_it() -> None:
    desired = flags.wanted(Path("/folder"), b"", flags.Missing(authorization=True))
    durations = {flag.name: flag.value for flag in desired.flags if "ttl" in flag.name}
    named = 0
    for _, most, setter in ROWS:
        for option in re.findall(r"the option `?([a-z-]+)", setter):
            assert seconds(most) == DEFAULTS[option]["default"]
            named += 1
        for flag, value in re.findall(r"the flag `?--([a-z-]+)=(\d+s)", setter):
            assert durations.pop(flag) == value == most.replace(" ", "")
            named += 1
    assert durations == {}
    assert named == 5


def test_an_answer_that_is_under_way_comes_within_its_time() -> None:
    (most,) = [seconds(most) for layer, most, _ in ROWS if "under way" in layer]
    assert most > SLOT_PATIENCE + DEADLINE


def test_the_sums_are_sums() -> None:
    for what, most, layers in table("freshness.md", "| What changes"):
        parts = [float(number) for number in re.findall(r"\d+", layers)]
        if layers.startswith("as the first"):
            parts += [seconds(table("freshness.md", "| What changes")[0][1])]
        assert sum(parts) == seconds(most), what


def test_what_is_measured_is_below_the_sum() -> None:
    for what, most, measured, _ in table("freshness.md", "| Taken back"):
        assert 0 < seconds(measured) <= seconds(most), what
