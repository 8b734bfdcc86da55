#!/usr/bin/env python3
"""Juju's hook tools, as far as charms use them, for the stand-in unit agent (agent.py).

One program under many names, run inside the machine by the charm. What a hook may see lies in `context.json` beside
it; what the hook does is appended to `effects.jsonl`, a line a call. What each tool prints, and with which code it
ends, is in docs/stand-in.md, whose rows are tests. As in Juju, relation settings and stored state count once the hook
has ended well, the hook itself sees them at once, and everything else counts at once. Standard library only.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

# Not resolved: the tools are links to this file, and state and links lie in the folder of the link.
FOLDER = Path(sys.argv[0]).absolute().parent
Context = dict[str, Any]
FORMATS = ("smart", "yaml", "json")
RESERVED = ("stdout", "stdout-encoding", "stderr", "stderr-encoding")
KEY = re.compile(r"[a-z](?:[a-z0-9-]*[a-z0-9])?")


def fail(message: str, code: int = 1) -> NoReturn:
    """End as Juju's tools do: one line on standard error, exit code 1, or 2 for wrong arguments."""
    print(f"ERROR {message}", file=sys.stderr)
    sys.exit(code)


def record(kind: str, **values: Any) -> None:
    """Append an effect; one write, so that two tools at once do not mix."""
    effect = {"kind": kind, "at": time.time(), "context": os.environ["JUJU_CONTEXT_ID"], **values}
    handle = os.open(FOLDER / "effects.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, f"{json.dumps(effect)}\n".encode())
    finally:
        os.close(handle)


def effects(*kinds: str) -> list[dict[str, Any]]:
    """What this hook has done so far, and hooks before it that ended well and have not been taken in yet."""
    path = FOLDER / "effects.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    counting = {one["context"] for one in found if one["kind"] == "commit"} | {os.environ["JUJU_CONTEXT_ID"]}
    return [one for one in found if one["kind"] in kinds and one["context"] in counting]


def show(value: Any, form: str) -> None:
    """Print as Juju does: JSON on a line, or for people. Where Juju has YAML of many lines, this has JSON, too."""
    if form == "json":
        print(json.dumps(value))
    elif value is None:
        return
    elif form == "smart" and isinstance(value, (str, bool)):
        if value != "":
            print(value)
    elif form == "smart" and isinstance(value, list) and all(isinstance(item, str) for item in value):
        if value:
            print("\n".join(value))
    else:
        print(json.dumps(value))


class Parser(argparse.ArgumentParser):
    """Wrong arguments are exit code 2, in Juju's words where it has some."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong."""
        fail(message, 2)


def parser(tool: str, form: str = "smart", formats: tuple[str, ...] = FORMATS) -> Parser:
    """Make a parser with the options that most tools share."""
    made = Parser(prog=tool, allow_abbrev=False, add_help=False)
    made.add_argument("--format", default=form)
    made.set_defaults(formats=formats)
    made.add_argument("words", nargs="*")
    return made


def parse(made: Parser, arguments: list[str], most: int | None = 0) -> argparse.Namespace:
    """Parse; more words than a tool takes are an error, as an option is that it does not have."""
    options, others = made.parse_known_args(arguments)
    for one in others:
        if one.startswith("-"):
            fail(f"option provided but not defined: {one}", 2)
    options.words += others
    if most is not None and len(options.words) > most:
        fail(f"unrecognized args: [{' '.join(json.dumps(word) for word in options.words[most:])}]", 2)
    if options.format not in options.formats:
        fail(f'invalid value "{options.format}" for option --format: unknown format "{options.format}"', 2)
    return options


def word(options: argparse.Namespace, position: int = 0) -> str:
    """Give one of the words, or nothing."""
    return options.words[position] if len(options.words) > position else ""


def relation_parser(tool: str) -> Parser:
    """Make a parser for a tool that is about a relation."""
    made = parser(tool)
    made.add_argument("-r", "--relation", default="")
    made.add_argument("--app", action="store_true")
    return made


def relation(context: Context, reference: str) -> dict[str, Any]:
    """Find a relation by `3` or `endpoint:3`; in a relation's hook, its own is meant if none is named."""
    number = (reference or os.environ.get("JUJU_RELATION_ID", "")).rpartition(":")[2]
    if not number:
        fail("no relation id specified", 2)
    if not number.isdigit():
        fail(f'invalid value "{reference}" for option -r: invalid relation id', 2)
    for one in context["relations"]:
        if one["id"] == int(number):
            return one
    fail(f'invalid value "{reference}" for option -r: relation not found', 2)


def config_get(context: Context, arguments: list[str]) -> None:
    """All settings that have a value, all, or one."""
    made = parser("config-get")
    made.add_argument("-a", "--all", action="store_true")
    options = parse(made, arguments, 1)
    config, key = context["config"], word(options)
    if options.all:
        if key:
            fail(f'cannot use argument --all together with key "{key}"', 2)
        config = {**dict.fromkeys(context["options"]), **config}
    show(config.get(key) if key else config, options.format)


def is_leader(context: Context, arguments: list[str]) -> None:
    """Whether this unit leads."""
    show(context["leader"], parse(parser("is-leader"), arguments).format)


def relation_ids(context: Context, arguments: list[str]) -> None:
    """The relations of an endpoint. Since Juju 3.4 without one that is broken, also in its own last hook."""
    options = parse(parser("relation-ids"), arguments, 1)
    name = word(options) or os.environ.get("JUJU_RELATION", "")
    if not name:
        fail(f"no {'endpoint' if context['juju'] >= [3, 0] else 'relation'} name specified", 2)
    hidden = context["juju"] >= [3, 4]
    found = [one for one in context["relations"] if one["endpoint"] == name and not (one["broken"] and hidden)]
    show(sorted(f"{name}:{one['id']}" for one in found), options.format)


def relation_list(context: Context, arguments: list[str]) -> None:
    """The units, or with --app the application, at the other end."""
    options = parse(relation_parser("relation-list"), arguments)
    one = relation(context, options.relation)
    show(one["remote_app"] if options.app else one["remote_units"], options.format)


def settings(context: Context, one: dict[str, Any], who: str) -> dict[str, str]:
    """What somebody has said over a relation; of our own, what this hook has said as well."""
    said = dict(one["data"].get(who, {}))
    for effect in effects("relation-set"):
        if effect["relation"] == one["id"] and who == (application(context) if effect["app"] else context["unit"]):
            said.update(effect["values"])
    return {key: value for key, value in said.items() if value}


def application(context: Context) -> str:
    """This unit's application."""
    return context["unit"].partition("/")[0]


def relation_get(context: Context, arguments: list[str]) -> None:
    """What a unit or an application has said."""
    options = parse(relation_parser("relation-get"), arguments, 2)
    one = relation(context, options.relation)
    key, who = word(options), word(options, 1)
    if who and options.app:
        who = who.partition("/")[0]
    if not who:
        unit, app = os.environ.get("JUJU_REMOTE_UNIT", ""), os.environ.get("JUJU_REMOTE_APP", "")
        who = app if options.app else unit or app
    if not who:
        fail("no unit or application specified", 2)
    if who == application(context) and not context["leader"]:
        fail("permission denied")
    if who.partition("/")[0] not in (application(context), one["remote_app"]):
        fail("permission denied")
    said = settings(context, one, who)
    show(said if key in ("", "-") else said.get(key), options.format)


def pairs_of(options: argparse.Namespace) -> dict[str, str]:
    """The settings of `--file` (JSON only: there is no YAML parser on the machine) and of `key=value` arguments."""
    text = sys.stdin.read() if options.file == "-" else Path(options.file).read_text() if options.file else "{}"
    values = json.loads(text)
    for pair in options.words:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            fail(f'expected "key=value", got "{pair}"', 2)
        values[key] = value
    return values


def relation_set(context: Context, arguments: list[str]) -> None:
    """Say something."""
    made = relation_parser("relation-set")
    made.add_argument("--file")
    options = parse(made, arguments, None)
    one, values = relation(context, options.relation), pairs_of(options)
    if options.app and not context["leader"]:
        fail("cannot write relation settings")
    record("relation-set", relation=one["id"], app=options.app, values=values)


def relation_model_get(context: Context, arguments: list[str]) -> None:
    """The model at the other end."""
    options = parse(relation_parser("relation-model-get"), arguments)
    relation(context, options.relation)
    show({"uuid": os.environ["JUJU_MODEL_UUID"]}, options.format)


def status_parser(tool: str) -> Parser:
    """Make a parser for a tool whose `--application` is a switch that may have a value."""
    made = parser(tool)
    made.add_argument("--include-data", action="store_true")
    made.add_argument("--application", action="store_true")
    return made


def plain(arguments: list[str]) -> list[str]:
    """Take `--application=true` and `=false` for the switch that it is."""
    given = [one.lower() for one in arguments if one.startswith("--application=")]
    rest = [one for one in arguments if not one.startswith("--application=")]
    return ["--application", *rest] if any(one.endswith("=true") for one in given) else rest


def status_get(context: Context, arguments: list[str]) -> None:
    """The status that was set last."""
    options = parse(status_parser("status-get"), plain(arguments))
    name, message = context["status"]
    for effect in effects("status"):
        if not effect["application"]:
            name, message = effect["status"], effect["message"]
    if options.application and not context["leader"]:
        fail("finding application status: this unit is not the leader")
    if options.format == "smart" and not options.include_data:
        return show(name, "smart")
    status: dict[str, Any] = {"status": name}
    if options.include_data:
        status |= {"message": message, "status-data": {}}
    if options.application:
        status = {"application-status": {**status, "units": {context["unit"]: status}}}
    return show(status, options.format)


def status_set(context: Context, arguments: list[str]) -> None:
    """What to show to the operator; it stays where the hook fails."""
    options = parse(status_parser("status-set"), plain(arguments), 2)
    if not options.words:
        fail("invalid args, require <status> [message]", 2)
    if word(options) not in ("maintenance", "blocked", "waiting", "active"):
        fail(f'invalid status "{word(options)}", expected one of [maintenance blocked waiting active]', 2)
    if options.application and not context["leader"]:
        fail("this unit is not the leader")
    record("status", status=word(options), message=word(options, 1), application=options.application)


def application_version_set(context: Context, arguments: list[str]) -> None:
    """The version that `juju status` shows."""
    version = word(parse(parser("application-version-set"), arguments, 1))
    if not version:
        fail("no version specified", 2)
    record("version", version=version)


def juju_log(context: Context, arguments: list[str]) -> None:
    """A line for `juju debug-log`; in a relation's hook it begins with the relation."""
    made = parser("juju-log")
    made.add_argument("-l", "--log-level", default="INFO")
    made.add_argument("--debug", action="store_true")
    options = parse(made, arguments, None)
    if not options.words:
        fail("no message specified", 2)
    level = "DEBUG" if options.debug else options.log_level.upper()
    if level not in ("TRACE", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        record("log", level="WARNING", message=f'Specified log level of "{options.log_level}" is not valid')
        level = "INFO"
    known = {f"{one['endpoint']}:{one['id']}" for one in context["relations"]}
    hooks_own = os.environ.get("JUJU_RELATION_ID", "")
    prefix = f"{hooks_own}: " if hooks_own in known else ""
    record("log", level=level, message=prefix + " ".join(options.words))


def action(context: Context) -> dict[str, Any]:
    """Refuse the action tools outside an action."""
    if context["action"] is None:
        fail("not running an action")
    return context["action"]


def action_get(context: Context, arguments: list[str]) -> None:
    """The parameters of the action, or one: `a.b` is b of a."""
    options = parse(parser("action-get"), arguments, 1)
    value: Any = action(context)["params"]
    for part in word(options).split(".") if word(options) else ():
        value = value.get(part) if isinstance(value, dict) else None
    show(value, options.format)


def action_set(context: Context, arguments: list[str]) -> None:
    """Results of the action, `a.b=value` for nested ones."""
    found: list[tuple[str, str]] = []
    for pair in parse(parser("action-set"), arguments, None).words:
        key, equals, value = pair.partition("=")
        if not equals:
            fail(f'argument "{pair}" must be of the form key...=value', 2)
        for part in key.split("."):
            if not KEY.fullmatch(part):
                fail(
                    f'key "{part}" must start and end with lowercase alphanumeric, and contain only lowercase'
                    " alphanumeric, hyphens and periods",
                    2,
                )
            if part in RESERVED:
                fail(f'cannot set reserved action key "{part}"', 2)
        found.append((key, value))
    action(context)
    for key, value in found:
        record("action-set", key=key, value=value)


def action_fail(context: Context, arguments: list[str]) -> None:
    """The action failed."""
    options = parse(parser("action-fail"), arguments, 1)
    action(context)
    without = "action failed without reason given, check action for errors"
    record("action-fail", message=options.words[0] if options.words else without)


def action_log(context: Context, arguments: list[str]) -> None:
    """Progress of the action."""
    options = parse(parser("action-log"), arguments, None)
    if not options.words:
        fail("no message specified", 2)
    action(context)
    record("action-log", message=" ".join(options.words))


def network_get(context: Context, arguments: list[str]) -> None:
    """The addresses of a binding: the machine's one."""
    made = relation_parser("network-get")
    for name in ("bind-address", "ingress-address", "egress-subnets", "primary-address"):
        made.add_argument(f"--{name}", action="store_true")
    options = parse(made, arguments, 1)
    if not word(options):
        fail("no arguments specified", 2)
    if options.relation:
        relation(context, options.relation)
    address = context["address"]
    if options.primary_address:
        return show(address, options.format)
    values = {"bind-address": address, "ingress-address": address, "egress-subnets": [f"{address}/32"]}
    asked = {key: value for key, value in values.items() if getattr(options, key.replace("-", "_"))}
    if asked:
        return show(next(iter(asked.values())) if len(asked) == 1 else asked, options.format)
    bound = {
        "mac-address": "",
        "interface-name": "host0",
        "addresses": [{"hostname": "", "value": address, "cidr": f"{address}/32"}],
    }
    every = {"bind-addresses": [bound], "egress-subnets": [f"{address}/32"], "ingress-addresses": [address]}
    return show(every, options.format)


def unit_get(context: Context, arguments: list[str]) -> None:
    """`public-address` and `private-address`."""
    options = parse(parser("unit-get"), arguments, 1)
    if not options.words:
        fail("no setting specified", 2)
    if word(options) not in ("public-address", "private-address"):
        fail(f'unknown setting "{word(options)}"', 2)
    show(context["address"], options.format)


def resource_get(context: Context, arguments: list[str]) -> None:
    """The path of a resource that was attached, without a line's end."""
    name = word(parse(parser("resource-get"), arguments, 1))
    if not name:
        fail("missing required resource name", 2)
    if name not in context["resources"]:
        fail(f'could not download resource: HTTP request failed: resource "{name}" not found')
    print(context["resources"][name], end="")


def secret_get(context: Context, arguments: list[str]) -> None:
    """The content of a secret that was granted to this application, by `secret:ID`.

    What was read first stays what is read, whatever came since, until --refresh.
    """
    made = parser("secret-get", "yaml", ("yaml", "json"))
    for name in ("refresh", "peek"):
        made.add_argument(f"--{name}", action="store_true")
    made.add_argument("--label", default="")
    options = parse(made, arguments, 2)
    if not word(options) and not options.label:
        fail("require either a secret URI or label", 2)
    if options.peek and options.refresh:
        fail("specify one of --peek or --refresh but not both", 2)
    name = word(options).rpartition(":")[2].rpartition("/")[2]
    secret = context["secrets"].get(name)
    if secret is None:
        fail(f'secret "{name or options.label}" not found')
    if not secret["granted"]:
        fail("permission denied")
    tracked = secret["tracked"]
    for effect in effects("secret-track"):
        tracked = effect["revision"] if effect["secret"] == name else tracked
    newest = len(secret["revisions"])
    revision = newest if options.peek or options.refresh or tracked is None else tracked
    if not options.peek and revision != tracked:
        record("secret-track", secret=name, revision=revision)
    content, key = secret["revisions"][revision - 1], word(options, 1)
    if not key:
        return show(content, options.format)
    key, encoded = key.removesuffix("#base64"), key.endswith("#base64")
    if key not in content:
        fail(f'secret key value "{key}" not found')
    value = content[key]
    return show(base64.b64encode(value.encode()).decode() if encoded else value, options.format)


def secret_info_get(context: Context, arguments: list[str]) -> None:
    """What is known of a secret of this application's own: it has none."""
    made = parser("secret-info-get", "yaml", ("yaml", "json"))
    made.add_argument("--label", default="")
    options = parse(made, arguments, 1)
    name = word(options).rpartition(":")[2] or options.label
    if not name:
        fail("require either a secret URI or label", 2)
    fail(f'secret "{name}" not found')


def stored(context: Context) -> dict[str, str]:
    """What the charm keeps at the controller, and what this hook has changed of it."""
    state = dict(context["state"])
    for effect in effects("state-set", "state-delete"):
        if effect["kind"] == "state-set":
            state.update(effect["values"])
        else:
            state.pop(effect["key"], None)
    return state


def state_get(context: Context, arguments: list[str]) -> None:
    """All of the controller-side state, or one value; nothing for one that is not there, or with --strict an error."""
    made = parser("state-get")
    made.add_argument("--strict", action="store_true")
    options = parse(made, arguments, 1)
    key, state = word(options), stored(context)
    if key in ("", "-"):
        return show(state or None, options.format)
    if key not in state and options.strict:
        fail(f'"{key}" not found')
    return show(state.get(key, ""), options.format)


def state_set(context: Context, arguments: list[str]) -> None:
    """Keep values."""
    made = parser("state-set")
    made.add_argument("--file")
    record("state-set", values=pairs_of(parse(made, arguments, None)))


def state_delete(context: Context, arguments: list[str]) -> None:
    """Forget a value."""
    record("state-delete", key=word(parse(parser("state-delete"), arguments, 1)))


def storage_get(context: Context, arguments: list[str]) -> None:
    """Say that there is no storage."""
    made = parser("storage-get")
    made.add_argument("-s", default="")
    options = parse(made, arguments, 1)
    if options.s:
        fail(f'invalid value "{options.s}" for option -s: storage not found', 2)
    fail("no storage instance specified", 2)


def juju_reboot(context: Context, arguments: list[str]) -> None:
    """Refused in an action; otherwise left out on purpose, and said so."""
    made = parser("juju-reboot")
    made.add_argument("--now", action="store_true")
    parse(made, arguments)
    if context["action"] is not None:
        fail("juju-reboot is not supported when running an action.")
    fail("the stand-in does not reboot for a charm")


def not_there(what: str) -> Callable[[Context, list[str]], None]:
    """Make a tool that answers as Juju does when there is no such thing, or that is left out and says so."""

    def tool(context: Context, arguments: list[str]) -> None:
        fail(what)

    return tool


def nothing_of(tool: str) -> Callable[[Context, list[str]], None]:
    """Make a tool that lists what there is none of."""

    def listed(context: Context, arguments: list[str]) -> None:
        made = parser(tool)
        made.add_argument("--endpoints", action="store_true")
        show([], parse(made, arguments, 1).format)

    return listed


def nothing(context: Context, arguments: list[str]) -> None:
    """Do nothing: ports mean nothing to the stand-in but are no error."""
    record("ignored", tool=Path(sys.argv[0]).name, arguments=arguments)


OURS = "the stand-in keeps no secrets of a charm's own"
TOOLS: dict[str, Callable[[Context, list[str]], None]] = {
    "action-fail": action_fail,
    "action-get": action_get,
    "action-log": action_log,
    "action-set": action_set,
    "application-version-set": application_version_set,
    "close-port": nothing,
    "config-get": config_get,
    "credential-get": not_there("cannot access cloud credentials: permission denied"),
    "goal-state": not_there("the stand-in keeps no goal state"),
    "is-leader": is_leader,
    "juju-log": juju_log,
    "juju-reboot": juju_reboot,
    "network-get": network_get,
    "open-port": nothing,
    "opened-ports": nothing_of("opened-ports"),
    "relation-get": relation_get,
    "relation-ids": relation_ids,
    "relation-list": relation_list,
    "relation-model-get": relation_model_get,
    "relation-set": relation_set,
    "resource-get": resource_get,
    "secret-add": not_there(OURS),
    "secret-get": secret_get,
    "secret-grant": not_there(OURS),
    "secret-ids": nothing_of("secret-ids"),
    "secret-info-get": secret_info_get,
    "secret-remove": not_there(OURS),
    "secret-revoke": not_there(OURS),
    "secret-set": not_there(OURS),
    "state-delete": state_delete,
    "state-get": state_get,
    "state-set": state_set,
    "status-get": status_get,
    "status-set": status_set,
    "storage-get": storage_get,
    "storage-list": nothing_of("storage-list"),
    "unit-get": unit_get,
}


def tools_of(juju: tuple[int, int]) -> list[str]:
    """Name the tools that a version of Juju puts on a charm's PATH: secrets came with 3.0."""
    return [name for name in TOOLS if juju >= (3, 0) or not name.startswith("secret-")]


def main() -> None:
    """Run the tool that this program was called as."""
    if not os.environ.get("JUJU_CONTEXT_ID"):
        fail("JUJU_CONTEXT_ID not set")
    context = json.loads((FOLDER / "context.json").read_text())
    TOOLS[Path(sys.argv[0]).name](context, sys.argv[1:])


if __name__ == "__main__":
    main()
