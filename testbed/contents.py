"""What a packed charm is made of: third parties and what is linked into them, with licences; what two packs differ in.

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
UNLICENSED = {"openssl": "Apache-2.0"}
"""Licences of what a package's own bill of materials names without any."""


@dataclass(frozen=True)
class Linked:
    """A library that is linked into a package's own, as somebody looked up; version "" where nothing tells."""

    name: str
    version: str
    licence: str


@dataclass(frozen=True)
class Compiled:
    """A package with compiled libraries: in which versions somebody looked at what is linked into them, and that."""

    package: str
    versions: tuple[str, ...]
    linked: tuple[Linked, ...] = ()


LOOKED_AT = {
    "_cffi_backend": Compiled("cffi", ("2.1.1",), (Linked("libffi", "", "MIT"),)),
    "aiohttp": Compiled("aiohttp", ("3.14.5",), (Linked("llhttp", "9.4.2", "MIT"),)),
    "backports": Compiled("backports-zstd", ("1.8.0",), (Linked("zstd", "1.5.7", "BSD-3-Clause"),)),
    "charset_normalizer": Compiled("charset-normalizer", ("3.5.2",)),
    "cryptography": Compiled("cryptography", ("50.0.2",)),  # says it itself
    "frozenlist": Compiled("frozenlist", ("1.8.0",)),
    "httptools": Compiled(
        "httptools", ("0.9.0",), (Linked("llhttp", "9.4.3", "MIT"), Linked("http-parser", "2.9.4", "MIT"))
    ),
    "markupsafe": Compiled("markupsafe", ("3.0.4",)),
    "msgspec": Compiled("msgspec", ("0.22.0",)),  # has copied code of others, see the file copyright
    "multidict": Compiled("multidict", ("7.1.0", "7.2.1")),
    "propcache": Compiled("propcache", ("0.5.4",)),
    "pydantic_core": Compiled("pydantic-core", ("2.50.4",)),  # says it itself
    "uvloop": Compiled("uvloop", ("0.23.0",), (Linked("libuv", "1.52.1", "MIT"),)),
    "yaml": Compiled("pyyaml", ("6.0.3",), (Linked("libyaml", "0.2.5", "MIT"),)),
    "yarl": Compiled("yarl", ("1.25.1",)),
}
"""What has compiled libraries, by its folder's or file's name. A wheel may say itself what is in it (PEP 770); most say
nothing. A new pin has to be looked at: its sources' vendored folders, and their licences for the file `copyright`."""


@dataclass(frozen=True)
class ThirdParty:
    """One package: whose it is, its licence as an SPDX expression, the licence texts with it, what is compiled in."""

    tree: str
    name: str
    version: str
    licence: str
    texts: tuple[str, ...]
    inside: tuple[Inside, ...] = ()


@dataclass(frozen=True)
class Inside:
    """What is compiled into a package's libraries: a crate, a C library."""

    name: str
    version: str
    licence: str
    purl: str = ""


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
            "components": [
                {
                    "type": "library",
                    "bom-ref": f"{one.tree}/{one.name}/{part.name}@{part.version}",
                    "name": part.name,
                    **({"version": part.version} if part.version else {}),
                    **({"purl": part.purl} if part.purl else {}),
                    "licenses": [_spdx(part.licence)],
                }
                for part in one.inside
            ],
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


def not_looked_at(charm: Path) -> list[str]:
    """Say which compiled libraries nobody looked at, or looked at in another version of their package."""
    with zipfile.ZipFile(charm) as archive:
        files = [Path(name) for name in archive.namelist() if name.endswith(".so")]
    versions = {canonicalize_name(one.name): one.version for one in third_parties(charm)}
    found = []
    for module in sorted({_module(file) for file in files}):
        compiled = LOOKED_AT.get(module)
        packed = versions.get(canonicalize_name(compiled.package)) if compiled else None
        if compiled is None:
            found.append(f"{module} has a compiled library: look up what is linked into it, and add it to LOOKED_AT")
        elif packed not in compiled.versions:
            looked_at = ", ".join(compiled.versions)
            found.append(f"{compiled.package} {packed}: what is linked into it was looked up for {looked_at}")
    return found


def _module(file: Path) -> str:
    (tree,) = (tree for tree in TREES if file.is_relative_to(tree))
    return file.relative_to(tree).parts[0].partition(".")[0]


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
            texts = (str(path.relative_to(folder)) for path in files if path.name.upper().startswith(LICENCES))
            name = found.metadata["Name"]
            inside = (*_declared(folder), *_linked(canonicalize_name(name)))
            yield ThirdParty(
                tree,
                name,
                found.version,
                _licence(found.metadata),
                tuple(sorted(texts)),
                tuple(sorted(inside, key=str)),
            )


def _declared(folder: Path) -> Iterator[Inside]:
    """Give what a wheel's own bills of materials name (https://peps.python.org/pep-0770/)."""
    for path in sorted((folder / "sboms").glob("*.json")):
        for part in json.loads(path.read_text(encoding="utf-8")).get("components", []):
            said = [item.get("expression") or item["license"].get("id", "") for item in part.get("licenses", [])]
            licence = " AND ".join(said) or UNLICENSED.get(part["name"], "")
            yield Inside(part["name"], part.get("version", ""), licence, part.get("purl", ""))


def _linked(package: str) -> Iterator[Inside]:
    for compiled in LOOKED_AT.values():
        if canonicalize_name(compiled.package) == package:
            yield from (Inside(one.name, one.version, one.licence) for one in compiled.linked)


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
