"""A small machine for the wiring's tests: a temporary tree, a systemd of its own, a process that plays the API server.

The script, the drop-in, the units and the package are the real ones. `Systemd` does what systemd does with a service of
Restart=always: it runs ExecStartPre= and ExecStopPost= of the drop-in, restarts after a crash, gives up after five (or
StartLimitBurst=) starts in ten seconds. `systemctl` and `journalctl` on PATH talk to it over a socket.
"""

from __future__ import annotations

import base64
import datetime
import grp
import hashlib
import ipaddress
import json
import os
import random
import re
import shlex
import shutil
import socketserver
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from apiserver import Desired, Flag, Patience, Place, script, wanted
from apiserver.args import BEGIN
from apiserver.canonical import Canonical
from apiserver.charmed import Charmed
from apiserver.microk8s import MicroK8s
from apiserver.model import MANAGED, Layout, UnitLayout
from testbed.processes import free_port

# The tests that kill something at every step try every eighth, each time others; EVERY_STEP=1: all (a few minutes).
STRIDE = 1 if os.environ.get("EVERY_STEP") else 8
FIRST_STEP = -random.randrange(STRIDE)

TOKEN = "admin::cluster-token-0123456789abcdef"
# What is waited for in vain takes all of it; what comes may take its time on a machine that does other things as well.
QUICK = Patience(
    already=4, ready=10, token=0.5, restart=60, removal=1, turn=0.5, turns=5, settled=0, reload=30, between=0.05
)

# The flags as the control-plane charm writes them, in its order.
CHARMED_ARGS = """\
--advertise-address="10.5.0.11"
--min-request-timeout="300"
--tls-cert-file="/root/cdk/server.crt"
--tls-private-key-file="/root/cdk/server.key"
--tls-cipher-suites="TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"
--kubelet-certificate-authority="/root/cdk/ca.crt"
--kubelet-client-certificate="/root/cdk/client.crt"
--kubelet-client-key="/root/cdk/client.key"
--storage-backend="etcd3"
--profiling="false"
--anonymous-auth="false"
--authentication-token-webhook-cache-ttl="1m0s"
--authentication-token-webhook-config-file="{webhook}"
--service-account-issuer="https://kubernetes.default.svc"
--service-account-signing-key-file="/root/cdk/serviceaccount.key"
--service-account-key-file="/root/cdk/serviceaccount.key"
--kubelet-preferred-address-types="InternalIP,Hostname,InternalDNS,ExternalDNS,ExternalIP"
--encryption-provider-config="/var/snap/kube-apiserver/common/encryption/encryption_config.yaml"
--secure-port="{port}"
--allow-privileged="true"
--requestheader-allowed-names="system:kube-apiserver,client"
--feature-gates=""
--authorization-mode="Node,RBAC"
--enable-admission-plugins="PersistentVolumeLabel,NodeRestriction"
--audit-log-path="/root/cdk/audit/audit.log"
"""


# The same as the k8s snap's daemon writes them: sorted, values bare; its charm sorts by name and quotes.
CANONICAL_ARGS = """\
--advertise-address=10.5.0.11
--allow-privileged=true
--anonymous-auth=false
--authentication-token-webhook-config-file={webhook}
--authorization-mode=Node,RBAC
--client-ca-file=/etc/kubernetes/pki/client-ca.crt
--enable-admission-plugins=NodeRestriction
--etcd-servers=https://127.0.0.1:2379
--kubelet-preferred-address-types=InternalIP,Hostname,InternalDNS,ExternalDNS,ExternalIP
--profiling=false
--request-timeout=300s
--secure-port={port}
--service-account-issuer=https://kubernetes.default.svc
--service-account-key-file=/etc/kubernetes/pki/serviceaccount.key
--service-account-signing-key-file=/etc/kubernetes/pki/serviceaccount.key
--service-cluster-ip-range=10.152.183.0/24
--tls-cert-file=/etc/kubernetes/pki/apiserver.crt
--tls-min-version=VersionTLS12
--tls-private-key-file=/etc/kubernetes/pki/apiserver.key
"""

# What MicroK8s comes with, after `microk8s enable rbac`; quotes, comments and variables as in the snap.
MICROK8S_ARGS = """\
--cert-dir=${{SNAP_DATA}}/certs
--service-cluster-ip-range=10.152.183.0/24
--authorization-mode=RBAC,Node
--service-account-key-file=${{SNAP_DATA}}/certs/serviceaccount.key
--client-ca-file=${{SNAP_DATA}}/certs/ca.crt
--tls-cert-file=${{SNAP_DATA}}/certs/server.crt
--tls-private-key-file=${{SNAP_DATA}}/certs/server.key
--secure-port={port}
--etcd-servers="unix://${{SNAP_DATA}}/var/kubernetes/backend/kine.sock:12379"
--allow-privileged=true
--service-account-issuer='https://kubernetes.default.svc'
--event-ttl=5m
--authentication-token-webhook-config-file={webhook}

# Enable the aggregation layer
--requestheader-client-ca-file=${{SNAP_DATA}}/certs/front-proxy-ca.crt
--requestheader-allowed-names=front-proxy-client
#~Enable the aggregation layer
--enable-admission-plugins=EventRateLimit
--admission-control-config-file=${{SNAP_DATA}}/args/admission-control-config-file.yaml
"""

KINDS = ("charmed", "canonical", "canonical-folder", "microk8s")
"""The layouts, and the two places that one of them may have its flags in."""


def desired(layout: Layout, content: str = "kubeconfig", authorization: bool = False) -> Desired:
    """Give the flags that the charm sets, with files of this content."""
    folder = layout.config_folder
    flags = [
        Flag("authentication-token-webhook-config-file", str(folder / "authentication.kubeconfig")),
        Flag("authentication-token-webhook-version", "v1"),
        Flag("authentication-token-webhook-cache-ttl", "10s"),
    ]
    files = {folder / "authentication.kubeconfig": content.encode()}
    if authorization:
        flags += [
            Flag("authorization-mode", "Webhook"),
            Flag("authorization-webhook-config-file", str(folder / "authorization.kubeconfig")),
            Flag("authorization-webhook-version", "v1"),
            Flag("authorization-webhook-cache-authorized-ttl", "5s"),
            Flag("authorization-webhook-cache-unauthorized-ttl", "5s"),
        ]
        files[folder / "authorization.kubeconfig"] = content.encode()
    return Desired(tuple(flags), files)


class Tree:
    """A machine's files below a temporary folder, in one of the layouts."""

    layout: UnitLayout

    def __init__(self, root: Path, kind: str = "charmed", port: int = 6443):
        self.root = root
        self.kind = kind
        self.port = port
        place = Place(root, reader=grp.getgrgid(os.getgid()).gr_name)
        if kind == "charmed":
            self.layout, template = Charmed(place), CHARMED_ARGS
            self.webhook = root / "root/cdk/auth-webhook/auth-webhook-conf.yaml"
            self.ca = root / "root/cdk/ca.crt"
        elif kind == "microk8s":
            self.layout, template = MicroK8s(place), MICROK8S_ARGS
            self.webhook = root / "var/snap/microk8s/current/webhook/a-users-own.yaml"
            self.ca = root / "var/snap/microk8s/current/certs/webhook-ca.crt"
        else:
            self.layout, template = Canonical(place), CANONICAL_ARGS
            self.webhook = root / "var/snap/k8s/common/args/conf.d/auth-token-webhook.conf"
            self.ca = root / "var/snap/k8s/common/var/lib/k8sd/state/cluster.crt"
        self.place = place
        self.args_file = self.layout.args_file
        if kind == "canonical-folder":
            assert self.layout.args_folder
            self.args_file = self.layout.args_folder / MANAGED
        for folder in (
            self.args_file.parent,
            self.ca.parent,
            self.layout.args_file.parent,
            self.layout.config_folder,
            self.place.chain_file.parent,
            self.place.unit_folder,
            self.place.script.parent,
            self.place.state_folder,
            self.webhook.parent,
        ):
            folder.mkdir(parents=True, exist_ok=True)
        self.ca.write_text("the cluster's CA\n")
        self.webhook.write_text(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: authn\n  cluster:\n"
            f"    certificate-authority: {self.ca}\n    server: https://127.0.0.1:5000/v1\n"
        )
        (self.place.unit_folder / self.layout.service).write_text("[Service]\n")
        named = str(self.webhook).replace(str(self.layout.working_folder), "${SNAP_DATA}")
        self.args = template.format(webhook=named, port=port)

    # -- the args file

    @property
    def args(self) -> str:
        """What its owners have written into it (and we, where our flags go among theirs)."""
        return self.args_file.read_bytes().decode()

    @args.setter
    def args(self, text: str) -> None:
        self.args_file.write_bytes(text.encode())

    @property
    def own_file(self) -> Path | None:
        """Where a start puts our flags; None where it is among others'."""
        return script.own_file(self.layout) if self.kind == "canonical-folder" else None

    @property
    def next_start(self) -> str:
        """All flags that the next start reads."""
        own = self.own_file
        return self.args + ("\n" + own.read_text() if own and own.exists() else "")

    @property
    def wired(self) -> bool:
        return str(self.layout.config_folder) in self.next_start

    # -- what is desired

    def desired(self, content: str = "kubeconfig", authorization: bool = False) -> Desired:
        return desired(self.layout, content, authorization)

    def want(
        self, stage: str = "confirmed", starts: int = 3, authorization: bool = False, **changes: str
    ) -> wanted.Wanted:
        """Write `wanted`, and the files that it names, as the charm does."""
        desired = self.desired(authorization=authorization)
        for path, content in desired.files.items():
            path.write_bytes(content)
        trial = wanted.Wanted.trial(self.layout, desired)
        found = wanted.Wanted(
            wanted.Stage(stage),
            starts,
            trial.digest,
            trial.files,
            trial.lines,
            life=changes.get("life", "-"),
            retry=changes.get("retry", "-"),
        )
        wanted.write(self.place, found)
        return found

    @property
    def wanted(self) -> wanted.Wanted:
        found = wanted.read(self.place)
        assert found is not None
        return found

    # -- the script

    def install_script(self) -> None:
        script.install_script(self.layout)

    def script(self, mode: str, shell: str = "/bin/sh", **env: str) -> subprocess.CompletedProcess[str]:
        """Run the real script, without its outer bound so that its own exit status can be seen."""
        self.install_script()
        return subprocess.run(
            [*shell.split(), str(self.place.script), mode, "bounded"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={**os.environ, **env},
        )

    def chained(self) -> list[list[str]]:
        """The chain file's records, their base64 decoded."""
        records = []
        for line in self.place.chain_file.read_text().splitlines():
            kind, _, rest = line.partition(" ")
            if kind in ("kubeconfig", "file"):
                content, _, path = rest.partition(" ")
                records.append([kind, base64.b64decode(content, validate=True).decode(), path])
            else:
                records.append([kind, rest] if rest else [kind])
        return records

    def snapshot(self) -> dict[str, tuple[str, int, str]]:
        """Every file and folder with kind, mode and checksum, for "as it was"."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            info = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[str(path.relative_to(self.root))] = ("file" if content else "folder", info.st_mode, content)
        return found


_WEBHOOK = re.compile(r"(--(?:authentication-token|authorization)-webhook-config-file)=[\"']?(.*)")
_PLAIN = re.compile(
    r"--authorization-mode=[\"']?Webhook[\"']?\r?$"
    r"|--(authentication-token|authorization)-webhook-(version|cache-([a-z]+-)?ttl)="
)


def others(text: str, folder: Path) -> str:
    """The script's rule for a block once more: the text of an args file without it."""
    lines = text.split("\n")
    ended = lines[-1] == ""
    if ended:
        lines.pop()

    def ours(index: int) -> tuple[str, str] | None:
        match = _WEBHOOK.match(lines[index])
        return (match[1], match[2]) if match and match[2].startswith(f"{folder}/") else None

    dropped: set[int] = set()
    joined = -1
    for index in range(len(lines)):
        found = ours(index)
        if found is None:
            continue
        dropped.add(index)
        name, value = found
        if not value.startswith(f"{folder}/{BEGIN}"):
            continue
        if value.startswith(f"{folder}/{BEGIN}-joined"):
            joined = index
        end = next((i for i in range(index + 1, len(lines)) if (ours(i) or ("",))[0] == name), len(lines))
        for inside in range(index + 1, end):
            if _PLAIN.match(lines[inside]):
                dropped.add(inside)
            elif end == len(lines) and ours(inside) is None:
                break
    kept = [index for index in range(len(lines)) if index not in dropped]
    if not kept:
        return ""
    closed = not ((kept[-1] == len(lines) - 1 and not ended) or joined > kept[-1])
    return "\n".join(lines[index] for index in kept) + ("\n" if closed else "")


def shells() -> list[str]:
    """The shells to try the script under: what /bin/sh may be on a machine, as far as it is here."""
    known = {"dash": "dash", "bash": "bash --posix", "busybox": "busybox sh"}
    return [command for program, command in known.items() if shutil.which(program)]


# ---- certificates


def certificate() -> tuple[bytes, bytes]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kube-apiserver")])
    now = datetime.datetime.now(datetime.timezone.utc)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return built.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


# ---- systemd

_SYSTEMCTL = """\
#!{python} -SI
import json, socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect({socket!r})
s.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
code, out, err = json.loads(s.makefile().readline())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""


class Machine(Tree):
    """A tree whose service really runs."""

    def __init__(self, root: Path, certificate: tuple[bytes, bytes], kind: str = "charmed"):
        super().__init__(root, kind, free_port())
        self.pristine = ""
        self.behaviour_file = root.parent / "behaviour.json"
        self.journal = root.parent / "journal"
        self.journal.write_text("")
        self.behave()
        kubeconfig = {
            "clusters": [
                {
                    "name": "c",
                    "cluster": {
                        "server": f"https://127.0.0.1:{self.port}",
                        "certificate-authority-data": base64.b64encode(certificate[0]).decode(),
                    },
                }
            ],
            "users": [{"name": "u", "user": {"token": TOKEN}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        self.layout.admin_kubeconfig.parent.mkdir(parents=True)
        self.layout.admin_kubeconfig.write_text(yaml.safe_dump(kubeconfig))
        pair = {"client-certificate-data": certificate[0], "client-key-data": certificate[1]}
        user = {name: base64.b64encode(data).decode() for name, data in pair.items()}
        self.with_certificate = yaml.safe_dump({**kubeconfig, "users": [{"name": "u", "user": user}]})
        (root.parent / "server.pem").write_bytes(certificate[0] + certificate[1])
        self.systemd = Systemd(self)

    def behave(self, **how: object) -> None:
        """Tell the API server's stand-in how to behave from its next start on.

        crash: end 0.1 s after the start if this text is among its arguments; deaf: /readyz says 500 with this text;
        lockout: cluster tokens are refused with it; certificate: who shows no token is known; unreached: the token
        webhook that it is given cannot be asked.
        """
        self.behaviour_file.write_text(json.dumps(how))

    def running_flags(self) -> list[str]:
        process = self.systemd.process
        if process is None:  # between two lives
            return []
        if not self.layout.flags_shown:
            return json.loads((self.root.parent / "given.json").read_text())
        return Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")

    @property
    def lease(self) -> Any:
        """The cluster's Lease, None where there is none."""
        path = self.root.parent / "leases.json"
        return json.loads(path.read_text())[1] if path.exists() else None

    @lease.setter
    def lease(self, value: Any) -> None:
        (self.root.parent / "leases.json").write_text(json.dumps([1000, value]))

    @property
    def in_force(self) -> bool:
        return any(str(self.layout.config_folder) in word for word in self.running_flags())

    def wait_for(self, what: str, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for: {what}\n{self.journal.read_text()}"
            time.sleep(0.02)


class Systemd:
    """What systemd does for one service, with the drop-in as it is on disk at the last daemon-reload."""

    def __init__(self, machine: Machine):
        self.machine = machine
        self.service = machine.layout.service
        self.process: subprocess.Popen[bytes] | None = None
        self.invocation = ""
        self.state = "inactive"
        self.restarts = 0  # asked for by somebody
        self.began: list[float] = []
        self.units: dict[str, str] = {"kubernetes-keystone.service": "active"}
        self.asked: list[list[str]] = []
        self._loaded = ""
        self._drop_in_path = machine.place.unit_folder / f"{self.service}.d/kubernetes-keystone.conf"
        self._lock = threading.RLock()
        self._closing = False
        folder = machine.root.parent / "bin"
        folder.mkdir()
        address = str(machine.root.parent / "systemd.sock")
        systemctl = folder / "systemctl"
        systemctl.write_text(_SYSTEMCTL.format(python=sys.executable, socket=address))
        systemctl.chmod(0o755)
        journalctl = folder / "journalctl"
        journalctl.write_text(f"#!/bin/sh\nexec cat {machine.journal}\n")
        journalctl.chmod(0o755)
        self.path = f"{folder}:{os.environ['PATH']}"
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                answer = outer.systemctl(json.loads(self.rfile.readline()))
                self.wfile.write(json.dumps(answer).encode() + b"\n")

        self._server = socketserver.ThreadingUnixStreamServer(address, Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._closing = True
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            self._end()

    # -- what systemctl asks

    def systemctl(self, words: list[str]) -> tuple[int, str, str]:
        self.asked.append(words)
        block = "--no-block" not in words
        verb, *units = [word for word in words if word not in ("--no-block", "--quiet", "--value")]
        if verb == "show":
            return 0, self._show(units[2], units[1]) + "\n", ""
        if verb == "daemon-reload":
            self._loaded = self._drop_in()
        elif verb == "is-active":
            state = self.state if units == [self.service] else self.units.get(units[0], "inactive")
            return (0 if state == "active" else 3), "", ""
        elif verb in ("restart", "start", "stop") and units == [self.service]:
            self.restarts += verb == "restart"
            job = threading.Thread(target=self._job, args=(verb,), daemon=True)
            job.start()
            if block:
                job.join()
                if self.state == "failed":
                    return 1, "", f"Job for {self.service} failed."
        elif verb == "reset-failed":
            if self.service in units:
                self.began.clear()
                self.state = "inactive" if self.state == "failed" else self.state
        else:
            for unit in units:
                self.units[unit] = "inactive" if verb == "stop" else "active"
        return 0, "", ""

    def _show(self, unit: str, name: str) -> str:
        if unit != self.service:
            return "no" if name == "NeedDaemonReload" else ""
        return {
            "ActiveState": self.state,
            "InvocationID": self.invocation,
            "MainPID": str(self.process.pid if self.process else 0),
            # As in the real one, which keeps a list of the drop-in folders that there are: blind to the first drop-in.
            "NeedDaemonReload": "yes" if self._loaded and self._loaded != self._drop_in() else "no",
            "DropInPaths": str(self._drop_in_path) if self._loaded else "",
        }[name]

    def _drop_in(self) -> str:
        return self._drop_in_path.read_text() if self._drop_in_path.exists() else ""

    # -- the service's life

    def _job(self, verb: str) -> None:
        with self._lock:
            if verb != "start":
                self._end()
            if verb != "stop":
                self._begin()

    def _end(self) -> None:
        if self.process is not None:
            process, self.process = self.process, None
            process.terminate()
            process.wait()
            self._run("ExecStopPost", SERVICE_RESULT="success")
        self.state = "inactive"

    def _begin(self) -> None:
        now = time.monotonic()
        self.began = [then for then in self.began if now - then < 10] + [now]
        if len(self.began) > next(
            (int(line[16:]) for line in self._loaded.splitlines() if line.startswith("StartLimitBurst=")), 5
        ):
            self.state = "failed"
            return
        self.state = "activating"
        self._run("ExecStartPre")
        here = Path(__file__).parent
        folder = self.machine.root.parent
        with self.machine.journal.open("ab") as journal:
            self.process = subprocess.Popen(
                [sys.executable, "-SI", str(here / "standin.py"), str(folder), *self._words()],
                env={**os.environ, "SNAP_DATA": str(self.machine.layout.working_folder)},
                stderr=journal,
            )
        self.invocation = uuid.uuid4().hex
        threading.Thread(target=self._watch, args=(self.process,), daemon=True).start()
        self._run("ExecStartPost", MAINPID=str(self.process.pid))
        self.state = "active"

    def _words(self) -> list[str]:
        if self.machine.layout.flags_shown:
            return shlex.split(self.machine.next_start)
        (self.machine.root.parent / "given.json").write_text("[]")
        return [f"--apiserver-args-file={self.machine.layout.args_file}"]

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        with self._lock:
            if self.process is not process or self._closing:
                return
            self.process = None
            self.state = "activating"
            self._run("ExecStopPost", SERVICE_RESULT="exit-code")
            time.sleep(0.05)
            self._begin()

    def _run(self, key: str, **env: str) -> None:
        for line in self._loaded.splitlines():
            name, _, command = line.partition("=")
            if name == key:
                with self.machine.journal.open("ab") as journal:
                    subprocess.run(
                        shlex.split(command.lstrip("-+")),
                        stderr=journal,
                        check=False,
                        env={**os.environ, **env, "PATH": self.path},
                    )
