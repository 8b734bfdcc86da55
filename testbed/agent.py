"""A stand-in for Juju's unit agent: runs a packed charm's own `dispatch` on a machine as Juju would.

There is no controller on the machines that this project is tested on. What is here is the outside of the charm: the
folder it lies in, the environment of a hook, the hook tools on its PATH (hook_tools.py), the order of a subordinate's
events, an operator's commands. Nothing of the charm is replaced. Order and environment follow Juju's documentation of
hooks; a hook that fails puts the unit into the error state until it is run again, as Juju does.
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


# On the machine: `juju-exec -u UNIT COMMAND`, a shell's command in the environment of a hook, when no hook runs.
JUJU_EXEC = """#!/bin/sh
[ "$1" = -u ] || { echo "ERROR only -u UNIT COMMAND is known here" >&2; exit 2; }
tools=/var/lib/juju/tools/unit-$(echo "$2" | tr / -)
[ -d "$tools" ] || { echo "ERROR unit $2 not found on this machine" >&2; exit 1; }
exec flock "$tools/lock" env -i sh -c ". $tools/environment; $3"
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


@dataclass
class Relation:
    """A relation of the unit's: with which unit, and what each of the two has said."""

    id: int
    endpoint: str
    remote: str
    data: dict[str, dict[str, str]]


class Unit:
    """One unit of a subordinate charm, beside its principal's unit on one machine.

    Args:
        machine: where it runs.
        application: the name it is deployed under.
        endpoint: the charm's endpoint to the principal.
        principal: the principal's unit.
        number: the unit's.
        juju_version: what the charm is told.
        juju_exec: whether the machine has `juju-exec`, by which something on it can have a hook run.

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
    ):
        self.machine = machine
        self._juju_exec = juju_exec
        self.application = application
        self.name = f"{application}/{number}"
        self.endpoint = endpoint
        self.principal = principal
        self.juju_version = juju_version
        self.status = Status("waiting", "agent initialising")
        self.history: list[Status] = []
        self.log: list[LogLine] = []
        self.workload_version = ""
        self.failed_hook: tuple[str, dict[str, str]] | None = None
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
        self._secrets: dict[str, dict[str, str]] = {}
        self._proxies: dict[str, str] = {}
        self._model_uuid = str(uuid.uuid4())

    # What an operator does

    def deploy(self, charm: Path, config: Mapping[str, Any] | None = None) -> None:
        """`juju deploy`: a subordinate has no unit until it is related, so that nothing runs yet."""
        self._take(charm)
        self._set(config or {})

    def relate(self) -> None:
        """`juju add-relation`: Juju makes the unit beside the principal's and runs its first hooks."""
        self.related = True
        self._enter(self.endpoint, self.principal)
        self._install()
        self.hook("install")
        self._relation_hook("created")
        self.hook("leader-elected")
        self.hook("config-changed")
        self.hook("start")
        self._relation_hook("joined")
        self._relation_hook("changed")

    def integrate(self, endpoint: str, remote: str, **said: str) -> None:
        """`juju integrate` with another application, whose unit `remote` is there already and has said all it will."""
        self._enter(endpoint, remote)
        self._relations[endpoint].data[remote] |= said
        for kind in ("created", "joined", "changed"):
            self._relation_hook(kind, endpoint)

    def separate(self, endpoint: str) -> None:
        """`juju remove-relation` of what `integrate` made."""
        for kind in ("departed", "broken"):
            self._relation_hook(kind, endpoint)
        del self._relations[endpoint]

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
        """`juju attach-resource`, after which Juju runs `upgrade-charm`; before `relate`, `deploy --resource`."""
        self._resources[resource] = content
        if self.related:
            self.hook("upgrade-charm")

    def add_secret(self, secret: str = "", /, **content: str) -> str:
        """`juju add-secret` and `juju grant-secret`: gives what an option that names it is set to."""
        secret = secret or f"secret:d0{uuid.uuid4().hex[:18]}"
        self._secrets[secret.removeprefix("secret:")] = content
        return secret

    def remove_secret(self, secret: str) -> None:
        """`juju remove-secret`."""
        self._secrets.pop(secret.removeprefix("secret:"), None)

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
        self._take(charm)
        self._install()
        self.hook("upgrade-charm")
        self.hook("config-changed")

    def retry(self) -> None:
        """`juju resolve`: run the hook that failed again."""
        if self.failed_hook is None:
            raise TestbedError(f"{self.name} is not in an error state")
        hook, extra = self.failed_hook
        self.failed_hook = None
        self.hook(hook, **extra)

    def remove(self, order: Sequence[str] = ("departed", "broken", "stop", "remove")) -> None:
        """`juju remove-relation` or `remove-application`: the last hooks, then the charm's folder goes.

        Args:
            order: the hooks to run; a unit that is forced out or an agent that died gets fewer of them.

        """
        for one in order:
            if one in ("departed", "broken"):
                self._relation_hook(one)
            else:
                self.hook(one)
        self.related = False
        self.machine.run("rm", "-rf", self._folder, self._tools)

    def __str__(self) -> str:
        """The unit's line of `juju status`."""
        status = self.shown
        return f"{self.name}*  {status.name:<9} {self.machine.address}  {status.message}"

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
            return Status("error", f'hook failed: "{self.failed_hook[0]}"')
        return self.status if self.related else Status("unknown", "")

    # What Juju does

    def hook(self, hook: str, **extra: str) -> None:
        """Run a hook.

        Raises:
            HookFailed: its exit code was not 0; the unit is in the error state, and only the same hook runs again.

        """
        if self.failed_hook is not None:
            raise TestbedError(f"{self.name} is in an error state: {self.failed_hook[0]} has to be resolved first")
        done, _ = self._dispatch({"JUJU_HOOK_NAME": hook, "JUJU_DISPATCH_PATH": f"hooks/{hook}", **extra})
        if done.returncode != 0:
            self.failed_hook = (hook, extra)
            last = "\n".join(f"{line.level} {line.message}" for line in self.log[-8:])
            raise HookFailed(f"hook {hook} of {self.name} ended with {done.returncode}\n{done.stderr[-3000:]}\n{last}")

    def _relation_hook(self, kind: str, endpoint: str | None = None) -> None:
        relation = self._relations[endpoint or self.endpoint]
        extra = {
            "JUJU_RELATION": relation.endpoint,
            "JUJU_RELATION_ID": f"{relation.endpoint}:{relation.id}",
            "JUJU_REMOTE_APP": relation.remote.partition("/")[0],
        }
        if kind in ("joined", "changed", "departed"):
            extra["JUJU_REMOTE_UNIT"] = relation.remote
        if kind == "departed":
            extra["JUJU_DEPARTING_UNIT"] = self.name
        self.hook(f"{relation.endpoint}-relation-{kind}", **extra)

    def _dispatch(
        self, extra: Mapping[str, str], action: dict[str, Any] | None = None
    ) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
        """Run the charm's `dispatch` once and take in what it did."""
        what = extra["JUJU_HOOK_NAME"] or extra["JUJU_DISPATCH_PATH"]
        self.hooks.append(what)
        departed = extra.get("JUJU_RELATION") if what.endswith(("-departed", "-broken")) else None
        over = what in ("stop", "remove")
        relations = [
            {
                "id": relation.id,
                "endpoint": relation.endpoint,
                "remote_app": relation.remote.partition("/")[0],
                "remote_units": [] if departed == relation.endpoint else [relation.remote],
                "data": relation.data,
            }
            for relation in self._relations.values()
        ]
        context = {
            "config": self._effective(),
            "leader": True,
            "relations": [] if over or not self.related else relations,
            "status": list(self.status),
            "action": action,
            "address": self.machine.address,
            "resources": {name: self._place(name, content) for name, content in self._resources.items()},
            "secrets": self._secrets,
        }
        self.machine.write(f"{self._tools}/context.json", json.dumps(context), 0o600)
        environment = {
            "APT_LISTCHANGES_FRONTEND": "none",
            "CHARM_DIR": f"{self._folder}/charm",
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
            "JUJU_CONTEXT_ID": f"{self.name}-{what}-{uuid.uuid4().hex[:8]}",
            "JUJU_MACHINE_ID": "0",
            "JUJU_MODEL_NAME": MODEL,
            "JUJU_MODEL_UUID": self._model_uuid,
            "JUJU_PRINCIPAL_UNIT": self.principal,
            "JUJU_UNIT_NAME": self.name,
            "JUJU_VERSION": self.juju_version,
            "LANG": "C.UTF-8",
            "PATH": f"{self._tools}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin",
            "TERM": "tmux-256color",
            **self._proxies,
            **extra,
        }
        words = [f"{name}={value}" for name, value in environment.items()]
        if self._juju_exec:
            lasting = [shlex.quote(f"{name}={value}") for name, value in environment.items() if name not in extra]
            lines = [f"cd {self._folder}/charm", *(f"export {word}" for word in lasting)]
            self.machine.write(f"{self._tools}/environment", "\n".join(lines) + "\n", 0o600)
        command = ["flock", f"{self._tools}/lock", "env", "-i", f"--chdir={self._folder}/charm", *words, "./dispatch"]
        done = self.machine.run(*command, check=False, timeout=HOOK_TIMEOUT)
        effects = self.catch_up(done.returncode == 0)
        for level, text in (("DEBUG", done.stdout), ("WARNING", done.stderr)):
            now = datetime.now(timezone.utc)
            self.log += [LogLine(now, level, line, what) for line in text.splitlines()]
        return done, effects

    def catch_up(self, good: bool = True) -> list[dict[str, Any]]:
        """Take in what has been done on the machine, by hooks that nobody here has run as well.

        Args:
            good: whether the hook ended well; of one that did not, relation data are dropped.

        """
        effects = self._effects()
        for effect in effects:
            if effect["kind"] == "status" and not effect["application"]:
                self.status = Status(effect["status"], effect["message"])
                self.history.append(self.status)
            elif effect["kind"] == "version":
                self.workload_version = effect["version"]
            elif effect["kind"] == "relation-set" and good:
                whose = self.application if effect["app"] else self.name
                (relation,) = [one for one in self._relations.values() if one.id == effect["relation"]]
                said = {**relation.data.get(whose, {}), **effect["values"]}
                relation.data[whose] = {key: value for key, value in said.items() if value}
            elif effect["kind"] == "log":
                at = datetime.fromtimestamp(effect["at"], timezone.utc)
                self.log.append(LogLine(at, effect["level"], effect["message"]))
        return effects

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
            f"exec 9>{self._tools}/lock; flock 9; test ! -e {path} || {{ cat {path}; rm {path}; }}"
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
            machine.write("/usr/bin/juju-exec", JUJU_EXEC, 0o755)
        machine.shell("\n".join(f"ln -sf hook-tool {self._tools}/{tool}" for tool in hook_tools.TOOLS))

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
