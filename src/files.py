"""Where everything lies on the machine, and how files are opened, and folders made; written by `apiserver.files`.

Not here: what the files say.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jinja2

from apiserver.files import folder as make_folder
from apiserver.files import remove as remove
from apiserver.files import write as write_whole

NAME = "kubernetes-keystone"
"""Of the application, its system user and group, its units and its folders."""


@dataclass(frozen=True)
class Places:
    """All paths of ours, below one root so that tests can run everything on a temporary tree.

    Args:
        root: the machine's root folder.
        charm: the charm's own folder, which Juju replaces at an upgrade and deletes at the end.
    """

    root: Path = Path("/")
    charm: Path = Path(__file__).resolve().parent.parent

    @property
    def etc(self) -> Path:
        """Settings, policy, certificates: root:kubernetes-keystone 0750."""
        return self.root / "etc" / NAME

    @property
    def tls(self) -> Path:
        """The CA of this unit and what it signed."""
        return self.etc / "tls"

    @property
    def requested_key(self) -> Path:
        """The key of the certificate that is asked for over `certificates`: root's alone until it is put in force."""
        return self.tls / "requested.key"

    @property
    def settings(self) -> Path:
        """What the authenticator is told."""
        return self.etc / "settings.json"

    @property
    def by_hand(self) -> Path:
        """With `api-server=manual`, the kubeconfig that an operator gives the API server a copy of: root's alone."""
        return self.etc / "manual.kubeconfig"

    @property
    def policy(self) -> Path:
        """The policy as it was validated."""
        return self.etc / "policy.json"

    @property
    def sync_config(self) -> Path:
        """The sync configuration as it was validated."""
        return self.etc / "sync.yaml"

    @property
    def sync_credentials(self) -> Path:
        """Keystone's account for sync."""
        return self.etc / "sync-credentials"

    @property
    def kubeconfig(self) -> Path:
        """How the authenticator reaches the cluster, for what it reads and writes there."""
        return self.etc / "kubeconfig"

    @property
    def cluster_user(self) -> Path:
        """What the charm has made in the cluster for that, and until when its token is good."""
        return self.state / "cluster-user"

    @property
    def sync_report(self) -> Path:
        """The table of the last `sync` action."""
        return self.state / "sync-report.tsv"

    @property
    def keystone_ca(self) -> Path:
        """The CA of Keystone's certificate, where one is set."""
        return self.etc / "keystone-ca.pem"

    @property
    def backend_ca(self) -> Path:
        """The CA of somebody else's service behind ours (auth-server-ca)."""
        return self.etc / "auth-server-ca.pem"

    @property
    def state(self) -> Path:
        """What was recorded, downloads, and what the wiring keeps."""
        return self.root / "var/lib" / NAME

    @property
    def incoming(self) -> Path:
        """Where an operator puts a program for `file://`."""
        return self.state / "incoming"

    @property
    def opt(self) -> Path:
        """The installed programs."""
        return self.root / "opt" / NAME

    @property
    def units(self) -> Path:
        """Where an administrator's systemd units go."""
        return self.root / "etc/systemd/system"

    @property
    def templates(self) -> Path:
        """The charm's templates."""
        return self.charm / "templates"

    @property
    def logins(self) -> Path:
        """What kubeconfigs for users log in with: scripts, and flavours.yaml. The plug-in's package has the same."""
        return self.charm / "src/kubectl_keystone_auth/logins"


def write(path: Path, content: bytes, mode: int, group: int | None = None) -> bool:
    """Write a file of root's (the writer's) as `apiserver.files.write` does; `group` is the ID of another group."""
    return write_whole(path, content, mode, (os.geteuid(), os.getegid() if group is None else group))


class NotPlain(Exception):
    """A path that leads through a link, or to what is no regular file; the text says where."""


def open_plain(root: Path, path: Path) -> IO[bytes]:
    """Open a regular file, through no link in its whole path: whoever could make one would choose what root reads.

    Args:
        root: where the path begins.
        path: below it; absolute ones count from it, too.

    Raises:
        FileNotFoundError: there is none.
        NotPlain: see there.
    """
    parts = [part for part in path.parts if part != "/"]
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for number, part in enumerate(parts, 1):
            # Not blocking: a pipe that nobody writes to would be waited for.
            last = number == len(parts)
            flags = os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_NONBLOCK if last else os.O_DIRECTORY)
            try:
                below = os.open(part, os.O_RDONLY | flags, dir_fd=at)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
                    where = Path("/", *parts[:number])
                    raise NotPlain(f"{where} is a link, or no {'regular file' if last else 'folder'}") from None
                raise
            os.close(at)
            at = below
        if not stat.S_ISREG(os.fstat(at).st_mode):
            raise NotPlain(f"{Path('/', *parts)} is no regular file")
        return os.fdopen(os.dup(at), "rb")
    finally:
        os.close(at)


def text(path: Path) -> str:
    """Give what is in a file; nothing where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def sha256(path: Path) -> str:
    """Give the checksum of a file, which may be a large one."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def folder(path: Path, mode: int, group: int | None = None) -> None:
    """Make a folder with this mode and group, and those above it; one that is there gets them."""
    make_folder(path)
    group = os.getegid() if group is None else group
    have = path.stat()
    if have.st_gid != group:
        os.chown(path, -1, group)
    if have.st_mode & 0o7777 != mode:
        path.chmod(mode)


def render(templates: Path, name: str, values: Mapping[str, Any]) -> str:
    """Render a template; a value that it names and nobody gives is an error.

    In a YAML or JSON template every value goes through the `tojson` filter, which makes it one safe scalar.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # noqa: S701 - units and kubeconfigs, not HTML
    )
    return environment.get_template(name).render(values)
