"""The one way in which files are written: whole, with the mode that was said, and only when they change."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from apiserver import files


@pytest.fixture(params=[0o022, 0o077, 0o000])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_modes_are_what_was_said_whatever_the_umask_says(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "a/b/file"
    assert files.write(path, b"x", 0o640)
    assert [mode(one) for one in (path, path.parent, path.parent.parent)] == [0o640, 0o755, 0o755]


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    files.write(tmp_path / "file", b"x", 0o600)
    assert mode(tmp_path) == 0o700


def test_what_is_as_it_should_be_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert files.write(path, b"x", 0o600)
    before = path.stat()
    assert not files.write(path, b"x", 0o600)
    assert path.stat() == before
    assert files.write(path, b"x", 0o640)
    assert files.write(path, b"y", 0o640)
    assert (path.read_bytes(), mode(path)) == (b"y", 0o640)


def test_a_link_in_its_place_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    other.write_bytes(b"x")
    other.chmod(0o600)
    path.symlink_to(other)
    assert files.write(path, b"x", 0o600)
    assert not path.is_symlink()
    assert files.write(path, b"y", 0o600)
    assert other.read_bytes() == b"x"


def test_what_a_killed_write_has_left_goes_with_the_next_one_and_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    (left := tmp_path / ".file.kubernetes-keystone").write_bytes(b"half")
    files.write(path, b"x", 0o600)
    assert list(tmp_path.iterdir()) == [path]
    left.write_bytes(b"half")
    assert files.remove(path)
    assert not files.remove(path)
    assert list(tmp_path.iterdir()) == []
