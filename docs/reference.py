#!/usr/bin/env python3
"""Write docs/reference.md from config.yaml, actions.yaml and metadata.yaml, where options and actions are described.

python docs/reference.py            write it
python docs/reference.py --check    only say whether it is current
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parent.parent
TARGET = PROJECT / "docs/reference.md"
HEAD = """\
# Reference: options, actions, relations

Written by `python docs/reference.py` from [config.yaml](../config.yaml), [actions.yaml](../actions.yaml) and
[metadata.yaml](../metadata.yaml); `make check` fails where it is not current.
"""


def reference() -> str:
    """Give the whole page."""
    config, actions, metadata = (_read(name) for name in ("config", "actions", "metadata"))
    parts = [HEAD, "## Options\n\n    juju config kubernetes-keystone OPTION=VALUE\n"]
    parts += [_option(name, option) for name, option in config["options"].items()]
    parts.append(
        "## Actions\n\n    juju run kubernetes-keystone/0 ACTION PARAMETER=VALUE     # Juju 2.9: run-action --wait\n"
    )
    parts += [_action(name, action) for name, action in actions.items()]
    parts.append("## Relations\n")
    parts += [
        f"### `{name}`\n\n{_sentence(role, relation)}\n"
        for role in ("requires", "provides", "peers")
        for name, relation in metadata.get(role, {}).items()
    ]
    if resources := metadata.get("resources", {}):
        parts.append("## Resources\n")
        parts += [f"### `{name}`\n\n{resource['description'].strip()}\n" for name, resource in resources.items()]
    # Placeholders such as <domain ID> would be taken for HTML.
    return "\n".join(parts).replace("<", "\\<")


def _option(name: str, option: dict[str, Any]) -> str:
    default = option.get("default", "")
    shown = "empty" if default == "" else f"`{json.dumps(default).strip(chr(34))}`"
    return f"### `{name}`\n\n{option['type']}, default {shown}\n\n{option['description'].strip()}\n"


def _action(name: str, action: dict[str, Any]) -> str:
    lines = [f"### `{name}`\n\n{action['description'].strip()}\n"]
    params = action.get("params", {})
    if params:
        lines.append("| parameter | default | what it is |\n| --- | --- | --- |")
    for key, param in params.items():
        default = f"`{param['default']}`" if param.get("default") else ""
        required = "required" if key in action.get("required", []) else default
        kind = "" if param["type"] == "string" else f" ({param['type']})"
        choices = " One of " + ", ".join(f"`{choice}`" for choice in param["enum"]) + "." if "enum" in param else ""
        lines.append(f"| `{key}`{kind} | {required} | {' '.join(param['description'].split())}{choices} |")
    return "\n".join(lines) + ("\n" if params else "")


def _sentence(role: str, relation: dict[str, Any]) -> str:
    verb = {"requires": "Requires", "provides": "Provides", "peers": "Peers over"}[role]
    optional = ", optional" if relation.get("optional") else ""
    scope = (
        ", scope container: one unit on each machine of the other side" if relation.get("scope") == "container" else ""
    )
    return f"{verb} the interface `{relation['interface']}`{optional}{scope}."


def _read(name: str) -> dict[str, Any]:
    return yaml.safe_load((PROJECT / f"{name}.yaml").read_text(encoding="utf-8"))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where the page is not current")
    text = reference()
    if not parser.parse_args().check:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    print("docs/reference.md is not current: python docs/reference.py writes it", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
