"""What a packed charm is made of: its third parties with version and licence, and what two packs differ in.

    python -m testbed.contents CHARM            a CycloneDX bill of materials, on standard output
    python -m testbed.contents CHARM ANOTHER    what differs in content; exit code 1 if anything does

Everything is read from the packed charm itself. Not here: whether it works (pack.py).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name

from testbed import pack

TREES = {"venv": "the charm", "authenticator/lib": "the authenticator"}
"""Where third parties' packages lie in a packed charm, and whose they are."""
CLASSIFIED = {
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "License :: OSI Approved :: BSD License": "BSD-3-Clause",
    "License :: OSI Approved :: MIT License": "MIT",
}
SPELT = {"Apache 2.0": "Apache-2.0", "BSD License": "BSD-3-Clause", "MIT License": "MIT"}
"""What some packages write in place of an SPDX expression."""
_VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)
LICENCES = ("LICENSE", "LICENCE", "COPYING", "NOTICE")
CHANGING = {"manifest.yaml": "charmcraft-started-at"}
"""What says when it was packed."""


@dataclass(frozen=True)
class ThirdParty:
    """One package: whose it is, its licence as an SPDX expression, and the names of the licence texts with it."""

    tree: str
    name: str
    version: str
    licence: str
    texts: tuple[str, ...]


def third_parties(charm: Path) -> list[ThirdParty]:
    """List the packages of others in a packed charm, by tree and name."""
    with tempfile.TemporaryDirectory(prefix="charm-contents-") as scratch:
        pack.unpack(charm, Path(scratch))
        return sorted(_third_parties(Path(scratch)), key=lambda one: (one.tree, one.name.lower()))


def bill_of_materials(charm: Path) -> str:
    """Give a CycloneDX 1.6 bill of materials (https://cyclonedx.org/docs/1.6/json/); one charm, one text."""
    with zipfile.ZipFile(charm) as archive:
        name = yaml.safe_load(archive.read("metadata.yaml"))["name"]
        version = _VERSION.search(archive.read("authenticator/lib/keystone_authenticator/__init__.py").decode())
    parts = [
        {
            "type": "library",
            "bom-ref": f"{one.tree}/{one.name}",
            "group": one.tree,
            "name": one.name,
            "version": one.version,
            "purl": f"pkg:pypi/{canonicalize_name(one.name)}@{one.version}",
            "licenses": [_spdx(one.licence)],
        }
        for one in third_parties(charm)
    ]
    whole = {
        "type": "application",
        "bom-ref": "charm",
        "name": name,
        "version": version[1] if version else "",
        "licenses": [_spdx("Apache-2.0")],
    }
    bill = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": whole},
        "components": parts,
        "dependencies": [{"ref": "charm", "dependsOn": [part["bom-ref"] for part in parts]}],
    }
    return json.dumps(bill, indent=2)


def differences(one: Path, another: Path) -> list[str]:
    """Name the members in which two packed charms differ: missing, another mode, another content."""
    first, second = _members(one), _members(another)
    found = [f"{name} is in one of them only" for name in sorted(first.keys() ^ second.keys())]
    return found + [f"{name} differs" for name in sorted(first.keys() & second.keys()) if first[name] != second[name]]


def _third_parties(root: Path) -> Iterator[ThirdParty]:
    for tree in TREES:
        for folder in (root / tree).glob("*.dist-info"):
            found = importlib.metadata.PathDistribution(folder)
            files = (path for path in folder.rglob("*") if path.is_file())
            texts = (path.name for path in files if path.name.upper().startswith(LICENCES))
            yield ThirdParty(
                tree, found.metadata["Name"], found.version, _licence(found.metadata), tuple(sorted(texts))
            )


def _spdx(expression: str) -> dict[str, Any]:
    return {"expression": expression} if " " in expression else {"license": {"id": expression}}


def _licence(metadata: Any) -> str:
    """Give the SPDX expression of a package; empty where it names none that is known here."""
    said: str = metadata.get("License-Expression") or metadata.get("License") or ""
    classified = [CLASSIFIED[name] for name in metadata.get_all("Classifier", []) if name in CLASSIFIED]
    if said and "\n" not in said:
        return SPELT.get(said, said)
    return classified[0] if classified else ""


def _members(charm: Path) -> dict[str, tuple[int, bytes]]:
    with zipfile.ZipFile(charm) as archive:
        return {
            item.filename: (item.external_attr >> 16, _lasting(item.filename, archive.read(item)))
            for item in archive.infolist()
        }


def _lasting(name: str, content: bytes) -> bytes:
    if name not in CHANGING:
        return content
    return b"\n".join(line for line in content.split(b"\n") if not line.startswith(CHANGING[name].encode()))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m testbed.contents", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("charm", type=Path)
    parser.add_argument("another", type=Path, nargs="?")
    arguments = parser.parse_args()
    if arguments.another is None:
        print(bill_of_materials(arguments.charm))
        return 0
    found = differences(arguments.charm, arguments.another)
    print("\n".join(found) or "the same content")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
