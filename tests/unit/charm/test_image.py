"""The program out of images' layers, and registries that mean no good."""

from __future__ import annotations

import contextlib
import http.server
import json
import platform
import random
import ssl
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import archive
import image
from download import Web
from errors import ConfigError
from image import Login, Reference
from testbed.certificates import Authority
from testbed.registry import digest_of, file, folder, gone, layer, link

ELF = b"\x7fELF one"
HERE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def elf(name: str = "one") -> bytes:
    return b"\x7fELF " + name.encode()


BIN = file("bin/k8s-keystone-auth", elf())


@pytest.mark.parametrize("packed", ["gzip", "zstd", ""])
@pytest.mark.parametrize(
    "layers",
    [
        [[BIN]],
        [[folder("./"), folder("./bin"), file("./bin/k8s-keystone-auth", elf())]],
        [[file("/bin/k8s-keystone-auth", elf())]],
        [[file("etc/passwd", b"")], [BIN], [file("etc/ssl/certs", b"")]],
        # replaced, in one way or another
        [[file("bin/k8s-keystone-auth", elf("old"))], [BIN]],
        [[file("bin", elf("old"))], [BIN]],
        [[file("old/k8s-keystone-auth", elf("old"))], [gone("old/k8s-keystone-auth"), BIN]],
        [[file("old/k8s-keystone-auth", elf("old"))], [BIN, gone("old/k8s-keystone-auth")]],
        [[file("bin/k8s-keystone-auth", elf("old"))], [BIN, gone("bin/")]],
        [[file("a/b/k8s-keystone-auth", elf("old"))], [gone("a")], [BIN]],
        [[file("a/b/k8s-keystone-auth", elf("old"))], [gone("a/"), BIN]],
        [[file("a/k8s-keystone-auth", elf("old"))], [file("a", b"no folder any more"), BIN]],
        [[file("a/k8s-keystone-auth", elf("old"))], [link("a", "bin"), BIN]],
        [[BIN], [gone("sbin/k8s-keystone-auth"), gone("nowhere/"), gone("etc/nowhere/x")]],
        # links
        [[BIN, link("k8s-keystone-auth", "bin/k8s-keystone-auth")]],
        [[file("app/server", elf()), link("bin/k8s-keystone-auth", "/app/server")]],
        [[file("app/server", elf()), link("bin/k8s-keystone-auth", "../app/../app/./server")]],
        [[link("bin/k8s-keystone-auth", "../../../app/server")], [file("app/server", elf())]],
        [[file("app/server", elf()), link("bin/k8s-keystone-auth", "app/server", hard=True)]],
        [[file("app/server", elf())], [link("bin/k8s-keystone-auth", "/app/server", hard=True)]],
        [[BIN, link("other/k8s-keystone-auth", "bin/k8s-keystone-auth", hard=True)]],
        [[BIN, link("other/k8s-keystone-auth", "bin/k8s-keystone-auth", hard=True)], [gone("bin/")]],
        [[file("app/server", elf()), link("x", "app/server", hard=True)], [link("k8s-keystone-auth", "x")]],
        [[BIN, link("lost/k8s-keystone-auth", "/no/where"), link("a/k8s-keystone-auth", "k8s-keystone-auth")]],
        # through a link to a folder, as in systems whose /bin is /usr/bin
        [[folder("usr/bin"), link("bin", "usr/bin")], [file("bin/k8s-keystone-auth", elf("old"))],
         [file("usr/bin/k8s-keystone-auth", elf())]],
        [[link("bin", "usr/bin"), file("usr/bin/k8s-keystone-auth", elf("old"))], [gone("bin/k8s-keystone-auth")],
         [file("sbin/k8s-keystone-auth", elf())]],
        [[link("a", "b"), link("b", "a"), file("a/x", b""), BIN]],
    ],
)  # fmt: skip
def test_the_program_is_the_one_that_a_container_would_run(tmp_path, layers, packed):
    paths = write(tmp_path, *(layer(*entries, packed=packed) for entries in layers))
    image.extract(paths, tmp_path / "program")
    assert (tmp_path / "program").read_bytes() == elf()


@pytest.mark.parametrize(
    ("layers", "complaint"),
    [
        ([], "holds no file named"),
        ([[file("bin/other", elf())]], "holds no file named"),
        ([[BIN], [gone("bin/k8s-keystone-auth")]], "holds no file named"),
        ([[BIN], [gone("bin")]], "holds no file named"),
        ([[BIN], [gone("bin/")]], "holds no file named"),
        ([[BIN], [file("bin", b"")]], "holds no file named"),
        ([[BIN], [gone("../bin/k8s-keystone-auth")]], "holds no file named"),
        ([[link("k8s-keystone-auth", "/etc/shadow")]], "holds no file named"),
        ([[link("k8s-keystone-auth", "k8s-keystone-auth")]], "holds no file named"),
        ([[link("k8s-keystone-auth", "no/where", hard=True)]], "holds no file named"),
        ([[folder("k8s-keystone-auth")]], "holds no file named"),
        ([[folder("a/b"), link("a/b/c", "a", hard=True), link("k8s-keystone-auth", "a", hard=True)]], "holds no file"),
        ([[BIN, file("sbin/k8s-keystone-auth", elf())]], "holds more than one file named"),
        ([[file("bin/k8s-keystone-auth", b"#!/bin/sh")]], "is no Linux binary"),
    ],
)
def test_without_the_one_program_an_image_is_refused(tmp_path, layers, complaint):
    with pytest.raises(ConfigError, match=complaint):
        image.extract(write(tmp_path, *(layer(*entries) for entries in layers)), tmp_path / "program")


NOISE = file("bin/k8s-keystone-auth", elf() + random.Random(1).randbytes(5000))


@pytest.mark.parametrize(
    "content",
    [b"no archive", layer(NOISE)[:3000], layer(NOISE, packed="zstd")[:3000], layer(NOISE, packed="")[:3000]],
    ids=["nothing", "gzip", "zstd", "tar"],
)
def test_a_layer_that_cannot_be_read_is_refused(tmp_path, content):
    with pytest.raises(ConfigError, match="image of tar layers"):
        image.extract(write(tmp_path, content), tmp_path / "program")


@pytest.mark.parametrize("packed", ["gzip", "zstd"])
def test_a_small_layer_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(archive, "UNPACKED_BYTES", 2**20)
    big = layer(file("big", bytes(2**21)), BIN, packed=packed)
    assert len(big) < 2**16
    with pytest.raises(ConfigError, match="unpacks to more than 1 MiB"):
        image.extract(write(tmp_path, big), tmp_path / "program")


def test_no_end_of_names_is_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MEMBERS", 10)
    many = layer(*(file(f"{number}", b"") for number in range(12)))
    with pytest.raises(ConfigError, match="more than 10 files"):
        image.extract(write(tmp_path, many), tmp_path / "program")
    monkeypatch.setattr(archive, "NAME_BYTES", 1000)
    with pytest.raises(ConfigError, match="more than 10 files"):
        image.extract(write(tmp_path, layer(file("x" * 2000, b""))), tmp_path / "program")


def test_a_header_of_negative_length_is_not_read_to_the_end(tmp_path):
    pax = tarfile.TarInfo("././@PaxHeader")
    pax.type, pax.size = tarfile.XHDTYPE, -(2**30)
    content = pax.tobuf(tarfile.GNU_FORMAT) + bytes(2**20)
    with pytest.raises(ConfigError, match="image of tar layers"):
        image.extract(write(tmp_path, content), tmp_path / "program")


def write(folder: Path, *layers: bytes) -> list[Path]:
    paths = [folder / f"layer-{number}" for number in range(len(layers))]
    for path, content in zip(paths, layers, strict=True):
        path.write_bytes(content)
    return paths


# -- registries


@dataclass
class Liar:
    """An HTTPS server that answers what a test wants it to, and remembers who asked."""

    host: str = ""
    answers: dict[str, bytes] = field(default_factory=dict)
    challenge: str = ""
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def image(self, content: object, tag: str = "1") -> str:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.answers[f"/v2/x/manifests/{tag}"] = self.answers[f"/v2/x/manifests/{digest_of(body)}"] = body
        return digest_of(body)


@contextlib.contextmanager
def lying(authority: Authority, folder: Path) -> Iterator[Liar]:
    made = Liar()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            who = self.headers.get("Authorization", "")
            made.asked.append((self.path, who))
            path = self.path.partition("?")[0]
            if path in made.redirects:
                self.answer(307, b"", Location=made.redirects[path])
            elif made.challenge and not who and path.startswith("/v2/"):
                self.answer(401, b"", WWW_Authenticate=made.challenge)
            elif path in made.answers:
                self.answer(200, made.answers[path])
            else:
                self.answer(404, b"")

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(body)

    pair = authority.sign("liar", hosts=["127.0.0.1"])
    (folder / "liar.pem").write_bytes(pair.certificate + pair.key)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "liar.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    made.host = f"127.0.0.1:{server.server_address[1]}"
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("registries")


@pytest.fixture
def liar(authority, tmp_path) -> Iterator[Liar]:
    with lying(authority, tmp_path) as made:
        yield made


@pytest.fixture
def pull(liar, authority, tmp_path):
    def made(digest: str, login: Login | None = None, tag: str = "1") -> list[Path]:
        with Web(authority.certificate.decode()) as web:
            target = tmp_path / "layers"
            target.mkdir(exist_ok=True)
            return image.fetch(web, Reference(liar.host, "x", tag, ""), digest, lambda: login, target)

    return made


def one(content: bytes, **changes: object) -> dict[str, object]:
    return {"layers": [{"digest": digest_of(content), "size": len(content), **changes}]}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"no JSON", "is no image that can be read"),
        ({}, "is neither an image"),
        ({**one(b""), "manifests": []}, "is neither an image"),
        ({"fsLayers": [{"blobSum": "sha256:" + "a" * 64}]}, "is neither an image"),
        (one(b"", digest="sha512:" + "a" * 128), "layers.0.digest"),
        (one(b"", digest="sha256:../../../../etc/shadow"), "layers.0.digest"),
        (one(b"", size=-1), "layers.0.size"),
        ({"layers": one(b"")["layers"] * 129}, "at most 128"),  # type: ignore[operator]
        (one(b"", size=2**40), "has more than 256 MiB"),
        ({"manifests": []}, f"not made for linux/{HERE}, but for none"),
    ],
    ids=str,
)
def test_what_is_no_image_is_refused_before_a_layer_is_asked_for(liar, pull, content, complaint):
    digest = liar.image(content)
    with pytest.raises(ConfigError, match=complaint):
        pull(digest)
    assert not [path for path, _ in liar.asked if "/blobs/" in path]


def test_another_image_than_the_digest_says_is_refused(liar, pull):
    liar.image(one(b"x"))
    with pytest.raises(ConfigError, match=f"k8s-keystone-auth-sha256: expected the image sha256:{'a' * 64}"):
        pull(f"sha256:{'a' * 64}")


@pytest.mark.parametrize("given", [b"other", b"one, and more", b"on"])
def test_another_layer_than_the_digest_says_is_refused_and_not_gone_on_from(liar, pull, tmp_path, given):
    digest = liar.image(one(b"one"))
    liar.answers[f"/v2/x/blobs/{digest_of(b'one')}"] = given
    with pytest.raises(ConfigError, match=r"gave another layer than|gives more than"):
        pull(digest)
    liar.answers[f"/v2/x/blobs/{digest_of(b'one')}"] = b"one"
    assert [path.read_bytes() for path in pull(digest)] == [b"one"]


def test_an_index_in_an_index_is_not_followed(liar, pull):
    inner = liar.image({"manifests": []}, tag="inner")
    entry = {"digest": inner, "size": 1, "platform": {"os": "linux", "architecture": HERE}}
    with pytest.raises(ConfigError, match="names an index of indexes"):
        pull(liar.image({"manifests": [entry]}))


LOGIN = Login("me", "hunter2")
SECRET = "Basic bWU6aHVudGVyMg=="


@pytest.mark.parametrize(
    "realm", ["http://127.0.0.1:1/token", "ftp://127.0.0.1/", "//127.0.0.1/", "https://a:b@127.0.0.1/", "file:///etc"]
)
def test_no_account_goes_where_a_registry_should_not_send_it(liar, pull, realm):
    liar.challenge = f'Bearer realm="{realm}",service="s"'
    with pytest.raises(ConfigError, match="only https is taken") as raised:
        pull(liar.image(one(b"x")), LOGIN)
    assert "hunter2" not in str(raised.value)
    assert {who for _, who in liar.asked} == {""}


def test_no_account_goes_on_to_where_a_token_server_leads(liar, pull, authority, tmp_path_factory):
    with lying(authority, tmp_path_factory.mktemp("other")) as other:
        liar.challenge = f'Bearer realm="https://{liar.host}/token",service="s"'
        liar.redirects["/token"] = f"https://{other.host}/token"
        with pytest.raises(ConfigError, match="more than 0 times"):
            pull(liar.image(one(b"x")), LOGIN)
        assert other.asked == []


def test_no_account_goes_along_to_where_layers_lie(liar, pull, authority, tmp_path_factory):
    with lying(authority, tmp_path_factory.mktemp("other")) as other:
        liar.challenge = 'Basic realm="r"'
        digest = liar.image(one(b"one"))
        path = f"/v2/x/blobs/{digest_of(b'one')}"
        liar.redirects[path] = f"https://{other.host}/elsewhere"
        other.answers["/elsewhere"] = b"one"
        assert len(pull(digest, LOGIN)) == 1
        assert (path, SECRET) in liar.asked
        assert other.asked == [("/elsewhere", "")]


def test_no_more_is_asked_for_than_to_pull_whatever_the_registry_wants(liar, pull):
    liar.challenge = f'Bearer realm="https://{liar.host}/token?a=b",service="s & t",scope="repository:x:pull,push"'
    liar.answers["/token"] = json.dumps({"access_token": "t0k"}).encode()
    liar.answers[f"/v2/x/blobs/{digest_of(b'one')}"] = b"one"
    pull(liar.image(one(b"one")), LOGIN)
    asked = [who for path, who in liar.asked if path == "/token?a=b&scope=repository%3Ax%3Apull&service=s%20%26%20t"]
    assert asked == [SECRET]
    assert {who for path, who in liar.asked if "/v2/" in path} == {"", "Bearer t0k"}


@pytest.mark.parametrize(
    ("challenge", "token", "complaint"),
    [
        ("", b"", "401"),
        ("Digest realm=x", b"", "in a way that is not known"),
        ("Bearer service=s", b"", "in a way that is not known"),
        ('Basic realm="r"', b"", "set k8s-keystone-auth-credentials"),
        ("TOKEN", b"nothing", "gives no token"),
        ("TOKEN", b"[]", "gives no token"),
        ("TOKEN", json.dumps({"token": "a\r\nX-Evil: b"}).encode(), "gives no token"),
        ("TOKEN", json.dumps({"token": "x" * 2**17}).encode(), "gives more than"),
        pytest.param("TOKEN", b"[" * 60_000, "gives no token", id="deep"),
    ],
)
def test_an_account_that_cannot_be_shown_is_said(liar, pull, challenge, token, complaint):
    digest = liar.image(one(b"x"))
    liar.challenge = f'Bearer realm="https://{liar.host}/token"' if challenge == "TOKEN" else challenge or "x"
    liar.answers["/token"] = token
    if not challenge:
        liar.answers.clear()
        liar.challenge = ""
        complaint = "404 .*is there such an image"
    with pytest.raises(ConfigError, match=complaint):
        pull(digest)
