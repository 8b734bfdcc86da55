"""A stand-in for Juju's unit agent: runs a packed charm's own `dispatch` on a machine as Juju would.

There is no controller on the machines that this project is tested on. What is here is the outside of the charm: the
folder it lies in, the environment of a hook, the hook tools on its PATH (hook_tools.py), the order of a subordinate's
events, an operator's commands. Nothing of the charm is replaced. What it follows, from where that is known, and what it
leaves out is in docs/stand-in.md, whose tables are tests. A hook that fails puts the unit into the error state until it
is run again; what was to come after it comes then.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shlex
import subprocess
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from testbed import hook_tools
from testbed.cache import TestbedError
from testbed.machine import Machine

JUJU_VERSION = "3.6.9"
MODEL = "k8s"
HOOK_TIMEOUT = 900.0  # seconds; Juju has none, a test must


# Held by whatever runs of Juju's on a machine: the hooks of all units there run one at a time. It is a folder.
LOCK = "/var/lib/juju/tools"

# On the machine: `juju-exec -u UNIT COMMAND` (in 2.9 `juju-run`), a shell's command in the environment of a hook, when
# no hook runs. What a hook says counts if it ends well, so that its end is recorded.
JUJU_EXEC = r"""#!/bin/sh
name=${0##*/} unit=unit-$(echo "$2" | tr / -)
fail() { code=$1; shift; echo "ERROR $*" >&2; exit "$code"; }
[ -z "$JUJU_CONTEXT_ID" ] || fail 2 "$name cannot be called from within a hook, have context \"$JUJU_CONTEXT_ID\""
[ "$1" = -u ] && [ $# = 3 ] || fail 2 "the stand-in knows $name -u UNIT COMMAND alone"
[ -d "/var/lib/juju/agents/$unit" ] || fail 1 "unit \"$2\" not found on this machine"
exec flock /var/lib/juju/tools env -i sh -c '
. "$1/environment"
export JUJU_CONTEXT_ID="$JUJU_UNIT_NAME-run-commands-$$"
/bin/bash -c "$2"
code=$?
[ $code != 0 ] || echo "{\"kind\": \"commit\", \"context\": \"$JUJU_CONTEXT_ID\"}" >> "$1/effects.jsonl"
exit $code' sh "/var/lib/juju/tools/$unit" "$3"
"""

# Run on the machine. As Juju's own deployer: what the last charm brought is taken away and what the charm wrote stays,
# such as the state that ops keeps in the charm's folder. zipfile drops modes and links, so both are set by hand.
UNPACK = """
import stat, sys, zipfile
from pathlib import Path
old, new, folder = map(Path, sys.argv[1:])
if old.exists():
    for entry in zipfile.ZipFile(old).infolist():
        if not entry.is_dir():
            (folder / entry.filename).unlink(missing_ok=True)
archive = zipfile.ZipFile(new)
for entry in archive.infolist():
    path, mode = folder / entry.filename, entry.external_attr >> 16
    if stat.S_ISLNK(mode):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(archive.read(entry).decode())
    else:
        archive.extract(entry, folder)
        if mode:
            path.chmod(stat.S_IMODE(mode))
new.replace(old)
"""


class Status(NamedTuple):
    """As `juju status` shows it."""

    name: str
    message: str


class HookFailed(TestbedError):
    """A hook ended with another code than 0; the text holds what it printed last."""


class LogLine(NamedTuple):
    """A line of `juju debug-log`; `source` is `juju-log`, or the hook whose output it is."""

    at: datetime
    level: str
    message: str
    source: str = "juju-log"


@dataclass
class ActionResult:
    """How an action ended, as `juju run` shows it."""

    status: str
    results: dict[str, Any]
    message: str = ""
    log: list[str] = field(default_factory=list)


class Hook(NamedTuple):
    """A hook to run, and what its environment has beyond every hook's."""

    name: str
    extra: dict[str, str] = {}  # noqa: RUF012 - never written to


@dataclass
class Relation:
    """A relation of the unit's: with which unit, what each of the two has said, and who has joined it by now."""

    id: int
    endpoint: str
    remote: str
    data: dict[str, dict[str, str]]
    members: list[str] = field(default_factory=list)
    broken: bool = False


@dataclass
class Secret:
    """An operator's secret: what it has held, whether this unit may read it, and which revision it goes on reading."""

    revisions: list[dict[str, str]]
    granted: bool = True
    tracked: int | None = None


def secret_id() -> str:
    """Make up what Juju calls a new secret."""
    return f"secret:d0{uuid.uuid4().hex[:18]}"


class Unit:
    """One unit of a subordinate charm, beside its principal's unit on one machine.

    Args:
        machine: where it runs.
        application: the name it is deployed under.
        endpoint: the charm's endpoint to the principal.
        principal: the principal's unit.
        number: the unit's.
        juju_version: which Juju this is; the tools, their names and their answers are that one's.
        juju_exec: whether the machine has `juju-exec` (in 2.9 `juju-run`), by which something can have a hook run.
        leader: whether the unit leads; if nothing is said, the application's first does.
        machine_id: the machine's number in the model; if nothing is said, the principal's.
        environment: what hooks have in their environment beyond what Juju gives them.

    """

    def __init__(
        self,
        machine: Machine,
        application: str = "kubernetes-keystone",
        endpoint: str = "kubernetes-master",
        principal: str = "kubernetes-master/0",
        number: int = 0,
        juju_version: str = JUJU_VERSION,
        juju_exec: bool = False,
        leader: bool | None = None,
        machine_id: str = "",
        environment: Mapping[str, str] | None = None,
    ):
        self.machine = machine
        self._juju_exec = juju_exec
        self.application = application
        self.name = f"{application}/{number}"
        self.endpoint = endpoint
        self.principal = principal
        self.juju_version = juju_version
        major, minor = juju_version.split(".")[:2]
        self._juju = int(major), int(minor)
        self.leader = number == 0 if leader is None else leader
        self._more = dict(environment or {})
        self.machine_id = machine_id or principal.partition("/")[2]
        self.status = Status("waiting", "agent initialising")
        self.history: list[Status] = []
        self.log: list[LogLine] = []
        self.workload_version = ""
        self.failed_hook: Hook | None = None
        self.hooks: list[str] = []
        self._folder = f"/var/lib/juju/agents/unit-{application}-{number}"
        self._tools = f"/var/lib/juju/tools/unit-{application}-{number}"
        self._charm: Path | None = None
        self._options: dict[str, dict[str, Any]] = {}
        self._config: dict[str, Any] = {}
        self.related = False
        self._relations: dict[str, Relation] = {}
        self._relation_ids = itertools.count(1)
        self._actions = 0
        self._resources: dict[str, bytes] = {}
        self._placed: dict[str, str] = {}
        self._secrets: dict[str, Secret] = {}
        self._state: dict[str, str] = {}
        self._queue: list[Hook] = []
        self._configured: dict[str, Any] | None = None
        self._leaving = False
        self._proxies: dict[str, str] = {}
        self._model_uuid = str(uuid.uuid4())

    # What an operator does

    def deploy(self, charm: Path, config: Mapping[str, Any] | None = None) -> None:
        """`juju deploy`: a subordinate has no unit until it is related, so that nothing runs yet."""
        self._config = {}  # another application's, if there was one before
        self._take(charm)
        self._set(config or {})

    def relate(self) -> None:
        """`juju add-relation`: Juju makes the unit beside the principal's and runs its first hooks."""
        self.related = True
        self._enter(self.endpoint, self.principal)
        self._install()
        created, joined, changed = (self._relation_event(kind) for kind in ("created", "joined", "changed"))
        elected = [Hook("leader-elected")] if self.leader else []
        self._run(Hook("install"), created, *elected, Hook("config-changed"), Hook("start"), joined, changed)

    def integrate(self, endpoint: str, remote: str, **said: str) -> None:
        """`juju integrate` with another application, whose unit `remote` is there already and has said all it will."""
        self._enter(endpoint, remote)
        self._relations[endpoint].data[remote] |= said
        self._run(*(self._relation_event(kind, endpoint) for kind in ("created", "joined", "changed")))

    def separate(self, endpoint: str) -> None:
        """`juju remove-relation` of what `integrate` made."""
        self._run(*(self._relation_event(kind, endpoint) for kind in ("departed", "broken")))

    def tell(self, endpoint: str, said: Mapping[str, str]) -> None:
        """Have the application at the other end say this in the place of all that it has said."""
        relation = self._relations[endpoint]
        relation.data[relation.remote.partition("/")[0]] = dict(said)
        self._relation_hook("changed", endpoint)

    def heard(self, endpoint: str) -> dict[str, str]:
        """What the application at the other end has said."""
        relation = self._relations[endpoint]
        return dict(relation.data.get(relation.remote.partition("/")[0], {}))

    def said(self, endpoint: str) -> dict[str, str]:
        """What the unit has said over a relation, as `juju show-unit` of the other side has it."""
        return dict(self._relations[endpoint].data[self.name])

    def _enter(self, endpoint: str, remote: str) -> None:
        own = {"private-address": self.machine.address, "ingress-address": self.machine.address}
        own["egress-subnets"] = f"{self.machine.address}/32"
        data = {remote: dict(own), self.name: dict(own)}
        self._relations[endpoint] = Relation(next(self._relation_ids), endpoint, remote, data)

    def configure(self, **options: Any) -> None:
        """`juju config`; an underscore in a name here is a hyphen there. No hook runs if nothing changes."""
        before = self._effective()
        self.put(**options)
        if self.related and self._effective() != before:
            self.hook("config-changed")

    def put(self, **options: Any) -> None:
        """Change settings without a hook, as `juju config` does while the unit is in the error state."""
        self._set({name.replace("_", "-"): value for name, value in options.items()})

    def reset(self, *options: str) -> None:
        """`juju config --reset`."""
        before = self._effective()
        for option in options:
            self._config.pop(option, None)
        if self.related and self._effective() != before:
            self.hook("config-changed")

    def attach(self, resource: str, content: bytes) -> None:
        """`juju attach-resource`, which to Juju is an upgrade of the charm; before `relate`, `deploy --resource`."""
        self._resources[resource] = content
        if self.related:
            self._run(Hook("upgrade-charm"), Hook("config-changed"))

    def add_secret(self, secret: str = "", /, **content: str) -> str:
        """`juju add-secret` and `juju grant-secret`: gives what an option that names it is set to."""
        if self._juju < (3, 3):
            raise TestbedError(f"juju add-secret is no command of Juju {self.juju_version}")
        secret = secret or secret_id()
        self._secrets[secret.removeprefix("secret:")] = Secret([content])
        return secret

    def remove_secret(self, secret: str) -> None:
        """`juju remove-secret`."""
        self._secrets.pop(secret.removeprefix("secret:"), None)

    def update_secret(self, name: str, /, **content: str) -> None:
        """`juju update-secret`; who has read it is told by a hook, and goes on reading what it knows."""
        secret = self._secrets[name.removeprefix("secret:")]
        secret.revisions.append(content)
        if secret.tracked is not None and secret.granted:
            self.hook("secret-changed", JUJU_SECRET_ID=name, JUJU_SECRET_LABEL="")

    def lead(self) -> None:
        """Make the unit the leader, as Juju does when the one before it is gone."""
        self.leader = True
        self.hook("leader-elected")

    def configure_model(self, **settings: str) -> None:
        """`juju model-config` of `juju-https-proxy` and the like; no hook runs."""
        self._proxies = {f"JUJU_CHARM_{name.removeprefix('juju_').upper()}": value for name, value in settings.items()}

    def run_action(self, action: str, **params: Any) -> ActionResult:
        """`juju run UNIT ACTION`; defaults come from actions.yaml, unknown parameters are refused."""
        declared = self._yaml("actions.yaml").get(action)
        if declared is None:
            raise TestbedError(f'action "{action}" not defined on unit "{self.name}"')
        properties: dict[str, Any] = declared.get("params", {})
        values = {name: one["default"] for name, one in properties.items() if "default" in one}
        given = {name.replace("_", "-"): value for name, value in params.items()}
        if unknown := sorted(set(given) - set(properties)):
            raise TestbedError(f"action {action}: additional property {', '.join(unknown)} is not allowed")
        values.update(given)
        if missing := sorted(set(declared.get("required", [])) - set(values)):
            raise TestbedError(f"action {action}: {', '.join(missing)} is required")
        self._actions += 1
        extra = {
            "JUJU_HOOK_NAME": "",
            "JUJU_DISPATCH_PATH": f"actions/{action}",
            "JUJU_ACTION_NAME": action,
            "JUJU_ACTION_UUID": str(self._actions),
            "JUJU_ACTION_TAG": f"action-{self._actions}",
        }
        done, effects = self._dispatch(extra, action={"name": action, "params": values})
        result = ActionResult("completed", {})
        for effect in effects:
            if effect["kind"] == "action-set":
                place = result.results
                *folders, leaf = effect["key"].split(".")
                for one in folders:
                    place = place.setdefault(one, {})
                place[leaf] = effect["value"]
            elif effect["kind"] == "action-log":
                result.log.append(effect["message"])
            elif effect["kind"] == "action-fail":
                result.status, result.message = "failed", effect["message"]
        if done.returncode != 0:
            result.status = "failed"
            result.message = result.message or f"exit status {done.returncode}: {done.stderr[-2000:]}"
        return result

    def update_status(self) -> None:
        """The hook that Juju runs every five minutes."""
        self.hook("update-status")

    def reboot(self) -> None:
        """Reboot the machine; Juju then runs `start` again."""
        self.machine.reboot()
        self.hook("start")

    def upgrade(self, charm: Path) -> None:
        """`juju refresh`: what the charm brought is replaced, what it wrote stays."""
        self._not_in_error()
        self._take(charm)
        self._install()
        self._run(Hook("upgrade-charm"), Hook("config-changed"))

    def retry(self) -> None:
        """`juju resolve`, or Juju by itself after a while: run the hook that failed again, and then what it held up."""
        if self.failed_hook is None:
            raise TestbedError(f"{self.name} is not in an error state")
        self._queue.insert(0, self.failed_hook)
        self.failed_hook = None
        self._run()
        if self.related and self._configured != self._effective():
            self.hook("config-changed")

    def remove(self, order: Sequence[str] = ("departed", "broken", "stop", "remove")) -> None:
        """`juju remove-relation` or `remove-application`: the last hooks, then the charm's folder goes.

        Args:
            order: the hooks to run; a unit that is forced out or an agent that died gets fewer of them.

        """
        self._leaving = True
        self._run(*(self._relation_event(one) if one in ("departed", "broken") else Hook(one) for one in order))

    def __str__(self) -> str:
        """The unit's line of `juju status`."""
        status = self.shown
        return f"{self._starred}  {status.name:<9} {self.machine.address}  {status.message}"

    @property
    def _starred(self) -> str:
        return f"{self.name}*" if self.leader else self.name

    def debug_log(self, last: int = 100) -> str:
        """What `juju debug-log` shows: the end of it."""
        who = f"unit-{self.application}-{self.name.partition('/')[2]}"
        lines = [
            f"{who}: {line.at:%H:%M:%S} {line.level} unit.{self.name}.{line.source} {line.message}" for line in self.log
        ]
        return "\n".join(lines[-last:])

    @property
    def shown(self) -> Status:
        """The state as Juju has it, which of a failed hook is not the charm's word."""
        if self.failed_hook:
            return Status("error", f'hook failed: "{self.failed_hook.name}"')
        return self.status if self.related else Status("unknown", "")

    # What Juju does

    def hook(self, hook: str, **extra: str) -> None:
        """Run a hook.

        Raises:
            HookFailed: its exit code was not 0; the unit is in the error state, and only the same hook runs again.

        """
        self._not_in_error()
        self._juju_says(hook)
        done, _ = self._dispatch({"JUJU_HOOK_NAME": hook, "JUJU_DISPATCH_PATH": f"hooks/{hook}", **extra})
        if done.returncode != 0:
            self.failed_hook = Hook(hook, extra)
            last = "\n".join(f"{line.level} {line.message}" for line in self.log[-8:])
            raise HookFailed(f"hook {hook} of {self.name} ended with {done.returncode}\n{done.stderr[-3000:]}\n{last}")

        self._juju_says(hook, over=True)

    def _not_in_error(self) -> None:
        if self.failed_hook is not None:
            raise TestbedError(f"{self.name} is in an error state: {self.failed_hook.name} has to be resolved first")

    def _run(self, *hooks: Hook) -> None:
        """Run hooks one after the other; those behind one that fails wait until it has been resolved."""
        self._not_in_error()
        self._queue += hooks
        while self._queue:
            hook = self._queue.pop(0)
            self.hook(hook.name, **hook.extra)
        for endpoint in [name for name, one in self._relations.items() if one.broken and not self._leaving]:
            del self._relations[endpoint]
        if self._leaving:
            self.related = self._leaving = False
            self._relations.clear()
            self._state.clear()
            self._configured = None
            self.machine.run("rm", "-rf", self._folder, self._tools)

    def _relation_hook(self, kind: str, endpoint: str | None = None) -> None:
        self._run(self._relation_event(kind, endpoint))

    def _juju_says(self, hook: str, over: bool = False) -> None:
        """Set the statuses that are Juju's own, before a hook and after it."""
        said = {
            ("install", False): Status("maintenance", "installing charm software"),
            ("stop", False): Status("maintenance", "stopping charm software"),
            ("stop", True): Status("maintenance", ""),
            ("remove", False): Status("maintenance", "cleaning up prior to charm deletion"),
            ("remove", True): Status("terminated", ""),
        }
        if hook == "start" and over and not self.history:
            self.status = Status("unknown", "")
        self.status = said.get((hook, over), self.status)

    def _relation_event(self, kind: str, endpoint: str | None = None) -> Hook:
        relation = self._relations[endpoint or self.endpoint]
        extra = {
            "JUJU_RELATION": relation.endpoint,
            "JUJU_RELATION_ID": f"{relation.endpoint}:{relation.id}",
            "JUJU_REMOTE_APP": relation.remote.partition("/")[0],
            "JUJU_REMOTE_UNIT": relation.remote if kind in ("joined", "changed", "departed") else "",
        }
        if kind == "departed":
            # Ours, where the whole unit goes: of a subordinate, with its relation to the principal.
            extra["JUJU_DEPARTING_UNIT"] = self.name if relation.endpoint == self.endpoint else relation.remote
        return Hook(f"{relation.endpoint}-relation-{kind}", extra)

    def _dispatch(
        self, extra: Mapping[str, str], action: dict[str, Any] | None = None
    ) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
        """Run the charm's `dispatch` once and take in what it did."""
        what = extra["JUJU_HOOK_NAME"] or extra["JUJU_DISPATCH_PATH"]
        self.hooks.append(what)
        if what == "config-changed":
            self._configured = self._effective()
        for relation in self._relations.values():
            # Who has joined is there from its own hook on, and until its departure's.
            if what == f"{relation.endpoint}-relation-joined":
                relation.members = [relation.remote]
            elif what in (f"{relation.endpoint}-relation-departed", f"{relation.endpoint}-relation-broken"):
                relation.members = []
                relation.broken = relation.broken or what.endswith("-broken")
        # Before `install` is over Juju has the unit enter no relation; at the end all have been left.
        none = what in ("install", "stop", "remove") or not self.related
        relations = [
            {
                "id": relation.id,
                "endpoint": relation.endpoint,
                "remote_app": relation.remote.partition("/")[0],
                "remote_units": relation.members,
                "data": relation.data,
                "broken": relation.broken,
            }
            for relation in self._relations.values()
        ]
        context = {
            "juju": self._juju,
            "unit": self.name,
            "options": sorted(self._options),
            "config": self._effective(),
            "leader": self.leader,
            "relations": [] if none else relations,
            "status": list(self.status),
            "action": action,
            "address": self.machine.address,
            "resources": {name: self._place(name, content) for name, content in self._resources.items()},
            "secrets": {name: vars(secret) for name, secret in self._secrets.items()},
            "state": self._state,
        }
        self.machine.write(f"{self._tools}/context.json", json.dumps(context), 0o600)
        identity = f"{self.name}-{what}-{uuid.uuid4().hex[:8]}"
        environment = {
            "APT_LISTCHANGES_FRONTEND": "none",
            "CHARM_DIR": f"{self._folder}/charm",
            "CLOUD_API_VERSION": "",
            "DEBIAN_FRONTEND": "noninteractive",
            "JUJU_AGENT_SOCKET_ADDRESS": f"@{self._folder}/agent.socket",
            "JUJU_AGENT_SOCKET_NETWORK": "unix",
            "JUJU_API_ADDRESSES": "192.0.2.1:17070",
            "JUJU_AVAILABILITY_ZONE": "default",
            "JUJU_CHARM_DIR": f"{self._folder}/charm",
            "JUJU_CHARM_FTP_PROXY": "",
            "JUJU_CHARM_HTTPS_PROXY": "",
            "JUJU_CHARM_HTTP_PROXY": "",
            "JUJU_CHARM_NO_PROXY": "",
            "JUJU_CONTEXT_ID": identity,
            "JUJU_HOOK_NAME": "",
            "JUJU_MACHINE_ID": self.machine_id,
            "JUJU_MODEL_NAME": MODEL,
            "JUJU_MODEL_UUID": self._model_uuid,
            "JUJU_PRINCIPAL_UNIT": self.principal,
            "JUJU_UNIT_NAME": self.name,
            "JUJU_VERSION": self.juju_version,
            "LANG": "C.UTF-8",
            "PATH": f"{self._tools}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin",
            "TERM": "tmux-256color",
            **self._proxies,
            **self._more,
            **extra,
        }
        words = [f"{name}={value}" for name, value in environment.items()]
        if self._juju_exec:
            environment |= dict.fromkeys(extra, "")
            lasting = [shlex.quote(f"{name}={value}") for name, value in environment.items() if value]
            lines = [f"cd {self._folder}/charm", *(f"export {word}" for word in lasting)]
            self.machine.write(f"{self._tools}/environment", "\n".join(lines) + "\n", 0o600)
        command = ["flock", LOCK, "env", "-i", f"--chdir={self._folder}/charm", *words, "./dispatch"]
        done = self.machine.run(*command, check=False, timeout=HOOK_TIMEOUT)
        effects = self.catch_up(identity if done.returncode == 0 else "")
        for level, text in (("DEBUG", done.stdout), ("WARNING", done.stderr)):
            now = datetime.now(timezone.utc)
            self.log += [LogLine(now, level, line, what) for line in text.splitlines()]
        return done, effects

    def catch_up(self, ended_well: str = "") -> list[dict[str, Any]]:
        """Take in what has been done on the machine, by hooks that nobody here has run as well.

        Args:
            ended_well: the hook that this is known of; what one says over a relation or stores counts then alone.

        """
        effects = self._effects()
        good = {effect["context"] for effect in effects if effect["kind"] == "commit"} | {ended_well}
        for effect in effects:
            if effect["kind"] == "status" and not effect["application"]:
                self.status = Status(effect["status"], effect["message"])
                self.history.append(self.status)
            elif effect["kind"] == "version":
                self.workload_version = effect["version"]
            elif effect["kind"] == "secret-track" and effect["secret"] in self._secrets:
                self._secrets[effect["secret"]].tracked = effect["revision"]
            elif effect["kind"] == "log":
                at = datetime.fromtimestamp(effect["at"], timezone.utc)
                self.log.append(LogLine(at, effect["level"], effect["message"]))
            elif effect["context"] in good:
                self._commit(effect)
        return effects

    def _commit(self, effect: dict[str, Any]) -> None:
        """Take in what counts only because its hook has ended well."""
        if effect["kind"] == "relation-set":
            whose = self.application if effect["app"] else self.name
            for relation in self._relations.values():
                if relation.id == effect["relation"]:
                    said = {**relation.data.get(whose, {}), **effect["values"]}
                    relation.data[whose] = {key: value for key, value in said.items() if value}
        elif effect["kind"] == "state-set":
            self._state |= effect["values"]
        elif effect["kind"] == "state-delete":
            self._state.pop(effect["key"], None)

    def _place(self, resource: str, content: bytes) -> str:
        """Put a resource where Juju's agent does, unless this very one is there, and give its path."""
        declared = self._yaml("metadata.yaml")["resources"][resource]
        path = f"{self._folder}/resources/{resource}/{declared['filename']}"
        digest = hashlib.sha256(content).hexdigest()
        if self._placed.get(path) != digest or not self.machine.exists(path):
            self.machine.write(path, content, 0o600)
            self._placed[path] = digest
        return path

    def _effects(self) -> list[dict[str, Any]]:
        path = f"{self._tools}/effects.jsonl"
        text = self.machine.shell(
            f"test ! -d {LOCK} || exec 9<{LOCK}; test ! -e {path} || {{ flock 9; cat {path}; rm {path}; }}"
        )
        return [json.loads(line) for line in text.splitlines()]

    # The charm and its configuration

    def _take(self, charm: Path) -> None:
        """Read what the charm declares; options that it no longer has are forgotten."""
        self._charm = charm
        self._options = self._yaml("config.yaml").get("options", {})
        self._config = {name: value for name, value in self._config.items() if name in self._options}

    def _install(self) -> None:
        """Put charm and hook tools on the machine."""
        assert self._charm is not None, "deploy first"
        machine, packed = self.machine, f"{self._folder}/new.charm"
        machine.write(packed, self._charm.read_bytes())
        machine.run("python3", "-c", UNPACK, f"{self._folder}/deployed.charm", packed, f"{self._folder}/charm")
        machine.write(f"{self._tools}/hook-tool", Path(hook_tools.__file__).read_bytes(), 0o755)
        if self._juju_exec:
            machine.write(f"/usr/bin/{'juju-exec' if self._juju >= (3, 0) else 'juju-run'}", JUJU_EXEC, 0o755)
        tools = hook_tools.tools_of(self._juju)
        machine.shell("\n".join(f"ln -sf hook-tool {self._tools}/{tool}" for tool in tools))

    def _set(self, options: Mapping[str, Any]) -> None:
        """Check values as the controller does before it takes them."""
        kinds: dict[str, tuple[type, ...]] = {
            "string": (str,), "int": (int,), "boolean": (bool,), "float": (int, float),
        }  # fmt: skip
        for name, value in options.items():
            if name not in self._options:
                raise TestbedError(f'unknown option "{name}"')
            kind = self._options[name]["type"]
            if not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "boolean"):
                raise TestbedError(f'option "{name}" expected {kind}, got {value!r}')
        self._config.update(options)

    def _effective(self) -> dict[str, Any]:
        """What config-get shows: what is set, else the default; an option with neither is left out."""
        config = {name: one["default"] for name, one in self._options.items() if one.get("default") is not None}
        return config | self._config

    def _yaml(self, name: str) -> dict[str, Any]:
        assert self._charm is not None, "deploy first"
        with zipfile.ZipFile(self._charm) as archive:
            return yaml.safe_load(archive.read(name)) or {} if name in archive.namelist() else {}
