"""What can still be said where the charm's compiled libraries are another Python's."""

from __future__ import annotations

import sys
from pathlib import Path

import ops.testing
import pytest

import release
from release import Unfit

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def library(folder: Path, tag: str) -> Path:
    path = folder / f"pydantic_core/_pydantic_core.cpython-{tag}-x86_64-linux-gnu.so"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return folder


def test_libraries_of_another_python_are_told_from_those_of_this_one(tmp_path):
    ours = library(tmp_path / "ours", HERE.replace(".", ""))
    theirs = library(tmp_path / "theirs", "39")

    assert release.problem([str(ours)]) == ""
    assert release.problem([str(tmp_path / "none")]) == ""
    assert release.problem([str(theirs), str(ours)]) == "", "the one that fits is found"
    assert f"Python {HERE} is not what the charm was packed for (3.9): juju refresh" in release.problem([str(theirs)])


def test_another_reason_why_something_cannot_be_imported_stays_a_fault_of_ours():
    with pytest.raises(ImportError, match="no module named so"):
        release.end(ImportError("no module named so"))


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(library(tmp_path, "39"))])
    spec = {"name": "kubernetes-keystone"}, {"show-webhook-config": {}}
    return ops.testing.Context(Unfit, meta=spec[0], actions=spec[1])


@pytest.mark.parametrize("event", ["update_status", "config_changed", "upgrade_charm"])
def test_every_hook_says_what_to_do(context, event):
    state = context.run(getattr(context.on, event)(), ops.testing.State())

    assert state.unit_status.name == "blocked"
    assert "packed for (3.9): juju refresh kubernetes-keystone" in state.unit_status.message


def test_an_action_fails_with_the_same(context):
    with pytest.raises(ops.testing.ActionFailed, match="juju refresh"):
        context.run(context.on.action("show-webhook-config"), ops.testing.State())


def test_a_removal_that_cannot_be_done_is_not_called_done(context):
    with pytest.raises(ops.testing.errors.UncaughtCharmError, match="cannot be removed cleanly"):
        context.run(context.on.remove(), ops.testing.State())
