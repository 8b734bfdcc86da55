"""An operator's own k8s-keystone-auth, downloaded from a real HTTPS server on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import io
import itertools
import json
import os
import platform
import ssl
import subprocess
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import ops
import ops.testing
import pytest

import archive
import authenticator
import download
import files
import host
import reach
import upstream
import webhook
from config import Listen
from errors import ConfigError
from files import Places
from tests.unit.charm.conftest import Machine

MACHINE = {"x86_64": 62, "aarch64": 183}.get(platform.machine(), 62)
POLICY = "- match: []\n"


def elf(content: str = "one", machine: int = MACHINE) -> bytes:
    """What looks like a Linux binary of this kind of machine."""
    return b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00" + machine.to_bytes(2, "little") + content.encode()


def tar(*members: tuple[str, bytes], mode: Literal["w", "w:gz", "w:xz"] = "w:gz", link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        if link is not None:
            info = tarfile.TarInfo("k8s-keystone-auth")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zipped(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Site:
    """A web server with files, redirects and moods.

    It knows ranges as servers do (RFC 9110, 13.1.5 and 14). `cuts`: after how many bytes of content each of the next
    answers ends.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    trickles: bool = False
    cuts: list[int] = field(default_factory=list)
    tagged: bool = True
    endless: bool = False
    length: str = ""
    asked: list[str] = field(default_factory=list)
    given: int = 0

    def tag(self, path: str) -> str:
        return f'"{sha256(self.files[path])[:8]}"'


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    places = Places(tmp_path_factory.mktemp("site"))
    places.tls.mkdir(parents=True)
    return webhook.ensure_tls(places, Listen(host="127.0.0.1", port=1), places.tls.stat().st_gid)


@pytest.fixture
def site(authority, monkeypatch) -> Iterator[Site]:
    made = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            made.asked.append(self.path)
            if self.path in made.redirects:
                length = {} if made.endless else {"Content_Length": "0"}
                self.answer(302, Location=made.redirects[self.path], **length)
                with contextlib.suppress(OSError):
                    while made.endless:
                        self.wfile.write(bytes(2**16))
                return
            body = made.files.get(self.path)
            if body is None:
                self.answer(404)
                return
            begin, of_range = 0, self.headers.get("Range")
            if of_range and self.headers.get("If-Range") == made.tag(self.path):
                begin = int(of_range.removeprefix("bytes=").removesuffix("-"))
                if begin >= len(body):
                    self.answer(416, Content_Range=f"bytes */{len(body)}", Content_Length="0")
                    return
            tag = {"ETag": made.tag(self.path)} if made.tagged else {}
            part = {"Content_Range": f"bytes {begin}-{len(body) - 1}/{len(body)}"} if begin else {}
            length = {} if made.trickles else {"Content_Length": made.length or str(len(body) - begin)}
            self.answer(206 if begin else 200, **tag, **part, **length)
            end = begin + made.cuts.pop(0) if made.cuts else len(body)
            with contextlib.suppress(OSError):
                for at in range(60 if made.trickles else 0):
                    self.wfile.write(body[at : at + 1])
                    time.sleep(0.05)
                made.given += len(body[begin:end])
                self.wfile.write(body[begin:end])

        def answer(self, status: int, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server.certificate, authority.server.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    made.url = f"https://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(download, "system_ca", lambda: str(authority.ca))
    yield made
    server.shutdown()
    server.server_close()


@dataclass
class Programs:
    """What runs on the program's two ports: it answers as the binary says that its unit was started with."""

    machine: Machine
    ports: tuple[int, ...] = ()
    asked: list[tuple[int, str]] = field(default_factory=list)

    def running(self, port: int) -> str | None:
        """Its content, past the header; None where no unit is up."""
        unit = upstream.service(port)
        path = self.machine.places.units / unit
        if not self.machine.active(unit) or not path.exists():
            return None
        command = path.read_text().partition("ExecStart=")[2].split()[0]
        return Path(command).read_bytes()[len(elf("")) :].decode(errors="replace")

    @property
    def in_force(self) -> int | None:
        backend = self.machine.settings()["authentication_backend"]
        return backend and int(backend["url"].partition("127.0.0.1:")[2].partition("/")[0])


@pytest.fixture
def program(machine, monkeypatch) -> Iterator[Programs]:
    """Programs that are asked what an authenticator asks: `dead…` ones say nothing, `deaf…` ones something else."""
    made = Programs(machine)

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            port = int(self.connection.getsockname()[1])
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            what = made.running(port)
            if what is None or what.startswith("dead"):
                return
            made.asked.append((port, asked["kind"]))
            no = asked["kind"] == "TokenReview" and not what.startswith("open")
            status = {"authenticated": not no} if asked["kind"] == "TokenReview" else {"allowed": False}
            body = b"{}" if what.startswith("deaf") else json.dumps({**asked, "status": status}).encode()
            self.send_response(401 if no else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    class Server(http.server.ThreadingHTTPServer):
        def get_request(self):
            plain, address = super().get_request()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(machine.places.tls / "upstream.crt", machine.places.tls / "upstream.key")
            return context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address

        def handle_error(self, request, client_address) -> None:
            pass

    servers = [Server(("127.0.0.1", 0), Handler) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    made.ports = tuple(server.server_address[1] for server in servers)
    monkeypatch.setattr(upstream, "UPSTREAM_PORTS", made.ports)
    yield made
    for server in servers:
        server.shutdown()
        server.server_close()


def unit_file(machine) -> str:
    """The unit of the program that is in force."""
    return (machine.places.units / upstream.service(upstream.port_in_force(machine.places) or 0)).read_text()


def installed(machine) -> Path:
    return Path(unit_file(machine).partition("ExecStart=")[2].split()[0])


def kept(machine) -> set[bytes]:
    return {path.read_bytes() for path in (machine.places.opt / "upstream").glob("*/k8s-keystone-auth")}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("binary", elf()),
        ("tar.gz", tar(("README", b"read me"), ("release/k8s-keystone-auth", elf()))),
        ("tar", tar(("k8s-keystone-auth", elf()), mode="w")),
        ("tar.xz", tar(("k8s-keystone-auth", elf()), mode="w:xz")),
        ("zip", zipped(("README", b"read me"), ("bin/k8s-keystone-auth", elf()))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_binary_or_an_archive_is_put_behind_the_endpoint(unit, machine, wiring, site, program, name, content):
    site.files[f"/{name}"] = content
    status = unit.configure(k8s_keystone_auth_url=f"{site.url}/{name}", policy=POLICY).run()

    assert status == ops.ActiveStatus(
        f"ready: charmed, policy 1 rules, upstream-compatible names, k8s-keystone-auth sha256 {sha256(content)}"
    )
    assert installed(machine).read_bytes() == elf()
    assert installed(machine).stat().st_mode & 0o777 == 0o755
    backend = {"url": f"https://127.0.0.1:{program.ports[0]}/webhook", "ca": str(machine.places.tls / "ca.crt")}
    assert machine.settings()["authentication_backend"] == machine.settings()["authorization_backend"] == backend
    assert machine.settings()["upstream_compatible"] is True
    command = next(line for line in unit_file(machine).splitlines() if line.startswith("ExecStart="))
    assert command.startswith(f"ExecStart={installed(machine)} --listen=127.0.0.1:{program.ports[0]} ")
    handed = f"/run/credentials/kubernetes-keystone-upstream-{program.ports[0]}.service/keystone-policy-file"
    assert f"--keystone-policy-file={handed}" in command
    assert f"LoadCredential=keystone-policy-file:{machine.places.policy}" in unit_file(machine).splitlines()
    assert "DynamicUser=yes" in unit_file(machine).splitlines()
    assert "NoNewPrivileges=yes" in unit_file(machine).splitlines()
    assert not (machine.places.state / "downloads").exists()


def test_what_is_in_place_is_not_downloaded_or_restarted_again(unit, machine, site, program):
    site.files["/x"] = elf()
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()
    site.files.clear()
    machine.forget_calls()

    assert isinstance(unit.run("update_status"), ops.ActiveStatus)
    assert site.asked == ["/x"]
    assert machine.calls == []


def test_a_named_checksum_that_does_not_fit_says_both_and_changes_nothing(unit, machine, site, program):
    site.files["/x"] = elf()
    status = unit.configure(k8s_keystone_auth_url=f"{site.url}/x", k8s_keystone_auth_sha256="a" * 64).run()

    assert isinstance(status, ops.BlockedStatus)
    assert f"k8s-keystone-auth-sha256: expected {'a' * 64}" in status.message
    assert sha256(elf()) in status.message
    assert kept(machine) == set()


def test_another_file_than_the_first_is_refused_until_the_option_names_it(unit, machine, site, program):
    site.files |= {"/x": elf("one"), "/y": elf("two")}
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()
    unit_before, settings_before = unit_file(machine), machine.settings()
    machine.forget_calls()

    status = unit.configure(k8s_keystone_auth_url=f"{site.url}/y").run()
    assert isinstance(status, ops.BlockedStatus)
    assert f"expected {sha256(elf('one'))} as first downloaded" in status.message
    assert f"k8s-keystone-auth-sha256={sha256(elf('two'))}" in status.message
    assert (unit_file(machine), machine.settings()) == (unit_before, settings_before)
    assert machine.calls == []

    assert isinstance(unit.configure(k8s_keystone_auth_sha256=sha256(elf("two"))).run(), ops.ActiveStatus)
    assert installed(machine).read_bytes() == elf("two")
    assert kept(machine) == {elf("one"), elf("two")}


def test_a_redirect_to_https_is_followed(unit, machine, site, program):
    site.files["/y"] = elf()
    site.redirects["/x"] = "/y"

    assert isinstance(unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run(), ops.ActiveStatus)


@pytest.mark.parametrize(
    ("redirect", "complaint"),
    [
        ("http://127.0.0.1:1/y", "only https is followed"),
        ("file:///etc/shadow", "only https is followed"),
        ("https://[::1/y", "what is no URL"),
        ("https://a.example:port/y", "what is no URL"),
        ("/x", "more than 5 times"),
    ],
)
def test_a_redirect_elsewhere_or_in_a_circle_is_not_followed(unit, site, redirect, complaint):
    site.redirects["/x"] = redirect
    status = unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()

    assert isinstance(status, ops.BlockedStatus)
    assert complaint in status.message


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"<html>", "is neither a Linux binary nor a tar or zip archive"),
        (tar(("k8s-keystone-auth", elf()))[:-40], "is neither a Linux binary nor a tar or zip archive"),
        (tar(("README", b"")), "holds no file named k8s-keystone-auth"),
        (zipped(("README", b"")), "holds no file named k8s-keystone-auth"),
        (tar(("a/k8s-keystone-auth", elf()), ("b/k8s-keystone-auth", elf())), "more than one file"),
        (zipped(("a/k8s-keystone-auth", elf()), ("b/k8s-keystone-auth", elf())), "more than one file"),
        (tar(link="/etc/shadow"), "holds no file named k8s-keystone-auth"),
        (tar(("k8s-keystone-auth", b"#!/bin/sh\n")), "is no Linux binary"),
        (elf(machine=8), "another kind of machine"),
        (None, "was answered with 404"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)  # fmt: skip
def test_what_is_not_the_program_is_refused_with_the_reason(unit, machine, site, content, complaint):
    if content is not None:
        site.files["/x"] = content
    status = unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()

    assert isinstance(status, ops.BlockedStatus)
    assert status.message.startswith("k8s-keystone-auth-url: ")
    assert complaint in status.message
    assert kept(machine) == set()


def test_what_comes_with_a_redirect_is_not_read(unit, site, program, monkeypatch):
    site.files["/y"] = elf()
    site.redirects["/x"], site.endless = "/y", True
    assert isinstance(unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run(), ops.ActiveStatus)


def test_no_path_of_an_archive_leads_out_of_our_folder(unit, machine, site, program, tmp_path):
    site.files["/x"] = tar(("../../../../evil", b"evil"), ("../../k8s-keystone-auth", elf()), ("/etc/evil", b"evil"))
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()

    assert installed(machine).read_bytes() == elf()
    assert not list(tmp_path.rglob("*evil*"))


def test_more_than_the_bound_is_not_taken(unit, site, monkeypatch):
    monkeypatch.setattr(upstream, "MOST_BYTES", 2**20)
    site.files["/x"] = elf() + bytes(2**20)

    assert "gives more than 1 MiB" in unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run().message


def test_a_download_that_trickles_is_given_up_in_time(unit, site, monkeypatch):
    monkeypatch.setattr(download, "SECONDS", 0.3)
    site.files["/x"], site.trickles = elf() + bytes(100), True

    began = time.monotonic()
    assert "has not come within" in unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run().message
    assert time.monotonic() - began < 2


def test_a_name_in_an_archive_that_claims_to_be_huge_is_not_read(unit, site):
    name = tarfile.TarInfo("././@LongLink")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 2**32
    site.files["/x"] = gzip.compress(name.tobuf() + bytes(2**20))

    status = unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()
    assert isinstance(status, ops.BlockedStatus)
    assert f"a header of {2**32} bytes" in status.message


@pytest.mark.parametrize("pack", [tar, zipped])
def test_a_small_archive_that_unpacks_to_too_much_is_not_unpacked(unit, site, monkeypatch, pack):
    monkeypatch.setattr(archive, "UNPACKED_BYTES", 2**20)
    site.files["/x"] = pack(("k8s-keystone-auth", elf() + bytes(2**21)))

    assert "more than 1 MiB" in unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run().message


@pytest.mark.parametrize("length", [pytest.param("9" * 5000, id="long"), "\xb2", "+3", "1e3"])
def test_a_length_that_is_none_is_not_counted_with(unit, site, program, length):
    site.files["/x"], site.length = elf(), length
    status = unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()

    assert isinstance(status, (ops.ActiveStatus, ops.BlockedStatus))


def test_a_certificate_that_does_not_verify_is_not_believed(unit, site, monkeypatch):
    monkeypatch.undo()
    with (
        download.Web("") as web,
        pytest.raises(ConfigError, match=r"does not verify .* k8s-keystone-auth-ca"),
    ):
        web.fetch(f"{site.url}/x", Path("/dev/null"), 1)


def test_a_ca_of_ones_own_is_believed_beside_the_machines(unit, site, program, authority, monkeypatch):
    monkeypatch.setattr(download, "system_ca", reach.system_ca)
    site.files["/x"] = elf()
    ca = authority.ca.read_text()

    assert isinstance(unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run(), ops.BlockedStatus)
    assert isinstance(unit.configure(k8s_keystone_auth_ca=ca).run(), ops.ActiveStatus)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("dead", "does not answer"),
        pytest.param("deaf", "not as a TokenReview's webhook", marks=pytest.mark.slow),
        pytest.param("open", "lets in a token", marks=pytest.mark.slow),
    ],
)
def test_a_program_that_is_no_good_is_never_switched_to(unit, machine, site, program, content, complaint):
    site.files |= {"/x": elf("one"), "/y": elf(content)}
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()
    before = (machine.settings(), unit_file(machine), machine.places.state.joinpath("upstream.json").read_text())
    machine.forget_calls()
    new = {"k8s_keystone_auth_url": f"{site.url}/y", "k8s_keystone_auth_sha256": sha256(elf(content))}

    status = unit.configure(**new).run()
    assert isinstance(status, ops.BlockedStatus)
    assert f"does not run: {'' if content == 'dead' else 'answers' if content == 'deaf' else 'lets'}" in status.message
    assert complaint in status.message
    assert "what was in force stays" in status.message
    assert before == (
        machine.settings(), unit_file(machine), machine.places.state.joinpath("upstream.json").read_text(),
    )  # fmt: skip
    assert not [call for call in machine.calls if upstream.service(program.ports[0]) in call]
    assert not machine.active(upstream.service(program.ports[1]))
    assert kept(machine) == {elf("one")}


@pytest.mark.slow
def test_a_program_that_is_no_good_is_not_downloaded_at_each_hook(unit, site, program):
    site.files["/x"] = elf("dead")
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x")
    for _ in range(3):
        assert "nothing was put behind the endpoint" in unit.run().message
    assert site.given == len(elf("dead"))

    site.files["/x"] = elf("good")
    assert isinstance(unit.run("update_status"), ops.ActiveStatus)


def test_a_first_program_that_does_not_run_is_not_what_has_to_come_from_then_on(unit, machine, site, program):
    unit.run()
    site.files |= {"/x": elf("dead"), "/y": elf("good")}

    assert isinstance(unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run(), ops.BlockedStatus)
    assert machine.settings()["authentication_backend"] is None
    assert not [path for path in machine.places.units.iterdir() if "upstream" in path.name]
    assert isinstance(unit.configure(k8s_keystone_auth_url=f"{site.url}/y").run(), ops.ActiveStatus)
    assert installed(machine).read_bytes() == elf("good")


def test_a_new_program_is_asked_on_another_port_before_it_is_put_behind(unit, machine, site, program):
    site.files |= {"/x": elf("one"), "/y": elf("two")}
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()
    assert program.in_force == program.ports[0]
    machine.forget_calls()
    program.asked.clear()

    unit.configure(k8s_keystone_auth_url=f"{site.url}/y", k8s_keystone_auth_sha256=sha256(elf("two"))).run()
    assert program.in_force == program.ports[1]
    assert program.asked == [(program.ports[1], "TokenReview"), (program.ports[1], "SubjectAccessReview")]
    first, second = (upstream.service(port) for port in program.ports)
    order = [call for call in machine.calls if first in call or second in call]
    assert order.index(f"start {second}") < order.index(f"disable --now --quiet {first}")
    assert not machine.active(first)
    assert not (machine.places.units / first).exists()


@pytest.mark.parametrize("back", ["by the checksum", "by the URL"])
def test_the_way_back_is_one_option_and_no_download(unit, machine, site, program, back):
    site.files |= {f"/{name}": elf(name) for name in ("one", "two", "three")}
    unit.configure(k8s_keystone_auth_url=f"{site.url}/one").run()
    for name in ("two", "three"):
        new = {"k8s_keystone_auth_url": f"{site.url}/{name}", "k8s_keystone_auth_sha256": sha256(elf(name))}
        unit.configure(**new).run()
    assert kept(machine) == {elf("two"), elf("three")}
    unit.configure(k8s_keystone_auth_sha256="").run()
    asked = len(site.asked)

    one = {"k8s_keystone_auth_sha256": sha256(elf("two"))} if back == "by the checksum" else {
        "k8s_keystone_auth_url": f"{site.url}/two"
    }  # fmt: skip
    assert sha256(elf("two")) in unit.configure(**one).run().message
    assert installed(machine).read_bytes() == elf("two")
    assert len(site.asked) == asked
    assert kept(machine) == {elf("two"), elf("three")}


def test_a_charm_that_died_before_the_turn_goes_on_with_what_it_had_started(unit, machine, site, program, monkeypatch):
    site.files |= {"/x": elf("one"), "/y": elf("two")}
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()
    new = {"k8s_keystone_auth_url": f"{site.url}/y", "k8s_keystone_auth_sha256": sha256(elf("two"))}
    unit.configure(**new)
    with monkeypatch.context() as patched:
        patched.setattr(authenticator, "write_settings", _killed)
        with pytest.raises(Exception, match="killed"):
            unit.run()
    assert program.running(program.in_force) == "one"

    with monkeypatch.context() as patched:
        patched.setattr(upstream, "settle", _killed)
        with pytest.raises(Exception, match="killed"):
            unit.run()
    assert program.running(program.in_force) == "two"
    machine.forget_calls()
    assert isinstance(unit.run(), ops.ActiveStatus)
    assert program.running(program.in_force) == "two"
    assert [program.running(port) for port in program.ports] == [None, "two"]
    assert not [call for call in machine.calls if call.startswith("start") and "upstream" in call]


@pytest.mark.slow
def test_a_charm_killed_at_any_step_leaves_a_program_behind_the_endpoint(unit, machine, site, program, monkeypatch):
    site.files |= {"/one": elf("one"), "/two": elf("two")}
    unit.configure(k8s_keystone_auth_url=f"{site.url}/one", k8s_keystone_auth_sha256=sha256(elf("one"))).run()
    kill_at = 0
    for kill_at in itertools.count(1):
        name = ["one", "two"][kill_at % 2]
        unit.configure(k8s_keystone_auth_url=f"{site.url}/{name}", k8s_keystone_auth_sha256=sha256(elf(name)))
        steps = 0

        def dying(step, kill_at=kill_at):
            def counted(*args, **named):
                nonlocal steps
                steps += 1
                if steps == kill_at:
                    raise RuntimeError("killed")
                return step(*args, **named)

            return counted

        with monkeypatch.context() as patched:
            for module, step in ((host, "systemctl"), (files, "write"), (files, "remove"), (upstream.shutil, "rmtree")):
                patched.setattr(module, step, dying(getattr(module, step)))
            with contextlib.suppress(Exception):
                unit.run()
        assert program.in_force is not None
        assert program.running(program.in_force) in ("one", "two")
        assert isinstance(unit.run(), ops.ActiveStatus)
        assert sorted(filter(None, map(program.running, program.ports))) == [name]
        assert program.running(program.in_force) == name
        if steps < kill_at:
            break
    assert kill_at > 15


def _killed(*args: object, **named: object) -> None:
    raise RuntimeError("killed")


def test_what_an_older_charm_had_is_not_forgotten_by_an_upgrade(unit, machine, site, program):
    site.files |= {"/x": elf("one"), "/y": elf("two")}
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()
    old = machine.places.units / "kubernetes-keystone-upstream.service"
    old.write_text("[Service]\n")
    (machine.folder / "active" / old.name).touch()
    assert isinstance(unit.run("upgrade_charm"), ops.ActiveStatus)
    assert not old.exists()
    assert not machine.active(old.name)

    record = machine.places.state / "upstream.json"
    record.write_text(json.dumps(json.loads(record.read_text())["versions"][0]))

    assert f"expected {sha256(elf('one'))}" in unit.configure(k8s_keystone_auth_url=f"{site.url}/y").run().message


# -- downloads that break off


def test_a_download_that_is_cut_goes_on_where_it_ended(unit, machine, site, program):
    content = elf("x" * 100_000)
    site.files["/x"], site.cuts = content, [30_000, 0, 40_000]
    assert isinstance(unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run(), ops.ActiveStatus)

    assert site.given == len(content)
    assert installed(machine).read_bytes() == content


def test_a_download_that_did_not_come_in_one_hook_goes_on_in_the_next(unit, machine, site, program):
    content = elf("x" * 100_000)
    site.files["/x"], site.cuts = content, [30_000, 0, 0, 0]
    status = unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()
    assert isinstance(status, ops.BlockedStatus)
    assert "cannot be downloaded" in status.message

    assert isinstance(unit.run("update_status"), ops.ActiveStatus)
    assert site.given == len(content)
    assert installed(machine).read_bytes() == content


@pytest.mark.parametrize("tagged", [True, False])
def test_a_download_that_became_another_meanwhile_is_begun_anew(unit, machine, site, program, tagged):
    site.files["/x"], site.cuts, site.tagged = elf("x" * 100_000), [30_000, 0, 0, 0], tagged
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()
    site.files["/x"] = content = elf("y" * 100_000)

    assert isinstance(unit.run("update_status"), ops.ActiveStatus)
    assert installed(machine).read_bytes() == content


def test_what_is_left_of_another_url_is_gone(unit, machine, site):
    site.files |= {"/x": elf("x" * 1000), "/y": b"none"}
    site.cuts = [300, 0, 0, 0]
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()
    unit.configure(k8s_keystone_auth_url=f"{site.url}/y").run()

    left = [path.read_bytes() for path in (machine.places.state / "downloads").rglob("download")]
    assert left == [b"none"]


def test_a_signature_in_a_url_is_in_no_message_and_no_file_that_others_can_read(unit, machine, site, program):
    url = f"{site.url}/x?signature=hunter2"
    assert "hunter2" not in unit.configure(k8s_keystone_auth_url=url).run().message
    site.redirects["/x?signature=hunter2"] = "https://127.0.0.1:1/y?signature=hunter3"
    status = unit.configure(k8s_keystone_auth_url=url).run()
    assert isinstance(status, ops.BlockedStatus)
    assert "hunter" not in status.message
    del site.redirects["/x?signature=hunter2"]
    site.files["/x?signature=hunter2"] = elf()
    assert isinstance(unit.configure(k8s_keystone_auth_url=url).run(), ops.ActiveStatus)
    for path in machine.places.root.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o077:
            assert b"hunter" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("host", "no_proxy", "without"),
    [
        ("mirror.example", "", False),
        ("mirror.example", "mirror.example", True),
        ("mirror.example", "other.example, Example", True),
        ("mirror.example", ".example", True),
        ("mirror.example", "*.example", True),
        ("mirror.example", "irror.example", False),
        ("mirror.example", "mirror.example:444", False),
        ("mirror.example", "mirror.example:443", True),
        ("mirror.example", "*", True),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2", False),
        ("11.1.2.3", "10.0.0.0/8,fd00::/8", False),
        ("fd00::1", "10.0.0.0/8,fd00::/8", True),
        ("fd00::1", "[fd00::1]:443", True),
        ("fd00::1", "[fd00::1]:444", False),
    ],
)
def test_who_is_reached_without_the_proxy(host, no_proxy, without):
    assert download.bypassed(host, 443, no_proxy) is without


# -- the one folder


def put(machine, name: str, content: bytes) -> str:
    """Put a file in; gives its URL."""
    machine.places.incoming.mkdir(parents=True, exist_ok=True)
    (machine.places.incoming / name).write_bytes(content)
    return f"file:///var/lib/kubernetes-keystone/incoming/{name}"


def test_a_file_in_the_one_folder_is_put_behind_the_endpoint(unit, machine, program):
    url = put(machine, "new.tar.gz", content := tar(("k8s-keystone-auth", elf())))
    status = unit.configure(k8s_keystone_auth_url=url, k8s_keystone_auth_sha256=sha256(content)).run()

    assert isinstance(status, ops.ActiveStatus)
    assert installed(machine).read_bytes() == elf()
    (machine.places.incoming / "new.tar.gz").unlink()
    assert isinstance(unit.run("update_status"), ops.ActiveStatus)


def test_a_file_that_is_not_there_or_another_is_refused(unit, machine):
    url = put(machine, "new", elf())
    status = unit.configure(k8s_keystone_auth_url=url, k8s_keystone_auth_sha256="a" * 64).run()
    assert f"expected {'a' * 64}, but {url} gave {sha256(elf())}" in status.message
    (machine.places.incoming / "new").unlink()
    assert "is not on this unit; as root there: install -D" in unit.run().message


@pytest.mark.parametrize("what", ["file", "folder", "folder above", "pipe", "folder of its name"])
def test_no_link_leads_to_the_file(unit, machine, tmp_path, what):
    url = put(machine, "new", elf())
    file, folder = machine.places.incoming / "new", machine.places.incoming
    elsewhere = tmp_path / "elsewhere"
    if what == "file":
        file.rename(elsewhere)
        file.symlink_to(elsewhere)
    elif what.startswith("folder") and what != "folder of its name":
        moved = folder if what == "folder" else folder.parent.parent
        moved.rename(elsewhere)
        moved.symlink_to(elsewhere)
    else:
        file.unlink()
        os.mkfifo(file) if what == "pipe" else file.mkdir()
    status = unit.configure(k8s_keystone_auth_url=url, k8s_keystone_auth_sha256=sha256(elf())).run()
    assert isinstance(status, ops.BlockedStatus)
    assert "link" in status.message


def test_a_file_that_is_too_big_is_not_taken(unit, machine, monkeypatch):
    monkeypatch.setattr(upstream, "MOST_BYTES", 2**20)
    url = put(machine, "new", elf() + bytes(2**20))
    status = unit.configure(k8s_keystone_auth_url=url, k8s_keystone_auth_sha256="a" * 64).run()
    assert "has more than 1 MiB" in status.message


# -- the resource


def test_an_attached_resource_is_put_behind_the_endpoint(unit, machine, program, tmp_path):
    (tmp_path / "one").write_bytes(tar(("k8s-keystone-auth", elf("one"))))
    (tmp_path / "two").write_bytes(elf("two"))
    status = unit.attach(tmp_path / "one").run("upgrade_charm")
    assert isinstance(status, ops.ActiveStatus)
    told = f"k8s-keystone-auth (resource) sha256 {sha256((tmp_path / 'one').read_bytes())}"
    assert status.message.endswith(f"upstream-compatible names, {told}")
    assert installed(machine).read_bytes() == elf("one")

    # Whoever attaches another has said which one it shall be.
    assert isinstance(unit.attach(tmp_path / "two").run("upgrade_charm"), ops.ActiveStatus)
    assert installed(machine).read_bytes() == elf("two")
    unit.configure(k8s_keystone_auth_sha256=sha256((tmp_path / "one").read_bytes())).run()
    assert installed(machine).read_bytes() == elf("one")


def test_an_empty_resource_is_none_and_ends_one(unit, machine, program, tmp_path):
    (tmp_path / "one").write_bytes(elf())
    (tmp_path / "none").touch()
    unit.attach(tmp_path / "one").run()
    assert unit.attach(tmp_path / "none").run().message == "ready: charmed, no policy, RBAC alone decides"
    assert machine.settings()["upstream_compatible"] is False


def test_a_url_comes_before_the_resource(unit, machine, site, program, tmp_path):
    (tmp_path / "one").write_bytes(elf("attached"))
    site.files["/x"] = elf("named")
    unit.attach(tmp_path / "one").configure(k8s_keystone_auth_url=f"{site.url}/x").run()
    assert installed(machine).read_bytes() == elf("named")
    unit.configure(k8s_keystone_auth_url="").run()
    assert installed(machine).read_bytes() == elf("attached")


def test_a_resource_that_is_no_good_is_named_as_such(unit, machine, program, tmp_path):
    (tmp_path / "one").write_bytes(b"#!/bin/sh\n")
    assert unit.attach(tmp_path / "one").run().message.startswith("resource k8s-keystone-auth: is neither")
    (tmp_path / "one").write_bytes(elf("dead"))
    status = unit.run()
    assert status.message.startswith("resource k8s-keystone-auth: what it names does not run")
    (tmp_path / "one").write_bytes(elf("good"))
    assert "gave" in unit.configure(k8s_keystone_auth_sha256="a" * 64).run().message


# -- the registry's account


@pytest.mark.parametrize(
    ("juju", "content", "complaint"),
    [
        ("3.6.9", None, "cannot be read: juju grant-secret secret:d0000000000000000000 kubernetes-keystone"),
        ("3.6.9", {"user": "me", "password": "hunter2"}, "has to have the keys username and password"),
        ("2.9.51", None, "this Juju has no secrets (3.3 has): name a file of root's"),
    ],
)
def test_a_secret_that_is_no_good_is_named_and_not_shown(unit, monkeypatch, juju, content, complaint):
    monkeypatch.setattr("image.fetch", lambda web, reference, digest, login, folder: login())
    name = "secret:d0000000000000000000"
    unit.context.juju_version = juju
    if content:
        secret = ops.testing.Secret(content, id=name, owner=None)
        unit.state = dataclasses.replace(unit.state, secrets={secret})
    image = f"oci://registry.example/x@sha256:{'a' * 64}"
    status = unit.configure(k8s_keystone_auth_url=image, k8s_keystone_auth_credentials=name).run()

    assert isinstance(status, ops.BlockedStatus)
    assert status.message.startswith("k8s-keystone-auth-credentials: ")
    assert complaint in status.message
    assert "hunter2" not in status.message


# -- changes while it is in force


def test_a_changed_policy_starts_another_of_the_program_which_reads_it_once(unit, machine, site, program):
    site.files["/x"] = elf()
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x", policy=POLICY).run()
    before = program.in_force
    unit.configure(policy=POLICY * 2).run()

    assert {before, program.in_force} == set(program.ports)
    assert len(site.asked) == 1


def test_a_reloaded_policy_reaches_the_program_too(unit, machine, site, program):
    site.files["/x"] = elf()
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x", policy=POLICY).run()
    before = program.in_force
    machine.places.policy.write_text("[]")  # somebody's hand, and a restart of the program with it
    (machine.places.state / f"started-{upstream.service(before)}").write_text("with another policy")
    unit.action("reload-policy")

    assert {before, program.in_force} == set(program.ports)
    assert not machine.active(upstream.service(before))
    assert json.loads(machine.places.policy.read_text()) == [{"match": []}]


def test_without_the_option_the_built_in_one_is_back_and_the_program_gone(unit, machine, wiring, site, program):
    site.files["/x"] = elf()
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()
    status = unit.configure(k8s_keystone_auth_url="").run()

    assert status == ops.ActiveStatus("ready: charmed, no policy, RBAC alone decides")
    assert machine.settings()["authentication_backend"] is None
    assert [program.running(port) for port in program.ports] == [None, None]
    assert wiring.restarts == 1


def test_removal_takes_the_program_along(unit, machine, site, program):
    site.files["/x"] = elf()
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()
    unit.run("relation_broken")

    assert machine.snapshot() == {}
    assert [program.running(port) for port in program.ports] == [None, None]


def test_the_units_are_what_systemd_understands(unit, machine, site, program):
    site.files["/x"] = elf()
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x", policy=POLICY).run()
    analyze = Path("/usr/bin/systemd-analyze")
    if not analyze.exists():
        pytest.skip("no systemd-analyze here")
    for name in (upstream.service(program.ports[0]), "kubernetes-keystone.service", "kubernetes-keystone.socket"):
        # The programs are no real ones; every line has to be known all the same.
        done = subprocess.run(
            [analyze, "verify", machine.places.units / name], capture_output=True, text=True, check=False
        )
        assert "Unknown" not in done.stderr
        assert "Failed to parse" not in done.stderr
