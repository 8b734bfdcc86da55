"""Several control-plane machines of one cluster: addresses of their own, one CA, one etcd, a balancer in front.

What they share runs on this system, at the address that it has for the first machine; the others have a route to it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import requests
from cryptography.hazmat.primitives.asymmetric import rsa

from testbed import pack, setup
from testbed.balancer import Balancer
from testbed.cache import Run
from testbed.certificates import Authority, pem
from testbed.charmed import Charmed, Family, cluster_tokens
from testbed.cluster import PORT
from testbed.keystone import Keystone
from testbed.machine import Machine
from testbed.processes import free_port, process


class SharedEtcd(Family):
    """What the machines of one control plane have in common, an etcd on this system among it."""

    def __init__(self) -> None:
        self.authority = Authority("Charmed Kubernetes of the test bed")
        self.service_accounts = pem(rsa.generate_private_key(public_exponent=65537, key_size=2048))
        self.tokens = cluster_tokens()
        self.address = ""
        self._stack = contextlib.ExitStack()

    def close(self) -> None:
        """End the etcd."""
        self._stack.close()

    def join(self, machine: Machine) -> str:
        """Have a machine reach what is shared; the first one brings it about. Gives the etcd's URL."""
        if not self.address:
            self.address = machine.host_address
            self._start()
        machine.reach(self.address)
        return self._url

    def _start(self) -> None:
        run = Run("etcd")
        self._stack.callback(run.remove)
        self._url = f"http://{self.address}:{free_port()}"
        peer = f"http://127.0.0.1:{free_port()}"
        command = [
            setup.etcd() / "etcd",
            f"--data-dir={run.folder}/data",
            f"--listen-client-urls={self._url}",
            f"--advertise-client-urls={self._url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
            "--log-level=error",
        ]
        self._stack.enter_context(process(run.folder / "etcd.log", command))


class HighlyAvailable:
    """A Charmed Kubernetes control plane on several machines, a balancer before it, and a Keystone.

    Args:
        size: how many machines.
        charm: the packed charm; otherwise it is packed now.

    """

    def __init__(self, size: int = 3, charm: Path | None = None) -> None:
        self._size = size
        self.charm = charm or pack.pack()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> HighlyAvailable:
        """Start everything."""
        with contextlib.ExitStack() as stack:
            family = SharedEtcd()
            stack.callback(family.close)
            self.members = [
                stack.enter_context(Charmed(f"control-plane-{number}", family)) for number in range(self._size)
            ]
            self.first = self.members[0]
            self.tokens, self.ca, self.folder = family.tokens, family.authority.certificate, self.first.folder
            self._certificate = family.authority.sign("health-check", organization="system:masters")
            self._pair = self.folder / "health-check.pem"
            self._pair.touch(0o600)
            self._pair.write_bytes(self._certificate.certificate + self._certificate.key)
            servers = {member.machine.name: (member.machine.address, PORT) for member in self.members}
            self.balancer = stack.enter_context(Balancer(family.address, servers, self._ready))
            self.keystone = stack.enter_context(Keystone(family.address))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End everything."""
        self._stack.close()

    def _ready(self, name: str) -> bool:
        member = next(member for member in self.members if member.machine.name == name)
        try:
            with requests.Session() as session:
                session.trust_env = False
                ca, pair = str(self.folder / "ca.crt"), str(self._pair)
                return session.get(f"{member.server}/readyz", verify=ca, cert=pair, timeout=5).status_code == 200
        except requests.RequestException:
            return False
