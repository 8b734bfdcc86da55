"""An operator's own k8s-keystone-auth from where it really lies: a registry's image, by a real proxy, onto a full disk.

The registry is the reference one, the program is the real one; what runs it is left to the machine tests.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import http.server
import json
import os
import platform
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import upstream
from config import CharmConfig
from errors import ConfigError
from files import Places
from testbed import setup
from testbed.certificates import Authority
from testbed.processes import free_port, process
from testbed.registry import Registry, file, folder, gone, layer, link

pytestmark = pytest.mark.functional

HERE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
Ensure = Callable[..., upstream.Installed]


@pytest.fixture(scope="module")
def program() -> bytes:
    return (setup.upstream() / "k8s-keystone-auth").read_bytes()


@pytest.fixture(scope="module")
def company() -> Authority:
    return Authority("a company's own")


@pytest.fixture(scope="module")
def layers(program: bytes) -> list[bytes]:
    """As upstream's own image is made: a distroless base, the program in /bin, certificates."""
    base = layer(folder("etc"), file("etc/passwd", b"root:x:0:0::/root:/sbin/nologin\n"), folder("bin"))
    return [base, layer(file("bin/k8s-keystone-auth", program)), layer(file("etc/ssl/certs/ca-certificates.crt", b""))]


@pytest.fixture(scope="module")
def registry(company: Authority) -> Iterator[Registry]:
    with Registry(company) as running:
        yield running


@pytest.fixture
def places(tmp_path: Path) -> Places:
    made = Places(tmp_path / "root")
    made.root.mkdir()
    return made


@pytest.fixture
def ensure(places: Places, company: Authority) -> Ensure:
    def made(
        url: str, sha256: str = "", credentials: str = "", secret: dict[str, str] | None = None
    ) -> upstream.Installed:
        options = CharmConfig(
            keystone_url="https://keystone.example:5000",
            k8s_keystone_auth_url=url,
            k8s_keystone_auth_sha256=sha256,
            k8s_keystone_auth_credentials=credentials,
            k8s_keystone_auth_ca=company.certificate.decode(),
        )
        return upstream.ensure(places, options, lambda name: {"secret:abc": secret or {}}[name])

    return made


# -- images


def test_upstreams_program_comes_out_of_an_image(
    registry: Registry, layers: list[bytes], ensure: Ensure, program: bytes
) -> None:
    digest = registry.image("provider-os/k8s-keystone-auth", "v1.36.0", *layers)
    image = f"oci://{registry.host}/provider-os/k8s-keystone-auth"
    installed = ensure(f"{image}@{digest}")
    assert installed.program.read_bytes() == program
    assert installed.record.sha256 == digest.removeprefix("sha256:")
    assert subprocess.run([installed.program, "--help"], capture_output=True, check=True).stdout
    assert ensure(f"{image}:v1.36.0", digest.removeprefix("sha256:")).program.read_bytes() == program


def test_the_image_for_this_machine_is_taken_of_an_index(
    registry: Registry, layers: list[bytes], ensure: Ensure, program: bytes
) -> None:
    name = "many/k8s-keystone-auth"
    foreign = registry.image(name, "foreign", layer(file("bin/k8s-keystone-auth", b"\x7fELF of another machine")))
    mine = registry.image(name, "mine", *layers, docker=True)
    kinds = {"foreign": {"linux/s390x": foreign, "unknown/unknown": foreign}, "all": {"linux/s390x": foreign}}
    kinds["all"] |= {f"windows/{HERE}": foreign, f"linux/{HERE}": mine}
    docker = "application/vnd.docker.distribution.manifest.list.v2+json"
    oci, old, without = (
        registry.index(name, "oci", kinds["all"]),
        registry.index(name, "old", kinds["all"], docker),
        registry.index(name, "without", kinds["foreign"]),
    )
    with pytest.raises(ConfigError, match=rf"not made for linux/{HERE}, but for linux/s390x, unknown/unknown"):
        ensure(f"oci://{registry.host}/{name}@{without}")
    for digest in (oci, old):
        assert ensure(f"oci://{registry.host}/{name}@{digest}").program.read_bytes() == program
    assert not [path for path in registry.requests if "/blobs/" in path and foreign in path]


def test_layers_take_away_and_replace_whatever_they_are_packed_with(
    registry: Registry, ensure: Ensure, program: bytes
) -> None:
    digest = registry.image(
        "layered/auth",
        "1",
        layer(folder("usr/bin"), link("bin", "usr/bin"), file("usr/bin/k8s-keystone-auth", b"\x7fELF old"), packed=""),
        layer(gone("usr/"), file("opt/k8s-keystone-auth", b"\x7fELF older"), packed="zstd"),
        layer(gone("opt"), file("app/server", program), link("bin/k8s-keystone-auth", "/app/server"), packed="zstd"),
    )
    assert ensure(f"oci://{registry.host}/layered/auth@{digest}").program.read_bytes() == program


def test_what_came_of_an_image_is_not_downloaded_again(
    registry: Registry, layers: list[bytes], ensure: Ensure, program: bytes
) -> None:
    lost = registry.stored(registry.blob("lost/auth", last := layer(file("lost", b"and found")))["digest"])
    digest = registry.image("lost/auth", "1", *layers, last)
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(ConfigError, match="404"):
        ensure(f"oci://{registry.host}/lost/auth@{digest}")
    before = len(registry.requests)
    lost.write_bytes(content)
    assert ensure(f"oci://{registry.host}/lost/auth@{digest}").program.read_bytes() == program
    assert len([path for path in registry.requests[before:] if "/blobs/" in path]) == 1


def test_a_registry_that_lies_about_a_layer_is_not_believed(
    registry: Registry, layers: list[bytes], ensure: Ensure, program: bytes, places: Places
) -> None:
    layer_of_it = layer(file("bin/k8s-keystone-auth", program + b"\n"))
    digest = registry.image("lying/auth", "1", layer_of_it)
    evil = layer(file("bin/k8s-keystone-auth", program + b"!"))
    blob = f"sha256:{hashlib.sha256(layer_of_it).hexdigest()}"
    registry.stored(blob).write_bytes(evil.ljust(len(layer_of_it), b"\0")[: len(layer_of_it)])
    with pytest.raises(ConfigError, match=f"gave another layer than {blob}"):
        ensure(f"oci://{registry.host}/lying/auth@{digest}")
    assert not list(places.opt.rglob("k8s-keystone-auth"))


@pytest.mark.parametrize("kind", ["basic", "token"])
@pytest.mark.parametrize("by", ["secret", "file"])
def test_a_registry_with_accounts_gives_to_who_has_one(
    company: Authority, layers: list[bytes], ensure: Ensure, program: bytes, places: Places, kind: str, by: str
) -> None:
    with Registry(company, "basic" if kind == "basic" else "token") as registry:
        digest = registry.image("private/auth", "1", *layers)
        url = f"oci://{registry.host}/private/auth@{digest}"
        account = registry.account
        with pytest.raises(ConfigError, match="k8s-keystone-auth-credentials"):
            ensure(url)

        def given(password: str) -> dict[str, Any]:
            if by == "secret":
                return {"credentials": "secret:abc", "secret": {"username": account.username, "password": password}}
            path = places.root / "root/registry.json"
            path.parent.mkdir(exist_ok=True)
            path.touch(0o600)
            auth = account.basic if password == account.password else "cHVsbGVyOnB1bGxlcg=="
            path.write_text(json.dumps({"auths": {registry.host: {"auth": auth}, "other.example": {}}}))
            return {"credentials": "/root/registry.json"}

        with pytest.raises(ConfigError) as raised:
            ensure(url, **given("puller"))
        assert "k8s-keystone-auth-credentials" in str(raised.value)
        assert ensure(url, **given(account.password)).program.read_bytes() == program
        scopes = {scope for scope, _ in registry.token_requests}
        assert scopes == ({"repository:private/auth:pull"} if kind == "token" else set())


def test_a_registry_may_want_a_token_of_those_without_an_account(
    company: Authority, layers: list[bytes], ensure: Ensure, program: bytes
) -> None:
    with Registry(company, "token", anonymous=True) as registry:
        digest = registry.image("public/auth", "1", *layers)
        assert ensure(f"oci://{registry.host}/public/auth@{digest}").program.read_bytes() == program
        assert {who for _, who in registry.token_requests} == {""}


@pytest.mark.parametrize(
    ("content", "mode", "complaint"),
    [
        (b"{}", 0o644, "is not root's alone"),
        (b"{}", 0o600, "as docker login writes"),
        (b"user:secret", 0o600, "is not JSON of docker's form"),
        (b'{"auths": {"REGISTRY": {"auth": "c2VjcmV0"}}}', 0o600, "as docker login writes"),
        (None, 0o600, "is not on this unit"),
    ],
)
def test_a_file_of_credentials_that_is_no_good_is_named_and_not_shown(
    company: Authority, layers: list[bytes], ensure: Ensure, places: Places,
    content: bytes | None, mode: int, complaint: str,
) -> None:  # fmt: skip
    path = places.root / "login"
    with Registry(company, "basic") as registry:
        if content is not None:
            path.write_bytes(content.replace(b"REGISTRY", registry.host.encode()))
            path.chmod(mode)
        digest = registry.image("private/auth", "1", layers[0])
        with pytest.raises(ConfigError, match=f"k8s-keystone-auth-credentials: .*{complaint}") as raised:
            ensure(f"oci://{registry.host}/private/auth@{digest}", credentials="/login")
    assert "secret" not in str(raised.value)


# -- the model's proxy


@pytest.fixture
def site(company: Authority, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An https site and its folder."""
    (tmp_path / "site").mkdir()
    pair = company.sign("site", hosts=["127.0.0.1", "localhost"])
    (tmp_path / "site.pem").write_bytes(pair.certificate + pair.key)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "site"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "site.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"https://127.0.0.1:{server.server_address[1]}", tmp_path / "site"
    server.shutdown()
    server.server_close()


class Proxy:
    """tinyproxy, which wants an account."""

    def __init__(self, folder: Path) -> None:
        setup.apt("tinyproxy-bin")
        self.port = free_port()
        self.log = folder / "tinyproxy.log"
        self._configuration = folder / "tinyproxy.conf"
        self._configuration.write_text(
            f'Port {self.port}\nListen 127.0.0.1\nTimeout 60\nLogFile "{self.log}"\nLogLevel Connect\n'
            "MaxClients 20\nAllow 127.0.0.1\nBasicAuth me hunter2\n"
        )

    def command(self) -> list[str]:
        return ["/usr/bin/tinyproxy", "-d", "-c", str(self._configuration)]

    @property
    def connections(self) -> int:
        """How many hosts somebody was connected with."""
        return self.log.read_text().count("Established connection to host") if self.log.exists() else 0


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    made = Proxy(tmp_path)
    with process(tmp_path / "tinyproxy.out", made.command()):
        _until(lambda: _listens(made.port))
        yield made


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_downloads_go_by_the_models_proxy_and_by_no_other(
    site: tuple[str, Path], proxy: Proxy, ensure: Ensure, program: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = site
    (folder / "x").write_bytes(program)
    monkeypatch.setenv("JUJU_CHARM_HTTPS_PROXY", f"http://me:hunter2@127.0.0.1:{proxy.port}")
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert ensure(f"{url}/x").program.read_bytes() == program
    assert proxy.connections == 1


@pytest.mark.parametrize("no_proxy", ["127.0.0.0/8", "10.0.0.0/8,127.0.0.1"])
def test_what_the_model_names_is_reached_without_the_proxy(
    site: tuple[str, Path], proxy: Proxy, ensure: Ensure, program: bytes, monkeypatch: pytest.MonkeyPatch, no_proxy: str
) -> None:
    url, folder = site
    (folder / "x").write_bytes(program)
    monkeypatch.setenv("JUJU_CHARM_HTTPS_PROXY", f"http://me:hunter2@127.0.0.1:{proxy.port}")
    monkeypatch.setenv("JUJU_CHARM_NO_PROXY", no_proxy)
    assert ensure(f"{url}/x").program.read_bytes() == program
    assert proxy.connections == 0


@pytest.mark.parametrize("who", ["me:wrong-hunter2@127.0.0.1:PORT", "me:hunter2@127.0.0.1:1", "me:hunter2@"])
def test_a_proxy_that_does_not_help_is_named_without_its_password(
    site: tuple[str, Path], proxy: Proxy, ensure: Ensure, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    monkeypatch.setenv("JUJU_CHARM_HTTPS_PROXY", f"http://{who.replace('PORT', str(proxy.port))}")
    with pytest.raises(ConfigError, match="juju-https-proxy") as raised:
        ensure(f"{site[0]}/x")
    assert "hunter2" not in str(raised.value)


def test_an_image_comes_by_the_proxy_too(
    registry: Registry, layers: list[bytes], proxy: Proxy, ensure: Ensure, program: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("JUJU_CHARM_HTTPS_PROXY", f"http://me:hunter2@127.0.0.1:{proxy.port}")
    digest = registry.image("proxied/auth", "1", *layers)
    assert ensure(f"oci://{registry.host}/proxied/auth@{digest}").program.read_bytes() == program
    assert proxy.connections >= 1


# -- a full disk


@pytest.fixture
def small(places: Places) -> Iterator[Path]:
    """A disk of 100 MiB for all that the charm writes."""
    if os.geteuid() != 0:
        pytest.fail("this needs root: it mounts a small disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "tmpfs", places.root], check=True)
    yield places.root
    subprocess.run(["umount", places.root], check=True)


def left(disk: Path) -> int:
    """MiB that are free."""
    told = os.statvfs(disk)
    return told.f_bavail * told.f_frsize // 2**20


@pytest.mark.parametrize("room", [10, 45], ids=["for no download", "for the download alone"])
def test_a_disk_that_fills_up_is_given_back_and_the_version_before_stays(
    site: tuple[str, Path], ensure: Ensure, places: Places, small: Path, program: bytes, room: int
) -> None:
    url, folder = site
    (folder / "x").write_bytes(program)
    first = ensure(f"{url}/x")
    places.state.joinpath("upstream.json").write_text(json.dumps({"versions": [first.record.model_dump()]}))
    shutil.rmtree(places.state / "downloads")
    ballast = small / "ballast"
    ballast.write_bytes(bytes(max(left(small) - room, 0) * 2**20))
    before = left(small)
    (folder / "y").write_bytes(newer := program + b"\n")
    sha256 = hashlib.sha256(newer).hexdigest()

    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as raised:
        ensure(f"{url}/y", sha256)
    assert raised.value.errno == errno.ENOSPC
    assert left(small) == before
    assert ensure(f"{url}/x").program.read_bytes() == program
    ballast.unlink()
    second = ensure(f"{url}/y", sha256)
    assert second.program.read_bytes() == newer
