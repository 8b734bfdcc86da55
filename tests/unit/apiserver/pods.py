"""A machine with a static pod for the wiring's tests: a temporary tree, a small kubelet, the stand-in as API server.

The script and the package are the real ones. `systemctl` and `curl` on PATH say what a test has set.
"""

from __future__ import annotations

import base64
import contextlib
import grp
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from apiserver import Desired, Patience, Place, wanted
from apiserver.pod import Pod
from apiserver.static_pod import StaticPod
from testbed.owners import kubeadm
from testbed.processes import free_port
from tests.unit.apiserver.support import desired

PATIENCE = Patience(already=20, ready=15, token=5, restart=30, removal=15, between=0.05, settled=0.1, reload=30)
LESS = Patience(already=20, ready=6, token=2, restart=20, removal=2, between=0.05, settled=0.1, reload=30)
"""For a server that is known to come to nothing."""

SYSTEMCTL = """\
#!/bin/sh
echo "$*" >>{folder}/asked
case "$*" in
    *ActiveState*kubernetes-keystone-watch*) cat {folder}/watch 2>/dev/null ;;
    *UnitFileState*) echo enabled ;;
    "enable --now "*) echo active >{folder}/watch ;;
    "disable --now "*) rm -f {folder}/watch ;;
    "is-active --quiet kubernetes-keystone.service") test -e {folder}/authenticator ;;
esac
"""


class Machine:
    """The machine. `behave` says when its API server is not in order; see `standin.py`."""

    def __init__(self, folder: Path, certificate: tuple[bytes, bytes], version: str = "v1.36.3") -> None:
        self.folder = folder
        self.root = folder / "root"
        self.port = free_port()
        self.place = Place(self.root, reader=grp.getgrgid(os.getgid()).gr_name)
        self.layout = StaticPod(self.place)
        self.version = version
        for path in (
            self.layout.manifest.parent,
            self.place.chain_file.parent,
            self.place.unit_folder,
            self.place.script.parent,
            self.root / "etc/kubernetes/pki",
            folder / "bin",
        ):
            path.mkdir(parents=True, exist_ok=True)
        (folder / "server.pem").write_bytes(certificate[0] + certificate[1])
        pair = {"client-certificate-data": certificate[0], "client-key-data": certificate[1]}
        cluster = {
            "server": f"https://127.0.0.1:{self.port}",
            "certificate-authority-data": base64.b64encode(certificate[0]).decode(),
        }
        config = {
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {name: base64.b64encode(data).decode() for name, data in pair.items()}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        self.layout.admin_kubeconfig.write_text(yaml.safe_dump(config))
        self.behave()
        for name, text in {"systemctl": SYSTEMCTL.format(folder=folder), "curl": "#!/bin/sh\n"}.items():
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self.path = f"{folder}/bin:{os.environ['PATH']}"
        self.upgrade()

    # --- its owner

    @property
    def flags(self) -> dict[str, str]:
        return {
            "advertise-address": "127.0.0.1",
            "allow-privileged": "true",
            "authorization-mode": "Node,RBAC",
            "bind-address": "127.0.0.1",
            "client-ca-file": "/etc/kubernetes/pki/ca.crt",
            "enable-admission-plugins": "NodeRestriction",
            "secure-port": str(self.port),
            "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
        }

    def upgrade(self, version: str = "", **flags: str) -> None:
        """Play kubeadm: write the manifest whole."""
        self.version = version or self.version
        added = {name.replace("_", "-"): value for name, value in flags.items()}
        mounts = {
            "ca-certs": ("/etc/ssl/certs", "/etc/ssl/certs"),
            "k8s-certs": ("/etc/kubernetes/pki", "/etc/kubernetes/pki"),
        }
        self.text = kubeadm(self.version, "127.0.0.1", {**self.flags, **added}, mounts, self.port)

    @property
    def text(self) -> str:
        """The manifest."""
        return self.layout.manifest.read_bytes().decode()

    @text.setter
    def text(self, text: str) -> None:
        new = self.folder / "manifest.new"
        new.write_bytes(text.encode())
        new.chmod(0o600)
        new.replace(self.layout.manifest)

    # --- ours

    def desired(self, content: str = "kubeconfig", authorization: bool = False) -> Desired:
        return desired(self.layout, content, authorization)

    def script(self, *mode: str, given: str = "", shell: str = "sh", **env: str) -> str:
        """Run the real script."""
        command = [*shell.split(), "-c", Pod(self.layout)._script().decode(), "apiserver-pod", *mode]
        environment = {**os.environ, "PATH": self.path, **env}
        done = subprocess.run(command, input=given.encode(), capture_output=True, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr.decode()
        assert "syntax" not in done.stderr.decode()
        return done.stdout.decode()

    @property
    def wanted(self) -> wanted.Wanted:
        found = wanted.read(self.place)
        assert found is not None
        return found

    @property
    def asked(self) -> str:
        """What systemctl has been called with."""
        return (self.folder / "asked").read_text() if (self.folder / "asked").exists() else ""

    @property
    def wired(self) -> bool:
        return str(self.layout.config_folder) in self.text

    @property
    def in_force(self) -> bool:
        return Pod(self.layout).with_ours()

    def snapshot(self) -> dict[str, tuple[str, int, str]]:
        """Every file and folder with kind, mode and checksum."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[str(path.relative_to(self.root))] = ("file" if content else "folder", path.stat().st_mode, content)
        return {name: what for name, what in found.items() if not name.startswith("var")}

    def behave(self, **how: str) -> None:
        (self.folder / "behaviour.json").write_text(json.dumps({"certificate": "", **how}))

    def wait(self, condition: Any, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s"
            time.sleep(0.02)


class Kubelet:
    """Runs the one pod: restarts it when its manifest changes or it ends; what it waits in between doubles."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.starts = 0
        self._stop = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        logs = machine.root / "var/log/pods/kube-system_kube-apiserver-node_0123/kube-apiserver"
        logs.mkdir(parents=True)
        self._log = logs / "0.log"
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Kubelet:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._end()

    def _loop(self) -> None:
        had, again, wait = b"", 0.0, 0.2
        while not self._stop.wait(0.02):
            try:
                have = self.machine.layout.manifest.read_bytes()
            except FileNotFoundError:
                have = b""
            if have != had:
                self._end()
                had, again, wait = have, 0.0, 0.2
            if self._process is not None and self._process.poll() is not None:
                self._end()
                again, wait = time.monotonic() + wait, wait * 2
            if have and self._process is None and time.monotonic() >= again:
                self._begin(have)

    def _begin(self, manifest: bytes) -> None:
        pod = yaml.safe_load(manifest)
        container = pod["spec"]["containers"][0]
        seen = [mount["mountPath"] for mount in container["volumeMounts"]]
        ours = str(self.machine.layout.config_folder)
        assert ours in seen or f"={ours}/" not in manifest.decode(), "a flag names what is not mounted"
        standin = Path(__file__).with_name("standin.py")
        command = ["kube-apiserver", str(standin), str(self.machine.folder), *container["command"][1:]]
        self._process = subprocess.Popen(
            command, executable=sys.executable, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.starts += 1

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        said = process.communicate()[1].decode().splitlines()
        with contextlib.suppress(OSError), self._log.open("a") as log:
            log.writelines(f"2026-01-02T03:04:05.678901234Z stderr F {line}\n" for line in said)
