"""An operator's own k8s-keystone-auth, downloaded from a real HTTPS server on loopback."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import platform
import socket
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
import pytest

import upstream
import webhook
from config import Listen
from files import Places

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
    """A web server with files, redirects and moods."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    trickles: bool = False
    asked: list[str] = field(default_factory=list)


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
                self.send_response(302)
                self.send_header("Location", made.redirects[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = made.files.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            with contextlib.suppress(OSError):
                for at in range(60 if made.trickles else 0):
                    self.wfile.write(body[at : at + 1] if body else b"")
                    time.sleep(0.05)
                self.wfile.write(body or b"")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server.certificate, authority.server.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    made.url = f"https://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(upstream, "_system_ca", lambda: str(authority.ca))
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def program(machine, monkeypatch) -> Iterator[socket.socket]:
    """Something that answers TLS with our certificate on the program's port, whenever it is asked."""
    listener = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(upstream, "UPSTREAM_PORT", listener.getsockname()[1])
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                plain, _ = listener.accept()
                with plain:
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    tls = machine.places.tls
                    context.load_cert_chain(tls / "upstream.crt", tls / "upstream.key")
                    context.wrap_socket(plain, server_side=True).close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener
    over.set()
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def unit_file(machine) -> str:
    return (machine.places.units / upstream.SERVICE).read_text()


def installed(machine) -> Path:
    return next((machine.places.opt / "upstream").glob("*/k8s-keystone-auth"))


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
    backend = {"url": f"https://127.0.0.1:{upstream.UPSTREAM_PORT}/webhook", "ca": str(machine.places.tls / "ca.crt")}
    assert machine.settings()["authentication_backend"] == machine.settings()["authorization_backend"] == backend
    assert machine.settings()["upstream_compatible"] is True
    command = next(line for line in unit_file(machine).splitlines() if line.startswith("ExecStart="))
    assert command.startswith(f"ExecStart={installed(machine)} --listen=127.0.0.1:{upstream.UPSTREAM_PORT} ")
    assert (
        "--keystone-policy-file=/run/credentials/kubernetes-keystone-upstream.service/keystone-policy-file" in command
    )
    assert f"LoadCredential=keystone-policy-file:{machine.places.policy}" in unit_file(machine).splitlines()
    assert "DynamicUser=yes" in unit_file(machine).splitlines()
    assert "NoNewPrivileges=yes" in unit_file(machine).splitlines()
    assert list((machine.places.state / "downloads").iterdir()) == []


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
    assert not (machine.places.opt / "upstream").exists()


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
    assert len(list((machine.places.opt / "upstream").iterdir())) == 1


def test_a_redirect_to_https_is_followed(unit, machine, site, program):
    site.files["/y"] = elf()
    site.redirects["/x"] = "/y"

    assert isinstance(unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run(), ops.ActiveStatus)


@pytest.mark.parametrize(
    ("redirect", "complaint"),
    [
        ("http://127.0.0.1:1/y", "only https is followed"),
        ("file:///etc/shadow", "only https is followed"),
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
    assert not (machine.places.opt / "upstream").exists()


def test_no_path_of_an_archive_leads_out_of_our_folder(unit, machine, site, program, tmp_path):
    site.files["/x"] = tar(("../../../../evil", b"evil"), ("../../k8s-keystone-auth", elf()), ("/etc/evil", b"evil"))
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()

    assert installed(machine).read_bytes() == elf()
    assert not list(tmp_path.rglob("*evil*"))


def test_more_than_the_bound_is_not_taken(unit, site, monkeypatch):
    monkeypatch.setattr(upstream, "DOWNLOAD_BYTES", 2**20)
    site.files["/x"] = elf() + bytes(2**20)

    assert "gives more than 1 MiB" in unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run().message


def test_a_download_that_trickles_is_given_up_in_time(unit, site, monkeypatch):
    monkeypatch.setattr(upstream, "DOWNLOAD_SECONDS", 0.3)
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
    monkeypatch.setattr(upstream, "UNPACKED_BYTES", 2**20)
    site.files["/x"] = pack(("k8s-keystone-auth", elf() + bytes(2**21)))

    assert "more than 1 MiB" in unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run().message


def test_a_certificate_that_does_not_verify_is_not_believed(unit, site, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(upstream.ConfigError, match="cannot be downloaded"):
        upstream._download(f"{site.url}/x", Path("/dev/null"))


@pytest.mark.slow
def test_a_program_that_does_not_come_up_gives_way_to_the_one_before(unit, machine, site, program):
    site.files |= {"/x": elf("one"), "/y": elf("two")}
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()
    before = unit_file(machine)
    program.shutdown(socket.SHUT_RDWR)
    program.close()

    status = unit.configure(k8s_keystone_auth_url=f"{site.url}/y", k8s_keystone_auth_sha256=sha256(elf("two"))).run()
    assert isinstance(status, ops.BlockedStatus)
    assert "does not run" in status.message
    assert unit_file(machine) == before
    assert Path(before.partition("ExecStart=")[2].split()[0]).read_bytes() == elf("one")


def test_a_first_program_that_does_not_come_up_never_stands_behind_the_endpoint(unit, machine, site, monkeypatch):
    monkeypatch.setattr(upstream, "UPSTREAM_PORT", 1)
    unit.run()
    site.files["/x"] = elf()

    assert isinstance(unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run(), ops.BlockedStatus)
    assert machine.settings()["authentication_backend"] is None
    assert not (machine.places.units / upstream.SERVICE).exists()


def test_a_changed_policy_restarts_the_program_which_reads_it_once(unit, machine, site, program):
    site.files["/x"] = elf()
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x", policy=POLICY).run()
    machine.forget_calls()
    unit.configure(policy=POLICY * 2).run()

    assert f"restart {upstream.SERVICE}" in machine.calls


def test_a_reloaded_policy_reaches_the_program_too(unit, machine, site, program):
    site.files["/x"] = elf()
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x", policy=POLICY).run()
    machine.forget_calls()
    machine.places.policy.write_text("[]")  # somebody's hand, and a restart of the program with it
    (machine.places.state / "upstream-started").write_text("with another policy")
    unit.action("reload-policy")

    assert f"restart {upstream.SERVICE}" in machine.calls
    assert json.loads(machine.places.policy.read_text()) == [{"match": []}]


def test_without_the_option_the_built_in_one_is_back_and_the_program_gone(unit, machine, wiring, site, program):
    site.files["/x"] = elf()
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()
    status = unit.configure(k8s_keystone_auth_url="").run()

    assert status == ops.ActiveStatus("ready: charmed, no policy, RBAC alone decides")
    assert machine.settings()["authentication_backend"] is None
    assert not machine.active(upstream.SERVICE)
    assert not (machine.places.units / upstream.SERVICE).exists()
    assert wiring.restarts == 1


def test_removal_takes_the_program_along(unit, machine, site, program):
    site.files["/x"] = elf()
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x").run()
    unit.run("relation_broken")

    assert machine.snapshot() == {}
    assert not machine.active(upstream.SERVICE)


def test_the_units_are_what_systemd_understands(unit, machine, site, program):
    site.files["/x"] = elf()
    unit.configure(k8s_keystone_auth_url=f"{site.url}/x", policy=POLICY).run()
    analyze = Path("/usr/bin/systemd-analyze")
    if not analyze.exists():
        pytest.skip("no systemd-analyze here")
    for name in (upstream.SERVICE, "kubernetes-keystone.service", "kubernetes-keystone.socket"):
        # The programs are no real ones; every line has to be known all the same.
        done = subprocess.run(
            [analyze, "verify", machine.places.units / name], capture_output=True, text=True, check=False
        )
        assert "Unknown" not in done.stderr
        assert "Failed to parse" not in done.stderr
