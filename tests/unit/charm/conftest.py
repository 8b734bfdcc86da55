"""A machine for the charm to work on: a temporary root, commands that record, stand-ins for what runs beside it.

The charm's modules run for real on it. Not real are: systemd (a script that remembers what was started), the
authenticator (its command line is a script that knows the contract; its private listener answers from the files that
the charm wrote, while its unit is "started"), Keystone's version document, and the wiring, which has its own tests.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ops.testing
import pytest
import yaml

import apiserver
import authenticator
import charm
import config
import files
import host
import upstream
from testbed.processes import free_port

PROJECT = Path(__file__).resolve().parents[3]

SYSTEMCTL = """#!/bin/sh
# A systemd that remembers: one file for each active unit, one line for each call.
echo "$*" >> "$MACHINE/calls"
command=$1; shift
[ -e "$MACHINE/broken-$command" ] && { cat "$MACHINE/broken-$command" >&2; exit 1; }
for unit in "$@"; do case $unit in
    --*) [ "$unit" = --now ] && now=1 ;;
    *) case $command in
        is-active) [ -e "$MACHINE/active/$unit" ] && echo active || { echo inactive; exit 3; } ;;
        start|restart) touch "$MACHINE/active/$unit" ;;
        stop) rm -f "$MACHINE/active/$unit" ;;
        disable) [ -n "$now" ] && rm -f "$MACHINE/active/$unit" ;;
        esac ;;
esac; done
exit 0
"""

PROGRAM = """#!{python} -IS
import json, sys
command = sys.argv[1]
if command == "validate-policy":
    text = sys.stdin.read()
    if not text.startswith("["):
        sys.path.append("{packages}")
        import yaml
    try:
        items = json.loads(text) if text.startswith("[") else yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = error.problem_mark.line + 1
        items, errors = None, [dict(line=line, reason="is not YAML")]
    else:
        errors = [dict(item=n, line=n, key="match", reason="is missing")
                  for n, item in enumerate(items, 1) if "match" not in item]
    warnings = [dict(item=1, line=1, key=None, reason="no one can reach this")] * text.count("warn")
    print(json.dumps(dict(valid=not errors, rules=len(items or []), errors=errors, warnings=warnings,
                          policy=None if errors else items)))
    sys.exit(1 if errors else 0)
if command == "identify":
    token = sys.stdin.read()
    seen = str(token in str(sys.argv))
    print(json.dumps(dict(verdict="refused", reason=" ".join(["over:", str(len(token)), token, seen]))))
if command == "validate-sync":
    text = sys.stdin.read()
    errors = [dict(line=2, key="data-types-to-sync", reason="is bad")] * text.count("bad")
    print(json.dumps(dict(valid=not errors, errors=errors, warnings=[])))
    sys.exit(1 if errors else 0)
if command == "validate-credentials":
    if "password" not in sys.stdin.read():
        print("keystone-authenticator: there is no password", file=sys.stderr)
        sys.exit(2)
if command == "sync":
    with open(sys.argv[sys.argv.index("--report") + 1], "w") as report:
        report.write("what\\n")
    with open(sys.argv[sys.argv.index("--config") + 1]) as settings:
        prune = json.load(settings)["sync"]["prune"]
    error = "Keystone is away" if prune == "all" else None
    print(json.dumps(dict(dry_run="--dry-run" in sys.argv, projects=2, users=3, assignments=4,
                          changes={"create Namespace": 2}, problems=1, first_problems=["RoleBinding a/b: because"],
                          keystone_calls=5, kubernetes_calls=6, seconds=0.5, error=error)))
    sys.exit(1 if error else 0)
if command == "explain":
    request = json.load(sys.stdin)
    allowed = "member" in request["roles"]
    misses = [] if allowed else [dict(item=n, reason=json.dumps(request, sort_keys=True)) for n in range(1, 61)]
    print(json.dumps(dict(allowed=allowed, item=1 if allowed else None, reason="because", misses=misses)))
"""


class _Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass

    def reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@dataclass
class Machine:
    """What a test can see and break."""

    folder: Path
    places: files.Places
    private_port: int
    endpoint_port: int
    users: set[str] = field(default_factory=set)
    refuses: dict[str, str] = field(default_factory=dict)
    chain_state: str = "ready"
    outage: str | None = None
    chain_outage: str | None = None
    says: dict[str, Any] = field(default_factory=dict)  # of what it reads and writes in the cluster

    @property
    def calls(self) -> list[str]:
        """What systemctl was asked for, questions left out."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if not line.startswith("is-active")]

    def forget_calls(self) -> None:
        (self.folder / "calls").write_text("")

    def active(self, unit: str) -> bool:
        return (self.folder / "active" / unit).exists()

    def crash(self) -> None:
        """Have the service give up for good, as after its start limit; it takes the socket with it."""
        for unit in (authenticator.SERVICE, authenticator.SOCKET):
            (self.folder / "active" / unit).unlink()
        wait_for(lambda: not _listens(self.private_port))

    def break_systemctl(self, command: str, message: str) -> None:
        (self.folder / f"broken-{command}").write_text(message)

    def settings(self) -> dict:
        return json.loads(self.places.settings.read_text())

    def snapshot(self) -> dict[str, str]:
        """All files below the root with a hash of their content and when they were written."""
        return {
            str(path.relative_to(self.places.root)): f"{_hash(path)} {path.lstat().st_mtime_ns}"
            for path in sorted(self.places.root.rglob("*"))
            if path.is_file()
        }

    def status(self) -> dict:
        def part(name: str, path: Path | None) -> dict:
            return {"hash": _hash(path) if path else None, "error": self.refuses.get(name)}

        settings = self.settings()
        policy = Path(settings["policy"]) if settings["policy"] else None
        rules = len(json.loads(policy.read_text())) if policy else 0
        return {
            "version": "1.2.3",
            "policy": {
                **part("policy", policy),
                "rules": rules,
                "loaded": "2026-01-01T00:00:00Z",
                "load_ms": 1.0,
                **{key: value for key, value in self.says.items() if key != "sync"},
            },
            "sync": self.says.get("sync"),
            "settings": part("settings", self.places.settings),
            "chained": {"state": self.chain_state, "hash": None, "error": None, "outage": self.chain_outage},
            "tls": part("tls", Path(settings["tls"]["certificate"])),
            "keystone": {"outage": self.outage},
        }


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    folder, root, charm_folder = tmp_path / "machine", tmp_path / "root", tmp_path / "charm"
    for path in (folder / "bin", folder / "active", root / "etc/systemd/system", charm_folder):
        path.mkdir(parents=True)
    (charm_folder / "templates").symlink_to(PROJECT / "templates")
    (charm_folder / "src/kubectl_keystone_auth").mkdir(parents=True)
    (charm_folder / "src/kubectl_keystone_auth/logins").symlink_to(PROJECT / "src/kubectl_keystone_auth/logins")
    ship(charm_folder, "1.2.3")
    for name, text in (("systemctl", SYSTEMCTL), ("journalctl", "#!/bin/sh\necho Boom: no such thing\n")):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("MACHINE", str(folder))
    made = Machine(folder, files.Places(root, charm_folder), free_port(), free_port())
    monkeypatch.setattr(os, "fsync", lambda _: None)  # a temporary root survives no power cut, and need not
    monkeypatch.setattr(host, "ensure_user", made.users.add)
    monkeypatch.setattr(host, "remove_user", made.users.discard)
    monkeypatch.setattr(host, "group_id", lambda _: os.getegid())
    monkeypatch.setattr(authenticator, "PRIVATE_PORT", made.private_port)
    monkeypatch.setattr(authenticator, "HEALTH_SECONDS", 0.8)
    monkeypatch.setattr(upstream, "START_SECONDS", 0.5)
    monkeypatch.setattr(config, "DEFAULT_ENDPOINT", f"https://127.0.0.1:{made.endpoint_port}/webhook")
    monkeypatch.setattr(charm.KubernetesKeystoneCharm, "places", made.places)
    with PrivateListener(made):
        yield made


def ship(charm_folder: Path, version: str) -> None:
    """Put an authenticator into a charm's folder, as the pack does."""
    package = charm_folder / "authenticator/lib/keystone_authenticator"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(f'__version__ = "{version}"\n')
    launcher = charm_folder / "authenticator/keystone-authenticator"
    launcher.write_text(
        PROGRAM.replace("{python}", sys.executable).replace("{packages}", str(Path(yaml.__file__).parents[1]))
    )
    launcher.chmod(0o755)


class PrivateListener:
    """Listens while the service's unit is active, as the authenticator would."""

    def __init__(self, machine: Machine):
        self._machine = machine
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        machine = self._machine

        class Handler(_Quiet):
            def do_GET(self) -> None:
                self.reply(200, json.dumps(machine.status()).encode() if self.path == "/status" else b"ok")

        server: http.server.ThreadingHTTPServer | None = None
        while not self._over.wait(0.01):
            active = machine.active(authenticator.SERVICE)
            if active and server is None:
                server = http.server.ThreadingHTTPServer(("127.0.0.1", machine.private_port), Handler)
                threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            elif not active and server is not None:
                server.shutdown()
                server.server_close()
                server = None
        if server is not None:
            server.shutdown()
            server.server_close()


@pytest.fixture(scope="session")
def keystone_url() -> Iterator[str]:
    """A version document of the identity API, on loopback."""

    class Handler(_Quiet):
        def do_GET(self) -> None:
            body = json.dumps({"version": {"id": "v3.14", "status": "stable"}}).encode()
            self.reply(200 if self.path == "/v3" else 404, body if self.path == "/v3" else b"{}")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v3"
    server.shutdown()
    server.server_close()


@dataclass(frozen=True)
class FakeLayout:
    """A layout as the charm sees it."""

    place: apiserver.Place
    name: str = "charmed"
    service: str = "snap.kube-apiserver.daemon.service"

    @property
    def config_folder(self) -> Path:
        return self.place.root / "var/snap/kube-apiserver/common/kubernetes-keystone"

    @property
    def admin_kubeconfig(self) -> Path:
        return self.place.root / "root/.kube/config"


@dataclass
class FakeWiring:
    """The wiring, remembering what it was asked for; what it should raise can be set."""

    layout: FakeLayout
    machine: Machine
    desired: apiserver.Desired | None = None
    restarts: int = 0
    announced: list[str] = field(default_factory=list)
    raises: dict[str, Exception] = field(default_factory=dict)
    kind: apiserver.Kind | None = None
    on_apply: Callable[[], None] = lambda: None
    order: list[str] = field(default_factory=list)
    probe: Callable[[], None] | None = None
    run_probe: bool = False
    asked_already: apiserver.Asked = field(default_factory=apiserver.Asked)
    by_hand: list[apiserver.byhand.Server] = field(default_factory=list)
    by_hand_kubeconfigs: list[bytes] = field(default_factory=list)
    displaced: bool = False
    structured: str = ""
    over: apiserver.Conversion | None = None

    def _step(self, name: str) -> None:
        self.order.append(name)
        if name in self.raises:
            raise self.raises[name]

    def detect(self, choice: str, place: apiserver.Place) -> FakeLayout:
        assert choice in {"auto", "charmed"}
        assert place == self.layout.place
        self._step("detect")
        return self.layout

    def evidence(self, layout: FakeLayout) -> str:
        return f"{layout.service} with its flags"

    def asked(self, _: FakeLayout, url: str) -> apiserver.Asked:
        assert url.endswith("/webhook")
        return self.asked_already

    def look(
        self, place: apiserver.Place, endpoint: apiserver.byhand.Endpoint, authorization: bool
    ) -> tuple[apiserver.byhand.Server, ...]:
        assert place == self.layout.place
        assert endpoint.ca != endpoint.client
        assert isinstance(authorization, bool)
        return tuple(self.by_hand)

    def keep_displaced(self, place: apiserver.Place, endpoint: apiserver.byhand.Endpoint) -> bool:
        assert place == self.layout.place
        assert endpoint.url.endswith("/webhook")
        return self.displaced

    def authorization_config(self, _: FakeLayout) -> str:
        return self.structured

    def way_over(self, _: FakeLayout) -> apiserver.Conversion | None:
        return self.over

    def wired(self, _: apiserver.Place) -> FakeLayout | None:
        return self.layout if self.desired else None

    def check(self, _: FakeLayout, authorization: bool) -> None:
        assert isinstance(authorization, bool)
        self._step("check")

    def chain(self, _: FakeLayout) -> None:
        self._step("chain")

    def apply(self, _: FakeLayout, desired: apiserver.Desired, probe: Callable[[], None], announce: Callable) -> bool:
        self._step("apply")
        self.probe = probe
        if self.desired == desired:
            return False
        assert self.machine.active(authenticator.SERVICE), "flags must not lead to a service that does not run"
        if self.run_probe:
            probe()
        announce("restarting the API server with Keystone's flags")
        self.desired, self.restarts = desired, self.restarts + 1
        return True

    def remove(self, _: FakeLayout, announce: Callable) -> bool:
        self._step("remove")
        assert self.machine.active(authenticator.SERVICE), "the service must not go before the flags that lead to it"
        announce("restarting the API server without Keystone's flags")
        self.desired, self.restarts = None, self.restarts + 1
        return True

    def knows(self, _: FakeLayout) -> tuple[apiserver.Knows, ...] | None:
        return tuple(map(apiserver.Knows.of, self.desired.files.values())) or None if self.desired else None

    def state(self, _: FakeLayout) -> apiserver.State:
        kind = self.kind or (apiserver.Kind.IN_FORCE if self.desired else apiserver.Kind.ABSENT)
        return apiserver.State(kind, "" if self.kind is None else "so said the wiring")


@pytest.fixture
def wiring(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> FakeWiring:
    fake = FakeWiring(FakeLayout(apiserver.Place(root=machine.places.root, unit="kubernetes-keystone/0")), machine)
    for name in (
        "authorization_config",
        "way_over",
        "detect",
        "evidence",
        "asked",
        "wired",
        "check",
        "chain",
        "apply",
        "remove",
        "knows",
        "state",
    ):
        monkeypatch.setattr(apiserver, name, getattr(fake, name))
    for name in ("look", "keep_displaced"):
        monkeypatch.setattr(apiserver.byhand, name, getattr(fake, name))
    monkeypatch.setattr(apiserver.byhand, "knows", lambda *_: tuple(map(apiserver.Knows.of, fake.by_hand_kubeconfigs)))
    monkeypatch.setattr("apiserver.process.servers", lambda: iter(()))  # not those of other tests on this machine
    return fake


@dataclass
class Unit:
    """The charm's unit as Juju drives it; state is carried from event to event."""

    context: ops.testing.Context
    state: ops.testing.State
    relation: ops.testing.SubordinateRelation

    def configure(self, **options: str | int | bool) -> Unit:
        new = {**self.state.config, **{name.replace("_", "-"): value for name, value in options.items()}}
        self.state = _replace(self.state, config=new)
        return self

    def run(self, event: str = "config_changed") -> ops.StatusBase:
        """Run an event and give the status after it."""
        names = {"relation_created", "relation_joined", "relation_changed", "relation_broken"}
        on = self.context.on
        made = getattr(on, event)(self.relation) if event in names else getattr(on, event)()
        self.state = self.context.run(made, self.state)
        return ops.StatusBase.from_name(self.state.unit_status.name, self.state.unit_status.message)

    def attach(self, path: Path | None) -> Unit:
        """Have Juju hold this as the resource; None: nobody ever gave it one."""
        attached = {ops.testing.Resource(name="k8s-keystone-auth", path=path)} if path else set()
        self.state = _replace(self.state, resources=attached)
        return self

    def unrelate(self) -> Unit:
        self.state = _replace(self.state, relations=frozenset())
        return self

    def action(self, name: str, **parameters: str) -> dict:
        params = {key.replace("_", "-"): value for key, value in parameters.items()}
        self.state = self.context.run(self.context.on.action(name, params=params), self.state)
        return dict(self.context.action_results or {})

    @property
    def history(self) -> list[str]:
        return [status.message for status in self.context.unit_status_history]

    @property
    def log(self) -> str:
        return "\n".join(line.message for line in self.context.juju_log)


def _replace(state: ops.testing.State, **changes: object) -> ops.testing.State:
    import dataclasses

    return dataclasses.replace(state, **changes)


@pytest.fixture
def unit(machine: Machine, wiring: FakeWiring, keystone_url: str) -> Unit:
    """A related unit with a Keystone that answers."""
    relation = ops.testing.SubordinateRelation("kubernetes-master", interface="juju-info")
    empty = machine.folder / "empty"
    empty.touch()
    attached = ops.testing.Resource(name="k8s-keystone-auth", path=empty)
    state = ops.testing.State(relations={relation}, config={"keystone-url": keystone_url}, resources={attached})
    return Unit(ops.testing.Context(charm.KubernetesKeystoneCharm, **_spec()), state, relation)


@functools.cache
def _spec() -> dict[str, Any]:
    """What the charm is, read once and without its descriptions: Scenario writes it anew for every event."""
    spec = {name: yaml.safe_load((PROJECT / f"{name}.yaml").read_text()) for name in ("metadata", "config", "actions")}
    for option in spec["config"]["options"].values():
        del option["description"]
    for action in spec["actions"].values():
        for described in (action, *action.get("params", {}).values()):
            del described["description"]
    return {"meta": spec["metadata"], "config": spec["config"], "actions": spec["actions"]}


def wait_for(what: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)
