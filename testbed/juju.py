"""The stand-in's `juju`: an operator's command lines, taken as they stand in the documentation, for one model.

In the model are a control plane on its machines, Keystone, and this charm once it is deployed. Options, output and exit
codes follow Juju's command-line reference as far as they are used here; what is not known is refused, never ignored. A
command returns when the hooks that it leads to have run. Not here: what a unit does then (agent.py), and the program
`juju` for a shell (shell.py).
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import yaml

from testbed import setup
from testbed.agent import MODEL, Unit, secret_id
from testbed.cache import TestbedError
from testbed.cluster import Cluster
from testbed.keystone import Keystone

# The applications that a control plane may be, by layout. Charmed Kubernetes' has had two names, and goes by the one
# that it is called by first. What it is beside kubeadm is anybody's choice: it goes by the name in the documentation.
CONTROL_PLANES = {
    "charmed": ("kubernetes-master", "kubernetes-control-plane"),
    "static-pod": ("kubernetes-control-plane",),
    "canonical": ("k8s",),
    "microk8s": ("microk8s",),
}
RUNNING = "Kubernetes control-plane running."


class Answer(NamedTuple):
    """How a command ended."""

    code: int
    output: str
    errors: str


class Refused(TestbedError):
    """A command that Juju would not take, in its words where they are known."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, command: str, *positionals: str, **options: dict[str, Any]) -> None:
        super().__init__(prog=f"juju {command}", add_help=False, allow_abbrev=False, exit_on_error=False)
        for name in positionals:
            self.add_argument(name.rstrip("?*+"), nargs=name[-1] if name[-1] in "?*+" else None)
        self.add_argument("-m", "--model", default=MODEL)
        for name, settings in options.items():
            self.add_argument(f"--{name.replace('_', '-')}", **settings)

    def error(self, message: str) -> NoReturn:
        raise Refused(f"{self.prog}: {message}")


MANY = {"action": "append", "default": []}
SWITCH = {"action": "store_true"}
TEXT = {"default": ""}


class Juju:
    """The model, and its operator's commands.

    Args:
        units: of this charm, in order: one for each machine of the control plane.
        charm: what `kubernetes-keystone` from Charmhub is.
        clusters: the control plane's machines, in the same order; none where nobody configures it.
        keystone: what `keystone` is.
        machines: how many of them are in the model from the beginning; `add-unit` takes another one.

    """

    def __init__(
        self,
        units: Sequence[Unit],
        charm: Path,
        clusters: Sequence[Cluster] = (),
        keystone: Keystone | None = None,
        machines: int | None = None,
    ) -> None:
        self._all, self._clusters, self._keystone = list(units), list(clusters), keystone
        self._machines = len(units) if machines is None else machines
        self._packed = charm
        self.application = units[0].application
        self.control_plane = units[0].principal.partition("/")[0]
        names = CONTROL_PLANES.get(clusters[0].layout, ()) if clusters else ()
        self._names = names or (self.control_plane,)
        if self.control_plane not in self._names:
            self._call_control_plane(self._names[0])
        self._charm: Path | None = None
        self._settings: dict[str, Any] = {}
        self._options: dict[str, str] = {}
        self._related: set[str] = set()
        self._secrets: dict[str, tuple[str, dict[str, str]]] = {}
        self._tasks = 0

    @property
    def units(self) -> list[Unit]:
        """The units whose machines are in the model."""
        return self._all[: self._machines]

    def __call__(self, line: str, folder: Path | None = None) -> str:
        """Run a command line, without its `juju`, and give what it prints.

        Raises:
            TestbedError: it did not end well.

        """
        answer = self.run(shlex.split(line), folder)
        if answer.code:
            raise TestbedError(f"juju {line}: {answer.errors.strip()}")
        return answer.output

    def run(self, arguments: Sequence[str], folder: Path | None = None) -> Answer:
        """Run a command.

        Args:
            arguments: of `juju`.
            folder: where relative paths begin; otherwise the current one.

        """
        self._folder = folder or Path.cwd()
        self._output: list[str] = []
        self._errors: list[str] = []
        code = 0
        try:
            if not arguments:
                raise Refused("which command?")
            command, *rest = arguments
            method: Callable[[list[str]], int | None] | None = COMMANDS.get(command, _unknown).__get__(self)
            assert method is not None
            code = method(rest if command in COMMANDS else [command]) or 0
        except (TestbedError, argparse.ArgumentError, OSError) as error:
            self._errors.append(f"ERROR {error}")
            code = 1
        return Answer(code, _lines(self._output), _lines(self._errors))

    # What there is

    def _call_control_plane(self, name: str) -> None:
        self.control_plane = name
        for unit in self._all:
            unit.principal = f"{name}/{unit.principal.partition('/')[2]}"

    def _is_control_plane(self, name: str) -> bool:
        if name != self.control_plane and name in self._names and not self._related:
            self._call_control_plane(name)
        return name == self.control_plane

    def _ours(self, name: str) -> Path:
        """Insist on this charm's application, and give the charm."""
        if name != self.application or self._charm is None:
            raise Refused(f'application "{name}" not found')
        return self._charm

    def _unit(self, name: str) -> Unit:
        application, _, number = name.partition("/")
        if application == self.application:
            self._ours(application)
        elif not self._is_control_plane(application):
            raise Refused(f'application "{application}" not found')
        if number == "leader":
            return self.units[0]
        for unit in self.units:
            if unit.name.partition("/")[2] == number and (application != self.application or unit.related):
                return unit
        raise Refused(f'unit "{name}" not found')

    def _each(self, what: Callable[[Unit], object]) -> None:
        """Do something on all units at once, as their agents do; the first that went wrong is told."""
        with ThreadPoolExecutor(len(self.units)) as pool:
            outcomes = [pool.submit(what, unit) for unit in self.units]
        for outcome in outcomes:
            outcome.result()

    def _read(self, value: str) -> str:
        """Give what `@file` stands for."""
        return (self._folder / value[1:]).read_text() if value.startswith("@") else value

    def _typed(self, options: Mapping[str, str]) -> dict[str, Any]:
        """Give values of the kinds that the charm declares."""
        assert self._charm is not None
        declared = _declared(self._charm, "config.yaml").get("options", {})
        typed: dict[str, Any] = {}
        for name, text in options.items():
            if name not in declared:
                raise Refused(f'unknown option "{name}"')
            kind = declared[name]["type"]
            value = text if kind == "string" else yaml.safe_load(text)
            typed[name] = value
        return typed

    # Commands

    def _deploy(self, words: list[str]) -> None:
        ignored = dict.fromkeys(("channel", "revision", "base", "constraints"), TEXT)
        parser = _Parser("deploy", "charm", "name?", config=MANY, resource=MANY, trust=SWITCH, **ignored)
        asked = parser.parse_args(words)
        name = asked.name or self.application
        path = self._folder / asked.charm
        if asked.charm == "kubernetes-keystone":
            charm = self._packed
        elif asked.charm.endswith(".charm") and path.is_file():
            charm = path
        else:
            raise Refused(f"no charm {asked.charm} here: kubernetes-keystone, or the file of a packed one")
        if name != self.application:
            raise Refused(f'the application can be called "{self.application}" alone here')
        if self._charm is not None:
            raise Refused(f'cannot add application "{name}": application "{name}" already exists')
        self._charm = charm
        try:
            settings: dict[str, Any] = {}
            for word in asked.config:
                if "=" in word:
                    settings |= self._typed({word.partition("=")[0]: self._read(word.partition("=")[2])})
                else:
                    settings |= yaml.safe_load((self._folder / word).read_text())[name]
            for unit in self._all:
                unit.deploy(charm, settings)
        except Exception:
            self._charm = None
            raise
        self._settings = settings
        for word in asked.resource:
            self._attach(word)
        self._errors.append(
            f'Deploying "{name}" from {"charm-hub" if charm is self._packed else "local"} charm "{name}"'
        )

    def _endpoints(self, command: str, words: list[str]) -> str:
        """Give the other application of an integration with this charm's."""
        asked = _Parser(command, "one", "other").parse_args(words)
        named = dict(one.partition(":")[::2] for one in (asked.one, asked.other))
        ours = named.pop(self.application, None)
        if ours is None or len(named) != 1:
            raise Refused(f"{asked.one} and {asked.other}: one of them has to be {self.application}")
        self._ours(self.application)
        ((other, theirs),) = named.items()
        wanted = None
        if self._is_control_plane(other):
            wanted = ("kubernetes-master", "juju-info")
        elif other == "keystone" and self._keystone is not None:
            wanted = ("keystone-credentials", "identity-credentials")
        if wanted is None:
            raise Refused(f'application "{other}" not found')
        if ours not in ("", wanted[0]) or theirs not in ("", wanted[1]):
            raise Refused(f"no relations found: {self.application} and {other} have {wanted[0]} and {wanted[1]} for it")
        return other

    def _integrate(self, words: list[str]) -> None:
        other = self._endpoints("integrate", words)
        if other in self._related:
            raise Refused(f"cannot add relation: relation of {other} and {self.application} already exists")
        self._related.add(other)
        if other == "keystone":
            self._each(self._hear_keystone)
        else:
            self._each(lambda unit: unit.relate())

    def _hear_keystone(self, unit: Unit) -> None:
        if unit.related:
            assert self._keystone is not None
            unit.integrate("keystone-credentials", "keystone/0", **_told_by_charm(self._keystone))

    def _remove_relation(self, words: list[str]) -> None:
        words = [word for word in words if word != "--force"]
        if set(words) in self._own_support():
            for cluster in self._clusters:
                cluster.own_keystone = None
                cluster.configure(self._options)
            return
        other = self._endpoints("remove-relation", words)
        if other not in self._related:
            raise Refused(f'relation "{self.application} {other}" not found')
        self._separate(other)

    def _own_support(self) -> list[set[str]]:
        """Give the ways to write the relation of a control plane that has support for Keystone itself, if it has it."""
        if not any(cluster.own_keystone for cluster in self._clusters):
            return []
        return [
            {f"{name}{own}", f"keystone{theirs}"}
            for name in self._names
            for own in ("", ":keystone-credentials")
            for theirs in ("", ":identity-credentials")
        ]

    def _separate(self, other: str) -> None:
        if other == "keystone":
            self._each(lambda unit: unit.separate("keystone-credentials") if unit.related else None)
        else:
            self._each(lambda unit: unit.remove())
        self._related.discard(other)

    def _remove_application(self, words: list[str]) -> None:
        asked = _Parser("remove-application", "name", no_prompt=SWITCH, force=SWITCH).parse_args(words)
        self._ours(asked.name)
        if self.control_plane in self._related:
            self._separate(self.control_plane)
        self._related.clear()
        self._charm, self._settings = None, {}
        self._errors.append(f"will remove application {asked.name}")

    def _add_unit(self, words: list[str]) -> None:
        asked = _Parser("add-unit", "name", num_units={"type": int, "default": 1}).parse_args(
            _long(words, n="num-units")
        )
        if not self._is_control_plane(asked.name):
            raise Refused(f"{asked.name}: only {self.control_plane} has machines")
        if len(self._all) < self._machines + asked.num_units:
            raise Refused(f"the stand-in has {len(self._all)} machines in all, and no further one to give")
        for _ in range(asked.num_units):
            self._machines += 1
            unit = self.units[-1]
            if self._charm is not None:
                unit.deploy(self._charm, self._settings)
            if self.control_plane in self._related:
                unit.relate()
            if "keystone" in self._related:
                self._hear_keystone(unit)

    def _config(self, words: list[str]) -> None:
        parser = _Parser("config", "name", "words*", reset=MANY, file=TEXT, format={"default": "yaml"})
        asked = parser.parse_args(words)
        options = {key: self._read(value) for key, has, value in (one.partition("=") for one in asked.words) if has}
        keys = [one for one in asked.words if "=" not in one]
        reset = [name for one in asked.reset for name in one.split(",")]
        if self._is_control_plane(asked.name):
            self._configure_control_plane(options, keys, reset)
            return
        charm = self._ours(asked.name)
        if asked.file:
            settings = yaml.safe_load((self._folder / asked.file).read_text())[asked.name]
        else:
            settings = self._typed(options)
        if keys:
            self._output.append(str(self._effective(charm).get(keys[0], "")))
        elif settings or reset:
            self._set(settings, reset)
        else:
            shown = {"application": asked.name, "charm": asked.name, "settings": self._effective(charm)}
            self._output.append(json.dumps(shown) if asked.format == "json" else yaml.safe_dump(shown))

    def _set(self, settings: Mapping[str, Any], reset: Iterable[str]) -> None:
        for name in reset:
            self._settings.pop(name, None)
        for unit in self._all[self._machines :]:
            unit.put(**settings)
        self._settings |= settings

        def change(unit: Unit) -> None:
            if settings:
                unit.configure(**settings)
            if reset:
                unit.reset(*reset)

        self._each(change)

    def _effective(self, charm: Path) -> dict[str, Any]:
        declared = _declared(charm, "config.yaml").get("options", {})
        return {name: one["default"] for name, one in declared.items() if "default" in one} | self._settings

    def _configure_control_plane(self, options: Mapping[str, str], keys: Sequence[str], reset: Sequence[str]) -> None:
        if keys:
            self._output.append(self._options.get(keys[0], ""))
            return
        for name in reset:
            self._options.pop(name, None)
        self._options |= options
        for cluster in self._clusters:
            cluster.configure(self._options)

    def _run(self, words: list[str]) -> int:
        known = {"format": {"default": "plain"}, "wait": TEXT, "params": TEXT, "string_args": SWITCH}
        asked, rest = _Parser("run", **known).parse_known_args(words)
        names = [word for word in rest if "/" in word.partition("=")[0]]
        action, *pairs = [word for word in rest if word not in names] or [""]
        if not names or not action or any("=" not in pair for pair in pairs):
            raise Refused("juju run UNIT… ACTION [KEY=VALUE…]")
        params = yaml.safe_load((self._folder / asked.params).read_text()) if asked.params else {}
        for key, _, value in (pair.partition("=") for pair in pairs):
            *outer, last = key.split(".")
            place = params
            for name in outer:
                place = place.setdefault(name, {})
            place[last] = value if asked.string_args else yaml.safe_load(value)
        return self._report(names, asked.format, lambda unit: self._act(unit, action, params))

    def _act(self, unit: Unit, action: str, params: Mapping[str, Any]) -> dict[str, Any]:
        done = unit.run_action(action, **params)
        task: dict[str, Any] = {"results": {**done.results, "return-code": 0}, "status": done.status}
        if done.log:
            task["log"] = done.log
        if done.message:
            task["message"] = done.message
        return task

    def _report(self, names: Sequence[str], form: str, run: Callable[[Unit], dict[str, Any]]) -> int:
        """Run a task on each unit and show them all; gives the exit code."""
        tasks: dict[str, dict[str, Any]] = {}
        for name in names:
            unit = self._unit(name)
            self._tasks += 1
            shown = unit.name if name.startswith(f"{self.application}/") else unit.principal
            tasks[shown] = {"id": str(self._tasks), **run(unit), "unit": shown}
        if form == "json":
            self._output.append(json.dumps(tasks))
        elif form == "yaml":
            self._output.append(yaml.safe_dump(tasks, sort_keys=False))
        else:
            for name, task in tasks.items():
                results = {key: value for key, value in task["results"].items() if key != "return-code"}
                told = "".join(str(results.pop(key, "")) for key in ("stdout", "stderr"))
                self._errors += task.get("log", [])
                head = [f"{name}:"] if len(tasks) > 1 else []
                self._output += [*head, told, yaml.safe_dump(results, sort_keys=False) if results else ""]
                if task["status"] == "failed":
                    self._errors.append(f"Action id {task['id']} failed: {task.get('message', '')}")
        codes = [task["results"].get("return-code", 0) or (task["status"] == "failed") for task in tasks.values()]
        if any(codes):
            self._errors.append(f"ERROR the following task{'s' * (len(codes) > 1)} failed")
        return next((int(code) for code in codes if code), 0)

    def _exec(self, words: list[str]) -> int:
        options, _, command = _split(words, "--")
        known = {"unit": MANY, "application": MANY, "format": {"default": "plain"}, "wait": TEXT}
        asked, rest = _Parser("exec", **known).parse_known_args(_long(options, u="unit", a="application"))
        names = [name for one in asked.unit for name in one.split(",")]
        for application in asked.application:
            names += [f"{application}/{unit.name.partition('/')[2]}" for unit in self.units]
        line = " ".join([*rest, *command])
        if not names or not line:
            raise Refused("juju exec --unit UNIT -- COMMAND")

        def run(unit: Unit) -> dict[str, Any]:
            done: subprocess.CompletedProcess[str] = unit.machine.run("sh", "-c", line, check=False)
            told = {"return-code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}
            return {"results": {key: value for key, value in told.items() if value != ""}, "status": "completed"}

        return self._report(names, asked.format, run)

    def _ssh(self, words: list[str]) -> int:
        asked, command = _Parser("ssh", "unit").parse_known_args(words)
        if not command:
            raise Refused("juju ssh UNIT COMMAND; a terminal is not given here")
        # Whoever comes is root already.
        line = 'sudo() { "$@"; }\n' + " ".join(command)
        done = self._unit(asked.unit).machine.run("sh", "-c", line, check=False)
        self._output.append(done.stdout)
        self._errors.append(done.stderr)
        return done.returncode

    def _scp(self, words: list[str]) -> None:
        asked = _Parser("scp", "source", "target").parse_args(words)
        (there, path), (here, other) = (_place(one) for one in (asked.source, asked.target))
        if bool(there) == bool(here):
            raise Refused("juju scp: one of the two has to be UNIT:PATH")
        if there:
            target = self._folder / other
            target = target / path.rpartition("/")[2] if target.is_dir() else target
            target.write_bytes(self._unit(there).machine.read(path))
        else:
            self._unit(here).machine.write(other, (self._folder / path).read_bytes(), 0o600)

    def _add_secret(self, words: list[str]) -> None:
        asked = _Parser("add-secret", "name", "pairs+", info=TEXT).parse_args(words)
        if asked.name in self._secrets:
            raise Refused(f'secret with label "{asked.name}" already exists')
        content: dict[str, str] = {}
        for key, has, value in (pair.partition("=") for pair in asked.pairs):
            if not has:
                raise Refused(f"{key}: key=value, or key#file=path")
            name, _, kind = key.partition("#")
            content[name] = (self._folder / value).read_text() if kind == "file" else value
        secret = secret_id()
        self._secrets[asked.name] = (secret, content)
        self._output.append(secret)

    def _grant_secret(self, words: list[str]) -> None:
        asked = _Parser("grant-secret", "name", "application").parse_args(words)
        self._ours(asked.application)
        found = [one for name, one in self._secrets.items() if asked.name in (name, one[0])]
        if not found:
            raise Refused(f'secret "{asked.name}" not found')
        ((secret, content),) = found
        for unit in self._all:
            unit.add_secret(secret, **content)

    def _remove_secret(self, words: list[str]) -> None:
        asked = _Parser("remove-secret", "name").parse_args(words)
        secret, _ = self._secrets.pop(asked.name, ("", {}))
        if not secret:
            raise Refused(f'secret "{asked.name}" not found')
        for unit in self._all:
            unit.remove_secret(secret)

    def _refresh(self, words: list[str]) -> None:
        known = {"path": TEXT, "channel": TEXT, "revision": TEXT, "switch": TEXT, "resource": MANY, "trust": SWITCH}
        asked = _Parser("refresh", "name", force_units=SWITCH, **known).parse_args(words)
        self._ours(asked.name)
        charm = self._folder / asked.path if asked.path else self._packed
        if not charm.is_file():
            raise Refused(f"no such file: {charm}")
        self._charm = charm
        declared = _declared(charm, "config.yaml").get("options", {})
        self._settings = {name: value for name, value in self._settings.items() if name in declared}
        self._each(lambda unit: unit.upgrade(charm) if unit.related else unit.deploy(charm, self._settings))

    def _attach_resource(self, words: list[str]) -> None:
        asked = _Parser("attach-resource", "name", "pair").parse_args(words)
        self._ours(asked.name)
        self._attach(asked.pair)

    def _attach(self, pair: str) -> None:
        name, _, path = pair.partition("=")
        content = (self._folder / path).read_bytes()
        self._each(lambda unit: unit.attach(name, content))

    def _resolved(self, words: list[str]) -> None:
        self._unit(_Parser("resolved", "unit").parse_args(words).unit).retry()

    def _model_config(self, words: list[str]) -> None:
        asked = _Parser("model-config", "pairs+").parse_args(words)
        settings = dict(pair.partition("=")[::2] for pair in asked.pairs)
        known = ("juju-http-proxy", "juju-https-proxy", "juju-no-proxy", "update-status-hook-interval")
        if unknown := sorted(set(settings) - set(known)):
            raise Refused(f"model-config {unknown[0]} means nothing here")
        settings.pop("update-status-hook-interval", None)
        if settings:
            for unit in self._all:
                unit.configure_model(**{name.replace("-", "_"): value for name, value in settings.items()})

    def _debug_log(self, words: list[str]) -> None:
        known = {"replay": SWITCH, "no_tail": SWITCH, "include": MANY, "lines": {"type": int, "default": 10}}
        asked = _Parser("debug-log", **known).parse_args(_long(words, n="lines", i="include"))
        for unit in self.units:
            agent = f"unit-{unit.name.replace('/', '-')}"
            if not asked.include or {unit.name, agent, self.application} & set(asked.include):
                self._output.append(unit.debug_log(10**6 if asked.replay else asked.lines))

    def _status(self, words: list[str]) -> None:
        known = {"format": {"default": "tabular"}, "relations": SWITCH, "integrations": SWITCH}
        asked = _Parser("status", "selectors*", **known).parse_args(words)
        status = self._matching(asked.selectors)
        if asked.format == "json":
            self._output.append(json.dumps(status))
        elif asked.format == "yaml":
            self._output.append(yaml.safe_dump(status, sort_keys=False))
        elif asked.format == "tabular":
            self._output.append(tabular(status))
        else:
            raise Refused(f"juju status --format {asked.format}")

    def _matching(self, selectors: Sequence[str]) -> dict[str, Any]:
        """Give the status of what is asked for; a subordinate is shown beside its principal."""
        status, wanted = self.status(), {one.partition("/")[0] for one in selectors}
        if not wanted:
            return status
        found = {name: one for name, one in status["applications"].items() if name in wanted}
        beside = {name for one in found.values() for name in one.get("subordinate-to", [])}
        shown = {name: one for name, one in status["applications"].items() if name in wanted | beside}
        if not shown:
            self._errors.append("Nothing matched specified filters.")
        return status | {"applications": shown}

    def status(self) -> dict[str, Any]:
        """Give what `juju status --format=json` has; of its fields those that are used."""
        units: dict[str, Any] = {}
        version = {"version": self._all[0].juju_version}
        for number, unit in enumerate(self.units):
            address = {"public-address": unit.machine.address}
            plane = {
                "workload-status": {"current": "active", "message": RUNNING},
                "juju-status": {"current": "idle", **version},
                **({"leader": True} if number == 0 else {}),
                "machine": str(number),
                **address,
            }
            if unit.related:
                shown = unit.shown
                plane["subordinates"] = {
                    unit.name: {
                        "workload-status": {"current": shown.name, "message": shown.message},
                        "juju-status": {"current": "error" if unit.failed_hook else "idle", **version},
                        **({"leader": True} if unit.leader else {}),
                        **address,
                    }
                }
            units[unit.principal] = plane
        applications: dict[str, Any] = {
            self.control_plane: {
                "charm": self.control_plane,
                "application-status": {"current": "active", "message": RUNNING},
                "units": units,
                "version": setup.KUBERNETES_VERSION.lstrip("v"),
            }
        }
        if self._charm is not None:
            shown = max((unit.shown for unit in self.units), key=lambda one: _GRAVITY.get(one.name, 0))
            applications[self.application] = {
                "charm": self.application,
                "application-status": {"current": shown.name, "message": shown.message},
                "subordinate-to": [self.control_plane] if self.control_plane in self._related else [],
                "version": self.units[0].workload_version,
            }
        if self._keystone is not None:
            running = {"current": "active", "message": "Unit is ready"}
            applications["keystone"] = {"charm": "keystone", "application-status": running, "version": ""}
        return {
            "model": {"name": MODEL, "type": "iaas", "controller": "stand-in", **version},
            "machines": {str(number): {"dns-name": unit.machine.address} for number, unit in enumerate(self.units)},
            "applications": applications,
        }

    def _version(self, words: list[str]) -> None:
        _Parser("version").parse_args(words)
        self._output.append(f"{self._all[0].juju_version}-ubuntu-amd64")

    def _whoami(self, words: list[str]) -> None:
        _Parser("whoami").parse_args(words)
        self._output.append(f"Controller:  stand-in\nModel:       admin/{MODEL}\nUser:        admin")


def _unknown(_: Juju, words: list[str]) -> None:
    raise Refused(f"juju {words[0]} is not known here; there are: {', '.join(sorted(COMMANDS))}")


COMMANDS: dict[str, Callable[[Juju, list[str]], int | None]] = {
    "add-relation": Juju._integrate,
    "add-secret": Juju._add_secret,
    "add-unit": Juju._add_unit,
    "attach-resource": Juju._attach_resource,
    "config": Juju._config,
    "debug-log": Juju._debug_log,
    "deploy": Juju._deploy,
    "exec": Juju._exec,
    "grant-secret": Juju._grant_secret,
    "integrate": Juju._integrate,
    "model-config": Juju._model_config,
    "refresh": Juju._refresh,
    "relate": Juju._integrate,
    "remove-application": Juju._remove_application,
    "remove-relation": Juju._remove_relation,
    "remove-secret": Juju._remove_secret,
    "resolve": Juju._resolved,
    "resolved": Juju._resolved,
    "run": Juju._run,
    "scp": Juju._scp,
    "ssh": Juju._ssh,
    "status": Juju._status,
    "version": Juju._version,
    "whoami": Juju._whoami,
}

# Of several units' states an application shows the gravest.
_GRAVITY = {"error": 6, "blocked": 5, "maintenance": 4, "waiting": 3, "active": 2, "terminated": 1}


def tabular(status: Mapping[str, Any]) -> str:
    """Give `juju status` for people, of what it has for programs."""
    applications, units = [], []
    for name, one in status["applications"].items():
        shown = one["application-status"]
        beside = {key: value for other in status["applications"].values() for key, value in _beside(other, name)}
        scale = len(one.get("units") or beside) if name != "keystone" else 1
        applications.append((name, one["version"], shown["current"], str(scale), one["charm"], shown["message"]))
        for unit, about in (one.get("units") or {}).items():
            units.append(_row(unit, about))
            units += [_row(f"  {key}", value) for key, value in (about.get("subordinates") or {}).items()]
    tables = [
        [("App", "Version", "Status", "Scale", "Charm", "Message"), *applications],
        [("Unit", "Workload", "Agent", "Machine", "Public address", "Message"), *units],
    ]
    return "\n\n".join(_table(rows) for rows in tables)


def _beside(application: Mapping[str, Any], name: str) -> Iterable[tuple[str, Any]]:
    for unit in (application.get("units") or {}).values():
        yield from (one for one in (unit.get("subordinates") or {}).items() if one[0].startswith(f"{name}/"))


def _row(name: str, unit: Mapping[str, Any]) -> tuple[str, ...]:
    workload, agent = unit["workload-status"], unit["juju-status"]
    star = "*" if unit.get("leader") else ""
    machine, address = unit.get("machine", ""), unit["public-address"]
    return f"{name}{star}", workload["current"], agent["current"], machine, address, workload["message"]


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _lines(parts: Iterable[str]) -> str:
    return "".join(part if part.endswith("\n") else f"{part}\n" for part in parts if part)


def _long(words: Iterable[str], **names: str) -> list[str]:
    """Write short options long."""
    return [f"--{names[word[1:]]}" if word[:1] == "-" and word[1:] in names else word for word in words]


def _split(words: Sequence[str], at: str) -> tuple[list[str], str, list[str]]:
    place = list(words).index(at) if at in words else len(words)
    return list(words[:place]), at, list(words[place + 1 :])


def _place(text: str) -> tuple[str, str]:
    """Give the unit and the path of `UNIT:PATH`, and of a path here no unit."""
    unit, colon, path = text.partition(":")
    return (unit, path) if colon and "/" in unit and not unit.startswith((".", "/")) else ("", text)


def _declared(charm: Path, name: str) -> dict[str, Any]:
    with zipfile.ZipFile(charm) as archive:
        return yaml.safe_load(archive.read(name)) or {}


def _told_by_charm(keystone: Keystone) -> dict[str, str]:
    """Give what Keystone's own charm says over `identity-credentials`, without the account, which nobody reads."""
    protocol, _, rest = keystone.url.partition("://")
    host, _, port = rest.partition("/")[0].rpartition(":")
    return {
        "credentials_protocol": protocol,
        "credentials_host": host,
        "credentials_port": port,
        "api_version": "3",
        "ca_cert": keystone.ca.read_text(),
    }
