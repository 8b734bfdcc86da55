"""An operator's own authenticator behind our endpoint: the real k8s-keystone-auth, wherever it is, or a service."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from testbed import setup
from testbed.certificates import Authority
from testbed.registry import Registry, file, folder, layer
from testbed.stage import Stage
from tests.machine import sandbox
from tests.machine.telling import told_everywhere

POLICY = json.dumps(
    [{"users": {"projects": ["demo"], "roles": ["member"]}, "resource_permissions": {"default/pods": ["list"]}}]
)


@dataclass
class Site:
    """An https site beside the machine, which the machine's own certificates vouch for."""

    url: str
    folder: Path
    authority: Authority
    asked: list[str]

    def put(self, name: str, content: bytes) -> str:
        """Publish a file; gives its checksum."""
        (self.folder / name).write_bytes(content)
        return hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module")
def program() -> Path:
    return setup.upstream() / "k8s-keystone-auth"


@pytest.fixture(scope="module")
def site(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    authority = Authority("a company's own")
    server = authority.sign("site", hosts=[stage.machine.host_address])
    (folder / "server.pem").write_bytes(server.certificate + server.key)
    stage.machine.write("/usr/local/share/ca-certificates/company.crt", authority.certificate)
    stage.machine.run("update-ca-certificates")

    asked: list[str] = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            asked.append(self.path)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    (folder / "server.pem").unlink()
    listening = http.server.ThreadingHTTPServer(
        (stage.machine.host_address, 0), functools.partial(Quiet, directory=str(folder))
    )
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield Site(f"https://{stage.machine.host_address}:{listening.server_port}", folder, authority, asked)
    listening.shutdown()
    listening.server_close()
    thread.join()


def who(stage: Stage, token: str) -> str:
    """The Kubernetes user of a token, or the error."""
    config = stage.cluster.kubeconfig(token)
    done = stage.cluster.kubectl("auth", "whoami", "-o", "json", kubeconfig=config, check=False)
    return json.loads(done.stdout)["status"]["userInfo"]["username"] if done.returncode == 0 else done.stderr


def running(stage: Stage) -> list[str]:
    """The units of upstream's program that are there."""
    listed = stage.machine.run(
        "systemctl", "list-units", "--plain", "--no-legend", "kubernetes-keystone-upstream*"
    ).stdout
    return [line.split()[0] for line in listed.splitlines()]


def pods(stage: Stage, token: str, namespace: str = "default") -> int:
    return stage.cluster.status(f"/api/v1/namespaces/{namespace}/pods", token)


def test_upstreams_program_is_downloaded_and_put_behind_our_endpoint(
    stage: Stage, site: Site, program: Path, token: Callable[[], str]
) -> None:
    checksum = site.put("k8s-keystone-auth", program.read_bytes())
    url = f"{site.url}/k8s-keystone-auth"
    stage.unit.deploy(stage.charm, {**stage.keystone_options, "policy": POLICY, "k8s-keystone-auth-url": url})
    stage.unit.relate()
    assert stage.unit.status.name == "active", stage.unit.debug_log()
    assert checksum in stage.unit.status.message
    assert "upstream-compatible" in stage.unit.status.message
    assert who(stage, token()) == "alice"
    assert pods(stage, token()) == 200
    assert pods(stage, token(), "kube-system") == 403
    assert stage.cluster.status("/api/v1/namespaces", stage.cluster.tokens["admin"].token) == 200


def test_the_downloaded_program_may_read_nothing_of_ours(stage: Stage) -> None:
    (unit,) = running(stage)
    pid = stage.machine.show(unit, "MainPID")["MainPID"]
    user = stage.machine.shell(f"stat --format=%u /proc/{pid}")
    secrets = ["/etc/kubernetes-keystone/chained", "/etc/kubernetes-keystone/tls/server.key", "/root/.kube/config"]
    for path in secrets:
        as_it = ["setpriv", f"--reuid={user}", "--regid=65534", "--clear-groups", "cat", path]
        assert stage.machine.exists(path)
        assert stage.machine.run(*as_it, check=False).returncode != 0, path


def test_the_downloaded_program_is_in_a_sandbox_as_ours(stage: Stage) -> None:
    (unit,) = running(stage)
    assert sandbox.exposure(stage.machine, unit) < 2.0
    hidden = ["/etc/kubernetes-keystone/settings.json", "/etc/kubernetes-keystone/tls/server.key", "/root/.kube/config"]
    outcomes = sandbox.intrude(stage.machine, unit, hidden=hidden)
    assert {attempt for attempt, outcome in outcomes.items() if outcome == "done"} == {"write to /tmp"}


def test_another_file_than_the_first_is_refused_and_the_last_good_one_goes_on(
    stage: Stage, site: Site, program: Path, token: Callable[[], str]
) -> None:
    first = hashlib.sha256(program.read_bytes()).hexdigest()
    second = site.put("newer", program.read_bytes() + b"\n")
    stage.unit.configure(k8s_keystone_auth_url=f"{site.url}/newer")
    assert stage.unit.status.name == "blocked"
    assert first in stage.unit.status.message
    assert second in stage.unit.status.message
    assert who(stage, token()) == "alice"
    stage.unit.configure(k8s_keystone_auth_sha256=second)
    assert stage.unit.status.name == "active", stage.unit.debug_log()
    assert who(stage, token()) == "alice"


def test_a_program_that_does_not_run_is_never_switched_to(stage: Stage, site: Site, token: Callable[[], str]) -> None:
    (before,) = running(stage)
    invocation = stage.machine.show(before, "InvocationID")
    checksum = site.put("true", Path("/bin/true").read_bytes())
    stage.unit.configure(k8s_keystone_auth_url=f"{site.url}/true", k8s_keystone_auth_sha256=checksum)
    assert stage.unit.status.name == "blocked"
    told_everywhere(stage.unit, "what it names does not run")
    assert "what was in force stays" in stage.unit.status.message
    assert running(stage) == [before]
    assert stage.machine.show(before, "InvocationID") == invocation
    assert who(stage, token()) == "alice"


def test_the_way_back_is_one_option_and_no_download(
    stage: Stage, site: Site, program: Path, token: Callable[[], str]
) -> None:
    (site.folder / "k8s-keystone-auth").unlink()
    (site.folder / "newer").unlink()
    before, asked = running(stage), len(site.asked)
    first = hashlib.sha256(program.read_bytes()).hexdigest()
    stage.unit.configure(k8s_keystone_auth_sha256=first)
    assert stage.unit.status.name == "active", stage.unit.debug_log()
    assert first in stage.unit.status.message
    assert len(running(stage)) == 1
    assert running(stage) != before
    assert who(stage, token()) == "alice"
    assert len(site.asked) == asked


def test_a_file_on_the_machine_is_put_behind_our_endpoint(
    stage: Stage, program: Path, token: Callable[[], str]
) -> None:
    path = "/var/lib/kubernetes-keystone/incoming/k8s-keystone-auth"
    content = program.read_bytes() + b"from a file"
    stage.machine.write(path, content, 0o600)
    checksum = hashlib.sha256(content).hexdigest()
    stage.unit.configure(k8s_keystone_auth_url=f"file://{path}", k8s_keystone_auth_sha256=checksum)
    assert stage.unit.status.name == "active", stage.unit.debug_log()
    assert who(stage, token()) == "alice"
    assert len(running(stage)) == 1


def test_an_image_of_a_registry_with_accounts_is_put_behind_our_endpoint(
    stage: Stage, site: Site, program: Path, token: Callable[[], str]
) -> None:
    with Registry(site.authority, "token", stage.machine.host_address) as registry:
        base = layer(folder("bin"), file("bin/k8s-keystone-auth", b"an older one"), packed="zstd")
        digest = registry.image(
            "auth", "1", base, layer(file("bin/k8s-keystone-auth", program.read_bytes() + b"image"))
        )
        account = {"username": registry.account.username, "password": registry.account.password}
        stage.unit.put(k8s_keystone_auth_url=f"oci://{registry.host}/auth@{digest}")
        stage.unit.reset("k8s-keystone-auth-sha256")
        assert stage.unit.status.name == "blocked"
        assert "k8s-keystone-auth-credentials" in stage.unit.status.message
        stage.unit.configure(k8s_keystone_auth_credentials=stage.unit.add_secret(**account))
    assert stage.unit.status.name == "active", stage.unit.debug_log()
    assert digest.removeprefix("sha256:") in stage.unit.status.message
    assert account["password"] not in stage.unit.debug_log(10_000)
    assert who(stage, token()) == "alice"
    stage.unit.update_status()
    assert stage.unit.status.name == "active"


def test_an_attached_resource_is_put_behind_our_endpoint_when_no_url_is_set(
    stage: Stage, program: Path, token: Callable[[], str]
) -> None:
    stage.unit.attach("k8s-keystone-auth", content := program.read_bytes() + b"attached")
    stage.unit.reset("k8s-keystone-auth-url", "k8s-keystone-auth-credentials")
    assert stage.unit.status.name == "active", stage.unit.debug_log()
    assert f"k8s-keystone-auth (resource) sha256 {hashlib.sha256(content).hexdigest()}" in stage.unit.status.message
    assert who(stage, token()) == "alice"
    stage.unit.reboot()
    assert who(stage, token()) == "alice"
    assert len(running(stage)) == 1


def test_without_the_option_the_built_in_one_is_back_with_names_that_nobody_can_forge(
    stage: Stage, token: Callable[[], str]
) -> None:
    stage.unit.attach("k8s-keystone-auth", b"")
    assert stage.unit.status == ("active", "ready: charmed, policy 1 rules")
    assert who(stage, token()) == "keystone:alice"
    assert running(stage) == []


@pytest.fixture
def service(stage: Stage, site: Site, program: Path, tmp_path: Path) -> Iterator[str]:
    """Somebody's k8s-keystone-auth on another machine; gives its URL."""
    server = site.authority.sign("service", hosts=[stage.machine.host_address])
    for name, content in {"crt": server.certificate, "key": server.key, "json": POLICY.encode()}.items():
        (tmp_path / f"service.{name}").write_bytes(content)
    with socket.create_server((stage.machine.host_address, 0)) as free:
        address = f"{stage.machine.host_address}:{free.getsockname()[1]}"
    shutil.copy(program, tmp_path / "k8s-keystone-auth")
    command = [
        str(tmp_path / "k8s-keystone-auth"),
        f"--listen={address}",
        f"--tls-cert-file={tmp_path}/service.crt",
        f"--tls-private-key-file={tmp_path}/service.key",
        f"--keystone-policy-file={tmp_path}/service.json",
        f"--keystone-url={stage.keystone.url}",
        f"--keystone-ca-file={stage.keystone.ca}",
    ]
    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as running:
        stage.machine.wait(lambda: _answers(address), "k8s-keystone-auth")
        yield f"https://{address}/webhook"
        running.terminate()


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
        return True
    return False


def test_somebodys_service_stands_behind_our_endpoint_and_sees_no_cluster_token(
    stage: Stage, site: Site, service: str, token: Callable[[], str]
) -> None:
    ca = site.authority.certificate.decode()
    stage.unit.configure(authn_server_url=f"{site.url}/webhook", auth_server_ca=ca)
    assert stage.unit.status.name == "blocked"
    assert "not as a TokenReview's webhook does" in stage.unit.status.message
    assert who(stage, token()) == "keystone:alice"
    stage.unit.configure(authn_server_url=service, authz_server_url=service, auth_server_ca=ca)
    assert stage.unit.status.name == "active", stage.unit.debug_log()
    assert who(stage, token()) == "alice"
    assert pods(stage, token()) == 200
    assert pods(stage, token(), "kube-system") == 403
    before = len(stage.keystone.calls())
    assert stage.cluster.status("/api/v1/namespaces", stage.cluster.tokens["kube-scheduler"].token) in (200, 403)
    assert len(stage.keystone.calls()) == before
    stage.unit.reset("authn-server-url", "authz-server-url", "auth-server-ca")
    assert who(stage, token()) == "keystone:alice"
    stage.unit.remove()
