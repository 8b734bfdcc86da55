#!/usr/bin/env python3
"""Juju's hook tools, as far as charms use them, for the stand-in unit agent (agent.py).

One program under many names, run inside the machine by the charm. What a hook may see lies in `context.json` beside
it; what the hook does is appended to `effects.jsonl`, a line a call. Answers, formats and exit codes follow Juju's
documentation of the hook commands; a tool that nothing is behind fails as Juju's does. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

# Not resolved: the tools are links to this file, and state and links lie in the folder of the link.
FOLDER = Path(sys.argv[0]).absolute().parent
Context = dict[str, Any]


def fail(message: str, code: int = 1) -> NoReturn:
    """End as Juju's tools do: one line on standard error, exit code 1, or 2 for wrong arguments."""
    print(f"ERROR {message}", file=sys.stderr)
    sys.exit(code)


def record(kind: str, **values: Any) -> None:
    """Append an effect; one write, so that two tools at once do not mix."""
    line = json.dumps({"kind": kind, "at": time.time(), **values}) + "\n"
    handle = os.open(FOLDER / "effects.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, line.encode())
    finally:
        os.close(handle)


def show(value: Any, as_json: bool) -> None:
    """Print as `--format=json` or, for people, as plain text."""
    if as_json:
        print(json.dumps(value))
    elif isinstance(value, list):
        print("\n".join(str(item) for item in value))
    elif value is not None:
        print(value if isinstance(value, str) else json.dumps(value))


class Parser(argparse.ArgumentParser):
    """Wrong arguments are exit code 2, with Juju's word for it."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong."""
        fail(message, 2)


def parser(tool: str, *positionals: str) -> Parser:
    """Make a parser with the options that most tools share."""
    made = Parser(prog=tool)
    made.add_argument("--format", default="smart")
    made.add_argument("-r", "--relation", default="")
    made.add_argument("--app", action="store_true")
    made.add_argument("--application", nargs="?", const="true", default="false")
    for name in positionals:
        made.add_argument(name.rstrip("?*"), nargs=name[-1] if name[-1] in "?*" else None)
    return made


def relation(context: Context, reference: str) -> dict[str, Any]:
    """Find a relation by `3` or `endpoint:3`."""
    number = (reference or os.environ.get("JUJU_RELATION_ID", "")).rpartition(":")[2]
    for one in context["relations"]:
        if str(one["id"]) == number:
            return one
    fail(f'invalid value "{reference}" for option -r: relation not found', 2)


def config_get(context: Context, arguments: list[str]) -> None:
    """All settings, or one."""
    made = parser("config-get", "key?")
    made.add_argument("-a", "--all", action="store_true")
    options = made.parse_args(arguments)
    config = context["config"]
    show(config.get(options.key) if options.key else config, options.format == "json")


def is_leader(context: Context, arguments: list[str]) -> None:
    """Whether this unit leads."""
    options = parser("is-leader").parse_args(arguments)
    show(context["leader"], options.format == "json") if options.format == "json" else print(str(context["leader"]))


def relation_ids(context: Context, arguments: list[str]) -> None:
    """The relations of an endpoint."""
    options = parser("relation-ids", "name?").parse_args(arguments)
    name = options.name or os.environ.get("JUJU_RELATION", "")
    found = [f"{one['endpoint']}:{one['id']}" for one in context["relations"] if one["endpoint"] == name]
    show(found, options.format == "json")


def relation_list(context: Context, arguments: list[str]) -> None:
    """The units, or with --app the application, at the other end."""
    options = parser("relation-list").parse_args(arguments)
    one = relation(context, options.relation)
    show(one["remote_app"] if options.app else one["remote_units"], options.format == "json")


def relation_get(context: Context, arguments: list[str]) -> None:
    """What a unit or an application has said."""
    options = parser("relation-get", "key?", "who?").parse_args(arguments)
    who = options.who or os.environ.get("JUJU_REMOTE_UNIT", "")
    data = relation(context, options.relation)["data"].get(who, {})
    show(data if options.key in (None, "-") else data.get(options.key), options.format == "json")


def pairs_of(options: argparse.Namespace) -> dict[str, str]:
    """The settings of `--file` (JSON only: there is no YAML parser on the machine) and of `key=value` arguments."""
    text = sys.stdin.read() if options.file == "-" else Path(options.file).read_text() if options.file else "{}"
    values = json.loads(text)
    for pair in options.pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            fail(f'expected "key=value", got "{pair}"', 2)
        values[key] = value
    return values


def relation_set(context: Context, arguments: list[str]) -> None:
    """Say something."""
    made = parser("relation-set", "pairs*")
    made.add_argument("--file")
    options = made.parse_args(arguments)
    if options.app and not context["leader"]:
        fail("cannot write relation settings: this unit is not the leader")
    values = pairs_of(options)
    record("relation-set", relation=relation(context, options.relation)["id"], app=options.app, values=values)


def relation_model_get(context: Context, arguments: list[str]) -> None:
    """The model at the other end."""
    options = parser("relation-model-get").parse_args(arguments)
    relation(context, options.relation)
    show({"uuid": os.environ["JUJU_MODEL_UUID"]}, options.format == "json")


def status_get(context: Context, arguments: list[str]) -> None:
    """The status that was set last."""
    made = parser("status-get")
    made.add_argument("--include-data", action="store_true")
    options = made.parse_args(arguments)
    status = {"status": context["status"][0], "message": context["status"][1], "status-data": {}}
    if options.application.lower() == "true":
        status = {"application-status": {**status, "units": {}}}
    show(status, options.format == "json")


def status_set(context: Context, arguments: list[str]) -> None:
    """What to show to the operator."""
    options = parser("status-set", "status", "message?").parse_args(arguments)
    if options.status not in ("maintenance", "blocked", "waiting", "active"):
        fail(f'invalid status "{options.status}", expected one of [maintenance blocked waiting active]')
    for_application = options.application.lower() == "true"
    if for_application and not context["leader"]:
        fail("this unit is not the leader")
    record("status", status=options.status, message=options.message or "", application=for_application)


def application_version_set(context: Context, arguments: list[str]) -> None:
    """The version that `juju status` shows."""
    record("version", version=parser("application-version-set", "version").parse_args(arguments).version)


def juju_log(context: Context, arguments: list[str]) -> None:
    """A line for `juju debug-log`."""
    made = parser("juju-log", "message*")
    made.add_argument("-l", "--log-level", default="INFO")
    made.add_argument("--debug", action="store_true")
    options = made.parse_args(arguments)
    record("log", level="DEBUG" if options.debug else options.log_level.upper(), message=" ".join(options.message))


def action(context: Context) -> dict[str, Any]:
    """Refuse the action tools outside an action."""
    if context["action"] is None:
        fail("not running an action")
    return context["action"]


def action_get(context: Context, arguments: list[str]) -> None:
    """The parameters of the action."""
    options = parser("action-get", "key?").parse_args(arguments)
    value: Any = action(context)["params"]
    for part in (options.key or "").split("."):
        value = value.get(part) if part and isinstance(value, dict) else value
    show(value, options.format == "json")


def secret_get(context: Context, arguments: list[str]) -> None:
    """What a secret holds that this application was granted."""
    made = parser("secret-get", "id", "key?")
    made.add_argument("--label")
    for name in ("refresh", "peek"):
        made.add_argument(f"--{name}", action="store_true")
    options = made.parse_args(arguments)
    found = context["secrets"].get(options.id.removeprefix("secret:"))
    if found is None:
        fail(f'secret "{options.id}" not found')
    show(found.get(options.key) if options.key else found, options.format == "json")


def action_set(context: Context, arguments: list[str]) -> None:
    """Results of the action, `a.b=value` for nested ones."""
    action(context)
    for pair in parser("action-set", "pairs*").parse_args(arguments).pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            fail(f'argument "{pair}" must be of the form key...=value', 2)
        for part in key.split("."):
            if not part or not part[0].islower() or not part.replace("-", "").isalnum() or part != part.lower():
                fail(
                    f'key "{key}" must start and end with lowercase alphanumeric, and contain only those and hyphens', 2
                )
        record("action-set", key=key, value=value)


def action_fail(context: Context, arguments: list[str]) -> None:
    """The action failed."""
    action(context)
    message = parser("action-fail", "message?").parse_args(arguments).message
    record("action-fail", message=message or "action failed without reason given, check action for errors")


def action_log(context: Context, arguments: list[str]) -> None:
    """Progress of the action."""
    action(context)
    record("action-log", message=" ".join(parser("action-log", "message*").parse_args(arguments).message))


def network_get(context: Context, arguments: list[str]) -> None:
    """The addresses of a binding: the machine's one."""
    made = parser("network-get", "binding")
    for name in ("bind-address", "ingress-address", "egress-subnets", "primary-address"):
        made.add_argument(f"--{name}", action="store_true")
    options = made.parse_args(arguments)
    address = context["address"]
    bound = {
        "interface-name": "host0",
        "addresses": [{"hostname": "", "value": address, "address": address, "cidr": ""}],
    }
    show({"bind-addresses": [bound], "ingress-addresses": [address], "egress-subnets": [f"{address}/32"]},
         options.format == "json")  # fmt: skip


def unit_get(context: Context, arguments: list[str]) -> None:
    """`public-address` and `private-address`."""
    options = parser("unit-get", "key").parse_args(arguments)
    show(context["address"], options.format == "json")


def stored() -> dict[str, str]:
    """What the charm keeps at the controller; here in a file beside this one."""
    path = FOLDER / "state.json"
    return json.loads(path.read_text()) if path.exists() else {}


def state_get(context: Context, arguments: list[str]) -> None:
    """All of the controller-side state, or one value."""
    options = parser("state-get", "key?").parse_args(arguments)
    show(stored().get(options.key) if options.key not in (None, "-") else stored(), options.format == "json")


def state_set(context: Context, arguments: list[str]) -> None:
    """Keep values."""
    made = parser("state-set", "pairs*")
    made.add_argument("--file")
    (FOLDER / "state.json").write_text(json.dumps({**stored(), **pairs_of(made.parse_args(arguments))}))


def state_delete(context: Context, arguments: list[str]) -> None:
    """Forget a value."""
    key = parser("state-delete", "key").parse_args(arguments).key
    (FOLDER / "state.json").write_text(json.dumps({name: value for name, value in stored().items() if name != key}))


def not_there(what: str) -> Callable[[Context, list[str]], None]:
    """Make a tool that answers as Juju does when there is no such thing."""

    def tool(context: Context, arguments: list[str]) -> None:
        fail(what)

    return tool


def nothing(context: Context, arguments: list[str]) -> None:
    """Do nothing: ports and reboots mean nothing to the stand-in but are no error."""
    record("ignored", tool=Path(sys.argv[0]).name, arguments=arguments)


TOOLS: dict[str, Callable[[Context, list[str]], None]] = {
    "action-fail": action_fail,
    "action-get": action_get,
    "action-log": action_log,
    "action-set": action_set,
    "application-version-set": application_version_set,
    "close-port": nothing,
    "config-get": config_get,
    "credential-get": not_there("cannot access cloud credentials"),
    "goal-state": not_there("goal state is not kept by the stand-in"),
    "is-leader": is_leader,
    "juju-log": juju_log,
    "juju-reboot": nothing,
    "network-get": network_get,
    "open-port": nothing,
    "opened-ports": lambda context, arguments: show([], "--format=json" in arguments),
    "relation-get": relation_get,
    "relation-ids": relation_ids,
    "relation-list": relation_list,
    "relation-model-get": relation_model_get,
    "relation-set": relation_set,
    "resource-get": not_there("could not download resource: resource not found"),
    "secret-add": not_there("secrets are not kept by the stand-in"),
    "secret-get": secret_get,
    "secret-ids": lambda context, arguments: show([], "--format=json" in arguments),
    "secret-info-get": not_there("secret not found"),
    "state-delete": state_delete,
    "state-get": state_get,
    "state-set": state_set,
    "status-get": status_get,
    "status-set": status_set,
    "storage-list": lambda context, arguments: show([], "--format=json" in arguments),
    "unit-get": unit_get,
}


def main() -> None:
    """Run the tool that this program was called as."""
    if "JUJU_CONTEXT_ID" not in os.environ:
        fail("JUJU_CONTEXT_ID not set")
    context = json.loads((FOLDER / "context.json").read_text())
    TOOLS[Path(sys.argv[0]).name](context, sys.argv[1:])


if __name__ == "__main__":
    main()
