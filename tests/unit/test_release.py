"""One version everywhere, and a changelog that knows it."""

from __future__ import annotations

import re
from pathlib import Path

import keystone_authenticator
import kubectl_keystone_auth

PROJECT = Path(__file__).resolve().parents[2]


def test_the_programs_and_the_changelogs_newest_entry_have_one_version():
    newest = re.search(r"^## ([0-9.]+)", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert newest is not None
    assert keystone_authenticator.__version__ == kubectl_keystone_auth.__version__ == newest[1]
