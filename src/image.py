"""The program out of a container image, `oci://registry/name@sha256:…`: its layers read as a container would see them.

Nothing of an image is believed that its digest does not cover: the digest in the URL (or k8s-keystone-auth-sha256)
names the index or manifest, that names the next, down to each layer; sizes are bounded before anything is downloaded.
No layer is unpacked: names are looked at, and the one program is read.

Why not oras: oras-py 0.2.43 compares no digest, knows neither indexes nor what layers take away from each other, reads
root's docker configuration and the environment's proxies, and brings jsonschema. What is needed of the protocol
(OCI distribution, 1.1, pull) is three GETs.

Not here: connections (download.py), and packed files (archive.py).
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import pydantic
import requests

import archive
from archive import BINARY
from download import MOST_BYTES, OPTION, Answered, Web
from errors import ConfigError

DIGEST = r"sha256:[0-9a-f]{64}"
MANIFEST_BYTES = 4 * 2**20
"""As much as registries have to take (distribution specification, "Pushing manifests")."""
TOKEN_BYTES = 2**16
LAYERS = 128
LINKS = 40
"""As many symbolic links as Linux follows in one path."""
MEDIA_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Login(NamedTuple):
    """A registry's account."""

    username: str
    password: str


@dataclass(frozen=True)
class Reference:
    """An image: where, and which.

    Args:
        registry: host, and port where it is not 443.
        name: of the repository.
        tag: its name for the image; empty where there is a digest.
        digest: `sha256:…`, or empty.
    """

    registry: str
    name: str
    tag: str
    digest: str

    @classmethod
    def parse(cls, url: str) -> Reference:
        """Read `oci://registry/name[:tag][@sha256:…]`.

        Raises:
            ValueError: it is none; the text says what would be one.
        """
        found = re.fullmatch(
            r"oci://(?P<registry>(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?)"
            r"/(?P<name>[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*)"
            rf"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}))?(?:@(?P<digest>{DIGEST}))?",
            url,
        )
        if found is None:
            raise ValueError("is no image: use oci://REGISTRY/NAME@sha256:64 hexadecimal digits, in lower case")
        registry, name, tag, digest = found.group("registry", "name", "tag", "digest")
        if not tag and not digest:
            raise ValueError("names no image of that repository: add @sha256:…, or :TAG and k8s-keystone-auth-sha256")
        # A tag beside a digest says nothing more, as everywhere.
        return cls(registry, name, "" if digest else tag, digest or "")

    @property
    def base(self) -> str:
        """The URL that everything of this repository begins with."""
        # The one registry whose interface is not where its name says.
        host = "registry-1.docker.io" if self.registry == "docker.io" else self.registry
        return f"https://{host}/v2/{self.name}"


class _Platform(pydantic.BaseModel, frozen=True):
    os: str = ""
    architecture: str = ""


class _Descriptor(pydantic.BaseModel, frozen=True):
    digest: str = pydantic.Field(pattern=f"^{DIGEST}$")
    size: int = pydantic.Field(ge=0)
    platform: _Platform | None = None


class _Manifest(pydantic.BaseModel, frozen=True):
    """An image, or an index of several; which of the two is told by what it has."""

    manifests: list[_Descriptor] | None = None
    layers: list[_Descriptor] | None = pydantic.Field(default=None, max_length=LAYERS)


def fetch(web: Web, reference: Reference, digest: str, login: Callable[[], Login | None], folder: Path) -> list[Path]:
    """Download an image's layers.

    Args:
        web: connections.
        reference: which image.
        digest: `sha256:…` that the image must have.
        login: the account, asked for where the registry wants one.
        folder: where they go, named by digest; what a former attempt left there is continued.

    Returns:
        The layers, the lowest first.

    Raises:
        ConfigError: the registry does not give it, or not what the digest says.
    """
    registry = _Registry(web, reference, login)
    manifest = registry.manifest(reference.tag or digest, digest)
    if manifest.manifests is not None:
        chosen = _for_this_machine(manifest.manifests)
        manifest = registry.manifest(chosen.digest, chosen.digest)
    if manifest.layers is None:
        raise ConfigError(OPTION, "names an index of indexes, which is not followed: name one of the images in it")
    if sum(layer.size for layer in manifest.layers) > MOST_BYTES:
        raise ConfigError(OPTION, f"that image has more than {MOST_BYTES // 2**20} MiB, which is no {BINARY}")
    return [registry.layer(layer, folder / layer.digest.partition(":")[2]) for layer in manifest.layers]


def extract(layers: list[Path], target: Path) -> None:
    """Take the program out of an image's layers, as a container of that image would see it.

    Raises:
        ConfigError: it is not there, more than once, or the layers cannot be read.
        OSError: the disk is full.
    """
    tree = _Tree()
    with archive.readable(OPTION, "an image of tar layers nor one"):
        for number, path in enumerate(layers):
            with archive.tar(path) as packed:
                tree.add(number, packed)
        found = tree.named(BINARY)
        if len(found) != 1:
            raise archive.not_one(len(found))
        (program,) = found
        with archive.tar(layers[program.layer]) as packed:
            for number, item in enumerate(archive.members(packed)):
                if number == program.member and (content := packed.extractfile(item)):
                    archive.copy(content, target)
                    break
    archive.check_kind(target)


def _for_this_machine(images: list[_Descriptor]) -> _Descriptor:
    here = _ARCHITECTURES.get(platform.machine(), platform.machine())
    offered = [image.platform or _Platform() for image in images]
    for image, made_for in zip(images, offered, strict=True):
        if (made_for.os, made_for.architecture) == ("linux", here):
            return image
    names = ", ".join(sorted({f"{one.os}/{one.architecture}" for one in offered if one.os})) or "none that are named"
    raise ConfigError(OPTION, f"that image is not made for linux/{here}, but for {names}")


class _Registry:
    """One repository of a registry, with the account where one is asked for."""

    def __init__(self, web: Web, reference: Reference, login: Callable[[], Login | None]):
        self._web, self._reference, self._login = web, reference, login
        self._headers: dict[str, str] = {}

    def manifest(self, which: str, digest: str) -> _Manifest:
        """Give a manifest by tag or digest, which must have this digest."""
        url = f"{self._reference.base}/manifests/{which}"
        accept = {"Accept": ", ".join(MEDIA_TYPES)}
        content = self._allowed(lambda: self._web.read(url, MANIFEST_BYTES, {**self._headers, **accept}))
        got = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if got != digest:
            raise ConfigError(
                "k8s-keystone-auth-sha256" if which == self._reference.tag else OPTION,
                f"expected the image {digest}, but {self._reference.registry} gave {got} for {which}; nothing was"
                " changed",
            )
        try:
            found = _Manifest.model_validate_json(content)
        except pydantic.ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise ConfigError(OPTION, f"{which} is no image that can be read: {where}: {problem['msg']}") from None
        # One that claims to be both would be another image for another reader.
        if (found.manifests is None) is (found.layers is None):
            raise ConfigError(OPTION, f"{which} is neither an image (OCI or docker's version 2) nor an index of them")
        return found

    def layer(self, layer: _Descriptor, target: Path) -> Path:
        """Download a layer, unless it is there, and give its file."""
        url = f"{self._reference.base}/blobs/{layer.digest}"
        if not _is(target, layer):
            self._allowed(lambda: self._web.fetch(url, target, layer.size, self._headers))
            if not _is(target, layer):
                # Nothing to go on from.
                target.unlink()
                raise ConfigError(OPTION, f"{self._reference.registry} gave another layer than {layer.digest}")
        return target

    def _allowed(self, request: Callable[[], Any]) -> Any:
        """Make a request, and once more as who the registry wants it to be; a token may have run out, too."""
        try:
            try:
                return request()
            except Answered as answer:
                if answer.status != 401:
                    raise
                self._headers = {"Authorization": self._answer(answer.challenge)}
                return request()
        except Answered as answer:
            account = ""
            if answer.status in (401, 403, 404):
                account = "; is there such an image, and may the account of k8s-keystone-auth-credentials pull it?"
            raise ConfigError(OPTION, f"{answer}{account}") from None

    def _answer(self, challenge: str) -> str:
        """Give the Authorization that a registry asks for (RFC 7235; the bearer's is docker's token protocol)."""
        scheme, _, rest = challenge.partition(" ")
        login = self._login()
        if scheme.lower() == "basic":
            if login is None:
                raise ConfigError(
                    OPTION, f"{self._reference.registry} wants an account: set k8s-keystone-auth-credentials"
                )
            return _basic(login)
        asked = requests.utils.parse_dict_header(rest)
        if scheme.lower() != "bearer" or not asked.get("realm"):
            raise ConfigError(OPTION, f"{self._reference.registry} asks for credentials in a way that is not known")
        # The registry says where its tokens come from, and the account goes there: never in clear, nor further on.
        realm = urlsplit(str(asked["realm"]))
        if realm.scheme != "https" or not realm.hostname or realm.username is not None:
            raise ConfigError(
                OPTION,
                f"{self._reference.registry} sends for tokens to {realm.scheme}://{realm.hostname}, and only https is"
                " taken",
            )
        # Never what the challenge names: no more is asked for than to pull this repository.
        query = [("scope", f"repository:{self._reference.name}:pull")]
        if asked.get("service"):
            query.append(("service", str(asked["service"])))
        parts = [part for part in (realm.query, "&".join(f"{key}={quote(value)}" for key, value in query)) if part]
        url = realm._replace(query="&".join(parts), fragment="").geturl()
        headers = {} if login is None else {"Authorization": _basic(login)}
        try:
            answer = json.loads(self._web.read(url, TOKEN_BYTES, headers, redirects=0))
            token = str(answer.get("token") or answer.get("access_token") or "")
        except Answered as answered:
            refused = "" if answered.status not in (401, 403) else ": is k8s-keystone-auth-credentials right?"
            raise ConfigError(OPTION, f"{answered}{refused}") from None
        except (ValueError, AttributeError, RecursionError):
            token = ""
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise ConfigError(OPTION, f"{realm.hostname} gives no token for {self._reference.registry}")
        return f"Bearer {token}"


def _basic(login: Login) -> str:
    return f"Basic {base64.b64encode(f'{login.username}:{login.password}'.encode()).decode()}"


def _is(path: Path, layer: _Descriptor) -> bool:
    if not path.exists() or path.stat().st_size != layer.size:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return f"sha256:{digest.hexdigest()}" == layer.digest


class _File(NamedTuple):
    """A regular file: the layer, and which member of its archive."""

    layer: int
    member: int


class _Link(NamedTuple):
    """A symbolic link."""

    to: str


class _Other(NamedTuple):
    """A device or a pipe: in nobody's way but that of what had its name before."""


_Folder = dict[str, Any]
"""Of names: folders, `_File`s, `_Link`s, `_Other`s."""


class _Tree:
    """What a container sees: each layer adds to, replaces and takes away from those below (OCI image, "layer")."""

    def __init__(self) -> None:
        self._root: _Folder = {}

    def add(self, layer: int, packed: tarfile.TarFile) -> None:
        """Put a layer on top."""
        items = [
            (number, _parts(item.name), item.type, item.linkname if item.islnk() or item.issym() else "")
            for number, item in enumerate(archive.members(packed))
        ]
        # What a layer takes away is of the layers below it, never its own, wherever in the archive it stands.
        for _, parts, _, _ in items:
            if parts and parts[-1].startswith(".wh."):
                self._take_away(parts)
        for number, parts, kind, link in items:
            if not parts or parts[-1].startswith(".wh."):
                continue
            folder = self._folder(parts[:-1])
            name = parts[-1]
            if kind == tarfile.DIRTYPE:
                if not isinstance(folder.get(name), dict):
                    folder[name] = {}
            elif kind == tarfile.SYMTYPE:
                folder[name] = _Link(link)
            elif kind == tarfile.LNKTYPE:
                # Of a file: one of a folder would make the tree endless.
                linked = self._at(_parts(link))
                folder[name] = linked if isinstance(linked, _File) else _Other()
            else:
                folder[name] = _File(layer, number) if kind in tarfile.REGULAR_TYPES else _Other()

    def named(self, name: str) -> set[_File]:
        """Give the regular files of a name, and those that links of that name lead to."""
        found: set[_File] = set()
        left: list[tuple[tuple[str, ...], _Folder]] = [((), self._root)]
        while left:
            path, folder = left.pop()
            for child, entry in folder.items():
                if isinstance(entry, dict):
                    left.append(((*path, child), entry))
                elif child == name and isinstance(file := self._at((*path, child)), _File):
                    found.add(file)
        return found

    def _take_away(self, parts: tuple[str, ...]) -> None:
        folder = self._at(parts[:-1])
        if not isinstance(folder, dict):
            return
        if parts[-1] == ".wh..wh..opq":
            folder.clear()
        else:
            folder.pop(parts[-1].removeprefix(".wh."), None)

    def _folder(self, parts: tuple[str, ...]) -> _Folder:
        """Give a folder, made where there is none; through links, as those who unpack layers go."""
        folder = self._at(parts)
        if isinstance(folder, dict):
            return folder
        if not parts:
            return self._root
        above = self._folder(parts[:-1])
        above[parts[-1]] = made = {}
        return made

    def _at(self, parts: tuple[str, ...]) -> Any:
        """Give what is at a path, links followed; None where there is nothing."""
        trail: list[_Folder] = [self._root]
        left, links = list(reversed(parts)), 0
        while left:
            name = left.pop()
            if name == "..":
                trail = trail[:-1] or [self._root]
                continue
            entry = trail[-1].get(name)
            if isinstance(entry, _Link):
                links += 1
                if links > LINKS:
                    return None
                if entry.to.startswith("/"):
                    trail = [self._root]
                left += reversed([part for part in entry.to.split("/") if part not in ("", ".")])
            elif isinstance(entry, dict):
                trail.append(entry)
            else:
                return entry if not left else None
        return trail[-1]


def _parts(name: str) -> tuple[str, ...]:
    """Give a member's path from the root, which nothing of it leads out of."""
    parts: list[str] = []
    for part in PurePosixPath("/", name).parts[1:]:
        if part == "..":
            parts = parts[:-1]
        elif part != ".":
            parts.append(part)
    return tuple(parts)
