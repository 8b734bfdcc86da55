"""What is packed: licences of all third parties, a bill of materials, the same content each time."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from testbed import contents, pack

COMPATIBLE = {
    "Apache-2.0", "Apache-2.0 AND MIT", "Apache-2.0 OR BSD-3-Clause", "BSD-3-Clause", "MIT", "MIT-0", "MPL-2.0",
    "PSF-2.0",
}  # fmt: skip
"""Licences whose works may be shipped beside ours, as they are (MPL-2.0: certifi's list of CAs, unchanged)."""


@pytest.fixture(scope="module")
def charm() -> Path:
    return pack.pack()


def test_every_third_party_comes_with_its_licence_and_it_is_one_that_allows_it(charm):
    found = contents.third_parties(charm)

    assert {one.tree for one in found} == set(contents.TREES)
    assert [one for one in found if one.licence not in COMPATIBLE] == []
    # One that brings no text has the charm's own licence, which is packed whole (charmlibs' wheels have none in them).
    assert [one for one in found if not one.texts and one.licence != "Apache-2.0"] == []
    with zipfile.ZipFile(charm) as archive:
        assert archive.read("LICENSE") == (pack.PROJECT / "LICENSE").read_bytes()


@pytest.mark.parametrize(
    ("tree", "pins"), [("venv", "requirements.txt"), ("authenticator/lib", "requirements-authenticator.txt")]
)
def test_nothing_is_packed_that_is_not_pinned(charm, tree, pins):
    lines = (pack.PROJECT / pins).read_text().splitlines()
    wanted = {(canonicalize_name(pin.name), str(pin.specifier)) for pin in map(_requirement, lines)}
    packed = {
        (canonicalize_name(one.name), f"=={one.version}") for one in contents.third_parties(charm) if one.tree == tree
    }

    assert packed
    assert packed <= wanted


def _requirement(line: str) -> Requirement:
    return Requirement(line.partition("#")[0])


def test_the_bill_of_materials_is_a_valid_one_and_names_them_all(charm):
    text = contents.bill_of_materials(charm)

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    named = {(one["group"], one["name"], one["version"]) for one in json.loads(text)["components"]}
    assert named == {(one.tree, one.name, one.version) for one in contents.third_parties(charm)}


def test_two_packs_of_one_checkout_have_the_same_content(charm, tmp_path):
    another = tmp_path / "another.charm"
    pack.pack_anew(another)

    assert contents.differences(charm, another) == []


def test_a_difference_of_two_packs_is_named(charm, tmp_path):
    another = tmp_path / "another.charm"
    with zipfile.ZipFile(charm) as old, zipfile.ZipFile(another, "w") as new:
        for item in old.infolist():
            if item.filename == "config.yaml":
                new.writestr(item, "options: {}")
            elif item.filename != "LICENSE":
                new.writestr(item, old.read(item))

    assert contents.differences(charm, another) == ["LICENSE is in one of them only", "config.yaml differs"]
