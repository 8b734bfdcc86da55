"""The Lease of `src/apiserver/lease.py` on a real API server: what the stand-in of the unit tests only plays."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import apiserver
from apiserver import NotOurTurn, Patience, lease
from apiserver.charmed import Charmed
from apiserver.lease import Turn, Unasked
from testbed.apiserver import ApiServer
from tests.unit.apiserver.support import Tree
from tests.unit.apiserver.test_lease import CONTENDER

SHORT = Patience(already=0.5, turn=0.5, turns=10, settled=0, between=0.05)
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"


@pytest.fixture(scope="module")
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        deadline = time.monotonic() + 60  # it makes this namespace itself, a moment after it is ready
        while running.send("GET", "/api/v1/namespaces/kube-system", running.admin_token)[0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield running


@pytest.fixture(autouse=True)
def _no_lease(server: ApiServer) -> None:
    server.send("DELETE", f"{LEASES}/{lease.NAME}", server.admin_token)


def unit(server: ApiServer, folder: Path, number: int, token: str = "") -> Charmed:
    """Give the layout on the machine of this unit, whose API server this is."""
    tree = Tree(folder / str(number), "charmed", server.port)
    cluster = {
        "server": f"https://127.0.0.1:{server.port}",
        "certificate-authority-data": base64.b64encode(server.ca.read_bytes()).decode(),
    }
    config = {
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": token or server.admin_token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    }
    tree.layout.admin_kubeconfig.parent.mkdir(parents=True)
    tree.layout.admin_kubeconfig.write_text(yaml.safe_dump(config))
    return Charmed(replace(tree.place, unit=f"kubernetes-keystone/{number}"))


def turn(layout: Charmed, patience: Patience = SHORT) -> Turn:
    return Turn(layout, lambda _: None, patience)


def found(server: ApiServer) -> dict[str, Any] | None:
    """The Lease as it is in the cluster."""
    status, answer = server.send("GET", f"{LEASES}/{lease.NAME}", server.admin_token)
    return answer if status == 200 else None


def test_a_turn_is_taken_made_to_last_and_given_back(server: ApiServer, tmp_path: Path) -> None:
    one, two = (unit(server, tmp_path, number) for number in (1, 2))
    with turn(one) as mine:
        assert not mine.take()
        taken = found(server)
        assert taken is not None
        assert taken["spec"]["holderIdentity"].startswith("kubernetes-keystone/1 on ")
        assert taken["spec"]["leaseDurationSeconds"] == 420
        assert not mine.take()
        renewed = found(server)
        assert renewed is not None
        assert renewed["spec"]["renewTime"] > taken["spec"]["renewTime"]
        assert renewed["spec"]["acquireTime"] == taken["spec"]["acquireTime"]
        with pytest.raises(NotOurTurn, match="kubernetes-keystone/1"):
            turn(two).take()
    assert found(server) is None


def test_a_lease_that_changed_since_it_was_seen_is_neither_taken_over_nor_deleted(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, three = (turn(unit(server, tmp_path, number)) for number in (1, 2, 3))
    one.take()
    for other in (two, three):
        with pytest.raises(NotOurTurn):
            other.take()
    seen = two._find()
    assert seen is not None
    now = lease._now
    monkeypatch.setattr(lease, "_now", lambda: now() + 421)
    three.take()
    monkeypatch.setattr(two, "_find", lambda: seen)
    assert two._attempt() == seen, "its update names a version that is not the last one any more"
    monkeypatch.setattr(one, "_find", lambda: replace(seen, holder=one.name))
    one._give_back()
    still = found(server)
    assert still is not None
    assert still["spec"]["holderIdentity"].startswith("kubernetes-keystone/3")
    assert still["spec"]["leaseTransitions"] == 1
    three.__exit__()
    assert found(server) is None


def test_of_several_processes_one_at_a_time_has_its_turn_although_one_is_killed_with_it(
    server: ApiServer, tmp_path: Path
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(apiserver.__file__).parents[1])}
    started = []
    for number in range(4):
        layout = unit(server, tmp_path, number)
        command = [sys.executable, "-c", CONTENDER, str(layout.place.root), str(number), layout.place.reader]
        command.append(str(tmp_path / "inside"))
        started.append((number, subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)))
    for number, process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == (-signal.SIGKILL if number == 0 else 0), errors
    assert found(server) is None


def test_an_administrator_who_may_not_have_the_lease_is_told_so(server: ApiServer, tmp_path: Path) -> None:
    account = {"metadata": {"name": "nobody", "namespace": "kube-system"}}
    accounts = "/api/v1/namespaces/kube-system/serviceaccounts"
    assert server.send("POST", accounts, server.admin_token, account)[0] == 201
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    status, made = server.send("POST", f"{accounts}/nobody/token", server.admin_token, request)
    assert status == 201
    nobody = unit(server, tmp_path, 1, made["status"]["token"])
    with pytest.raises(
        Unasked, match=r"answers 403 to GET of the Lease kube-system/kubernetes-keystone-restart: .*nobody"
    ):
        turn(nobody).take()
    with turn(nobody) as mine:
        mine.take_if_in_order()
