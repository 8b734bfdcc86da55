"""Somebody's k8s-keystone-auth on a machine: the real program as a service, as people set it up without our charm.

It asks the test bed's Keystone and decides by a policy of its own. Not here: who has the API server ask it.
"""

from __future__ import annotations

import base64

import yaml

from testbed import setup
from testbed.certificates import Authority
from testbed.keystone import Keystone
from testbed.machine import Machine

SERVICE = "k8s-keystone-auth.service"
FOLDER = "/etc/k8s-keystone-auth"

_UNIT = """\
[Unit]
Description=k8s-keystone-auth
[Service]
ExecStart=/usr/local/bin/k8s-keystone-auth %s
Restart=always
[Install]
WantedBy=multi-user.target
"""


class KeystoneAuth:
    """A k8s-keystone-auth.

    Args:
        machine: where it runs; it listens on all of its addresses, as it does when nobody says otherwise.
        keystone: whom it asks.
        policy: its policy, JSON.
        port: where; 8443 unless somebody says otherwise.

    """

    def __init__(self, machine: Machine, keystone: Keystone, policy: str, port: int = 8443) -> None:
        self._machine = machine
        self._keystone = keystone
        self.policy = policy
        self.authority = Authority("k8s-keystone-auth's own")
        self._port = port
        self.url = f"https://127.0.0.1:{port}/webhook"

    def install(self) -> None:
        """Put it there and start it; it is enabled, so that it comes back after a reboot."""
        machine, keystone = self._machine, self._keystone
        pair = self.authority.sign("k8s-keystone-auth", hosts=["127.0.0.1", "localhost", machine.address])
        files = {"tls.crt": pair.certificate, "tls.key": pair.key, "policy.json": self.policy.encode()}
        for name, content in {**files, "keystone.crt": keystone.ca.read_bytes()}.items():
            machine.write(f"{FOLDER}/{name}", content, 0o600)
        program = (setup.upstream() / "k8s-keystone-auth").read_bytes()
        machine.write("/usr/local/bin/k8s-keystone-auth", program, 0o755)
        options = (
            f"--listen=0.0.0.0:{self._port}",
            f"--tls-cert-file={FOLDER}/tls.crt",
            f"--tls-private-key-file={FOLDER}/tls.key",
            f"--keystone-policy-file={FOLDER}/policy.json",
            f"--keystone-url={keystone.url}",
            f"--keystone-ca-file={FOLDER}/keystone.crt",
        )
        machine.write(f"/etc/systemd/system/{SERVICE}", _UNIT % " ".join(options))
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", "--now", SERVICE)
        machine.wait(self.answers, "k8s-keystone-auth")

    def answers(self) -> bool:
        """Whether somebody listens at its port."""
        script = f"exec 3<>/dev/tcp/127.0.0.1/{self._port}"
        return self._machine.run("bash", "-c", script, check=False).returncode == 0

    def kubeconfig(self) -> str:
        """Give what an API server is told about it: a kubeconfig, everything inline."""
        ca = base64.b64encode(self.authority.certificate).decode()
        return yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "webhook", "cluster": {"server": self.url, "certificate-authority-data": ca}}],
                "users": [{"name": "webhook", "user": {}}],
                "contexts": [{"name": "webhook", "context": {"cluster": "webhook", "user": "webhook"}}],
                "current-context": "webhook",
            }
        )
