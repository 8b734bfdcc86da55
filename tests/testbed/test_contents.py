"""What is packed: licences of all third parties, a bill of materials, the same content each time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from license_expression import get_spdx_licensing
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from testbed import contents, pack

COMPATIBLE = {
    "Apache-2.0", "Apache-2.0 AND MIT", "Apache-2.0 OR BSD-3-Clause", "BSD-3-Clause", "MIT", "MIT-0", "MPL-2.0",
    "PSF-2.0",
}  # fmt: skip
"""Licences whose works may be shipped beside ours, as they are (MPL-2.0: certifi's list of CAs, unchanged)."""
COMPILED_IN = {*COMPATIBLE, "Apache-2.0 WITH LLVM-exception", "Unicode-3.0", "Unicode-DFS-2016", "Zlib"}
OURS = {"Apache-2.0", "Apache-2.0 WITH LLVM-exception"}
"""Licences whose text every charm has, as its own."""
LICENSING = get_spdx_licensing()


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


def allows(licence: str, ids: set[str]) -> bool:
    """Say whether an SPDX expression can be kept with these licences alone."""

    def holds(expression: Any) -> bool:
        if isinstance(expression, LICENSING.OR):
            return any(map(holds, expression.args))
        if isinstance(expression, LICENSING.AND):
            return all(map(holds, expression.args))
        return str(expression) in ids

    return holds(LICENSING.parse(licence, validate=True))


def test_nothing_compiled_is_packed_that_nobody_looked_into(charm):
    assert contents.not_looked_at(charm) == []


def test_what_nobody_looked_into_is_named(charm, monkeypatch):
    looked_at = {**contents.LOOKED_AT, "uvloop": contents.Compiled("uvloop", ("0.1",))}
    del looked_at["yarl"]
    monkeypatch.setattr(contents, "LOOKED_AT", looked_at)

    missing, other = reversed(contents.not_looked_at(charm))

    assert missing.startswith("yarl has a compiled library: look up what is linked into it")
    assert other.endswith("what is linked into it was looked up for 0.1")


def test_what_is_compiled_in_may_be_shipped_and_has_its_licence_with_it(charm):
    named = set(re.findall(r"[\w-]+", (pack.PROJECT / "copyright").read_text()))
    inside = [(one, part) for one in contents.third_parties(charm) for part in one.inside]

    assert {"openssl", "pyo3", "libuv", "libyaml", "libffi"} <= {part.name for _, part in inside}
    assert [part for _, part in inside if not allows(part.licence, COMPILED_IN)] == []
    assert [
        part
        for one, part in inside
        if not allows(part.licence, OURS)
        and part.name not in named
        and not any(part.name in text for text in one.texts)
    ] == []


def test_the_libraries_that_tell_are_of_the_versions_that_were_looked_up(charm, tmp_path):
    pack.unpack(charm, tmp_path)
    ask = {
        "authenticator/lib": "from uvloop.loop import libuv_get_version as v; print(*v().to_bytes(3, 'big'))",
        "venv": "import yaml._yaml as y, backports.zstd as z; print(*y.get_version(), *z.zstd_version_info)",
    }
    told = [
        subprocess.run(
            [pack.SYSTEM_PYTHON, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(tmp_path / tree)!r}); {code}"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        for tree, code in ask.items()
    ]

    versions = {part.name: part.version for one in contents.third_parties(charm) for part in one.inside}
    expected = (versions["libuv"], f"{versions['libyaml']}.{versions['zstd']}")
    assert [".".join(numbers) for numbers in told] == list(expected)


def test_the_bill_of_materials_is_a_valid_one_and_names_them_all(charm):
    text = contents.bill_of_materials(charm)

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    listed = json.loads(text)["components"]
    named = {(one["group"], one["name"], one["version"]) for one in listed}
    assert named == {(one.tree, one.name, one.version) for one in contents.third_parties(charm)}
    assert {"openssl", "jiter", "libuv"} <= {part["name"] for one in listed for part in one["components"]}


def test_the_pins_are_whole_sets_of_wheels_on_every_base_and_architecture():
    assert pack.unresolved() == []


@pytest.mark.parametrize("version", ["3.10", "3.12"])
def test_what_is_packed_is_enough_for_the_python_of_each_base(tmp_path, version):
    """Only what is packed is there: in a virtual environment old imports may still find what setuptools makes up."""
    several = [*Path.home().glob(f".pyenv/versions/{version}.*/bin/python3"), shutil.which(f"python{version}")]
    tried = [python for python in map(str, filter(None, several)) if subprocess.run([python, "-V"]).returncode == 0]
    if not tried:
        pytest.skip(f"NOT TRIED ON PYTHON {version}: there is none on this machine")
    python, uv = tried[0], [str(Path(sys.executable).with_name("uv")), "--quiet"]
    left_out = [
        line.removeprefix("-venv/")
        for line in yaml.safe_load((pack.PROJECT / "charmcraft.yaml").read_text())["parts"]["charm"]["prime"]
        if line.startswith("-venv/")
    ]
    for tree, requirements, command in (
        ("charm", "requirements.txt", "import charm"),
        ("authenticator", "requirements-authenticator.txt", "import keystone_authenticator.service, uvloop, httptools"),
    ):
        packages = tmp_path / tree
        target = ["--python", python, "--target", str(packages), "--requirement", str(pack.PROJECT / requirements)]
        subprocess.run([*uv, "pip", "install", *target], check=True)
        for pattern in left_out:
            for path in packages.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        done = subprocess.run(
            [python, "-W", "error", "-B", "-c", command],
            env={"PYTHONPATH": f"{packages}:{pack.PROJECT / 'src'}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("pin", "what"),
    [
        ("uvloop==0.17.0", "uvloop==0.17.0 has no usable wheels"),
        ("jinja2==3.1.6", "needs what is not pinned: markupsafe=="),
        ("jinja2==3.1.6\nmarkupsafe==1.1.1", "Because jinja2"),
    ],
)
def test_a_pin_that_does_not_resolve_is_named_with_file_and_place(monkeypatch, tmp_path, pin, what):
    for name, value in {
        "PROJECT": tmp_path,
        "PINS": ("some.txt",),
        "PYTHONS": ("3.12",),
        "MACHINES": ("aarch64",),
    }.items():
        monkeypatch.setattr(pack, name, value)
    (tmp_path / "some.txt").write_text(f"{pin}\n")

    (problem,) = pack.unresolved()

    assert problem.startswith("some.txt, Python 3.12, aarch64: ")
    assert what in problem


def test_charm_proof_finds_nothing_but_what_it_does_not_know():
    assert pack.proof() == []


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
