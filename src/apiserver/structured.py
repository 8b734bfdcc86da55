"""Structured authorization: our webhook among others' in the file that the API server's `--authorization-config` names.

That flag excludes all other flags for authorization, so there the file is the one way. The API server reads it again
while it runs (it looks once a minute, and is told of most changes at once), and keeps what it had where it does not
like it; it only does not *start* with what it does not like. So ours goes in while the server runs, and is not
confirmed before the server has accepted it and a review has come through. Until then, and whenever its kubeconfig is
not there, the script `apiserver-authorizer` takes it out before a start (`ways.py`). No restart is needed, so nobody's
turn is waited for.

What is others' in the file stays to the byte (`yamltext.py`). Ours goes to the end of the list, behind RBAC, where the
mode `Webhook` would stand as well. Its kubeconfig lies beside the file: who can read the one can read the other, be it
from within a snap or a pod, and whatever becomes of our flags and volumes. Each trial gives it another name: an API
server that finds the configuration to say what it said neither reads the kubeconfig again nor counts what it has read.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from apiserver import files, script, verify, wanted, ways, yamltext
from apiserver.model import ApplyFailed, Authorizer, Conflict, Layout, NotReady, Patience
from apiserver.refused import Refused
from apiserver.verify import Unverified
from apiserver.yamltext import MARK, Unsafe, entries

logger = logging.getLogger(__name__)

FLAG = "authorization-config"
NAME = "kubernetes-keystone"
"""Of our entry; the API server's metrics bear it."""
VERSIONS = ("v1", "v1beta1", "v1alpha1")
_GROUP = "apiserver.config.k8s.io"
_PREFIX = f"{NAME}-"  # of the kubeconfigs, before twelve hex digits; the script knows them by that
_METRICS = "apiserver_authorization_config_controller_"


def named(layout: Layout) -> str:
    """Give the file that the API server's authorization configuration is in, as its flag names it; empty if in none."""
    return ways.of(layout).others().last(FLAG)


def check(layout: Layout) -> None:
    """Raise `Conflict` where ours cannot be put into that file, or would never be asked; changes nothing."""
    _Change.begin(layout).edited(Authorizer(b"", ("true",), "", {}), _new_name())


def apply(layout: Layout, authorizer: Authorizer, probe: Callable[[], None], patience: Patience) -> None:
    """Have the running API server ask us; idempotent. See `wiring.apply` for `probe` and `patience`.

    Raises:
        Conflict: the file is not one that ours can be put into; nothing was changed.
        NotReady: the API server was not in order, or the file was changed meanwhile: a later call tries again.
        ApplyFailed: the API server did not accept it, or does not reach us; what was there before is again.

    """
    install(layout)
    _Change.begin(layout).apply(authorizer, probe, patience)


def remove(layout: Layout) -> None:
    """Take ours out of the file that it is in, if it is in one; what others have changed since stays.

    Raises:
        WiringError: it cannot be taken out (a disk that is full or read-only); then its kubeconfig stays as well.

    """
    record = _Record.path_of(layout)
    if record.exists():
        with wanted.locked(layout.place):
            _run(layout, "cut")
    files.remove(record)
    files.remove(layout.place.refused_authorizer)


def kubeconfigs(layout: Layout) -> tuple[bytes, ...]:
    """Give the kubeconfig that ours names; an empty one where it cannot be told whether it is in force."""
    if not _Record.path_of(layout).exists():
        return ()
    found = _Record.read(layout)
    sure = found is not None and found.state == "confirmed" and found.intact
    return (files.read(found.kubeconfig) or b"",) if found and sure else (b"",)


def install(layout: Layout) -> None:
    """Put the script in place that the other two run."""
    files.write(layout.place.authorizer_script, _script(layout), 0o755)


def uninstall(layout: Layout) -> None:
    """Take it away."""
    files.remove(layout.place.authorizer_script)


def entry(authorizer: Authorizer, kubeconfig: PurePosixPath) -> dict[str, Any]:
    """Give our entry of the list; the same in all versions of the format."""
    return {
        "type": "Webhook",
        "name": NAME,
        "webhook": {
            "authorizedTTL": authorizer.authorized_ttl,
            "unauthorizedTTL": authorizer.unauthorized_ttl,
            "timeout": authorizer.timeout,
            "subjectAccessReviewVersion": "v1",
            "matchConditionSubjectAccessReviewVersion": "v1",
            "failurePolicy": "NoOpinion",
            "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": str(kubeconfig)},
            "matchConditions": [{"expression": condition} for condition in authorizer.conditions],
        },
    }


def _new_name() -> str:
    return f"{_PREFIX}{secrets.token_hex(6)}.kubeconfig"


def as_text(authorizer: Authorizer, kubeconfig: PurePosixPath) -> str:
    """Give our entry as it stands in the file, each value on its line."""
    return yaml.safe_dump([entry(authorizer, kubeconfig)], sort_keys=False, width=100_000)


def shown(authorizer: Authorizer) -> str:
    """Give it for a person: the kubeconfig's name is made when it is put in."""
    return as_text(authorizer, PurePosixPath(f"<beside the file>/{_PREFIX}<new each time>.kubeconfig"))


@dataclass(frozen=True)
class AuthorizationConfig:
    """The file, without ours.

    Args:
        path: where it is, for messages.
        seen: as the API server knows it.
        text: all of it.
        authorizers: what it says.

    """

    path: Path
    seen: PurePosixPath
    text: str
    authorizers: list[dict[str, Any]]

    @classmethod
    def parse(cls, path: Path, seen: PurePosixPath, content: bytes) -> AuthorizationConfig:
        """Read the file.

        Raises:
            Conflict: it is none that lines can be put into.

        """
        try:
            text, document = yamltext.document(content)
        except Unsafe as error:
            raise yamltext.conflict(path, error) from None
        kind = (document.get("apiVersion"), document.get("kind")) if isinstance(document, dict) else (None, None)
        if kind not in [(f"{_GROUP}/{version}", "AuthorizationConfiguration") for version in VERSIONS]:
            known = ", ".join(VERSIONS)
            raise yamltext.conflict(path, f"it is not an AuthorizationConfiguration of {_GROUP} ({known})")
        items = document.get("authorizers")
        if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
            raise yamltext.conflict(path, "it has no list of authorizers")
        return cls(path, seen, text, items)

    def with_ours(self, authorizer: Authorizer, kubeconfig: str) -> str:
        """Give the text with ours at the end of the list; `kubeconfig` is the name of its file, beside this one.

        Raises:
            Conflict: that cannot be done safely, or ours would never be asked.

        """
        for item in self.authorizers:
            if item.get("name") == NAME:
                raise Conflict(
                    f"{self.path} has an authorizer called {NAME} that is not ours: take it out, or give it another "
                    "name; nothing was changed"
                )
            if item.get("type") == "AlwaysAllow":
                raise Conflict(
                    f"{self.path}: AlwaysAllow allows everything before `policy` is asked: take that authorizer out, "
                    "or unset `policy`; nothing was changed"
                )
        at = self.seen.parent / kubeconfig
        try:
            text = self._with_lines(as_text(authorizer, at).splitlines())
        except Unsafe as error:
            raise yamltext.conflict(self.path, error) from None
        expected = yaml.safe_load(self.text)
        expected["authorizers"] = [*self.authorizers, entry(authorizer, at)]
        if yaml.safe_load(text) != expected:
            raise yamltext.conflict(self.path, "our lines would change more")
        return text

    def _with_lines(self, ours: list[str]) -> str:
        root = entries(yaml.compose(self.text, Loader=yaml.SafeLoader), "the document")
        items = root["authorizers"][1]
        if not isinstance(items, yaml.SequenceNode) or items.flow_style:
            raise Unsafe("`authorizers` is not a list with an item a line")
        lines = self.text.split("\n")
        ended = lines[-1] == ""
        first = items.value[0].start_mark
        indent = lines[first.line][: first.column].rstrip(" ")
        if indent.strip(" ") != "-":
            raise Unsafe("the first of `authorizers` does not begin a line")
        after = _last_line(items.value[-1]) + 1
        marked = [f"{' ' * (len(indent) - 1)}{line} {MARK}" for line in ours]
        # A file that does not end with a line's end has none with ours either: so it is again what it was without them.
        return (
            "\n".join([*lines[:after], *marked, *lines[after:]])
            if ended or after < len(lines)
            else ("\n".join([*lines, *marked]))
        )


def _last_line(node: yaml.Node) -> int:
    """Give the number of the last line that belongs to a node: the parser's own mark is behind comments."""
    if isinstance(node, yaml.CollectionNode) and node.value and not node.flow_style:
        last = node.value[-1]
        return _last_line(last[1] if isinstance(last, tuple) else last)
    mark = node.end_mark
    return mark.line - 1 if mark.column == 0 and mark.line > node.start_mark.line else mark.line


def _only_ours(text: str) -> bool:
    """Whether the lines that end as ours do are an entry of ours, or none do."""
    marked = [line for line in text.split("\n") if line.endswith(MARK) and not line.lstrip().startswith("#")]
    if not marked:
        return True
    try:
        found = yaml.safe_load(textwrap.dedent("\n".join(marked)))
    except yaml.YAMLError:
        return False
    return isinstance(found, list) and [isinstance(one, dict) and one.get("name") for one in found] == [NAME]


@dataclass(frozen=True)
class _Record:
    """Where ours is, and whether the API server has accepted it: the script's file, which describes it."""

    state: str
    life: str
    checksum: str
    kubeconfig: Path
    config: Path

    @staticmethod
    def path_of(layout: Layout) -> Path:
        return layout.config_folder / "authorizer"

    @classmethod
    def read(cls, layout: Layout) -> _Record | None:
        lines = (files.read(cls.path_of(layout)) or b"").decode(errors="replace").splitlines()
        values = {key: value for key, _, value in (line.partition(" ") for line in lines)}
        if not lines or lines[0] != "authorizer 1" or lines[-1] != "end":
            return None
        checksum, _, kubeconfig = values.get("file", "").partition(" ")
        config = values.get("config", "")
        return cls(values.get("state", ""), values.get("life", ""), checksum, Path(kubeconfig), Path(config))

    def write(self, layout: Layout) -> None:
        text = (
            f"authorizer 1\nstate {self.state}\nlife {self.life}\nfile {self.checksum} {self.kubeconfig}\n"
            f"config {self.config}\nend\n"
        )
        files.write(self.path_of(layout), text.encode(), 0o600)

    @property
    def intact(self) -> bool:
        """Whether the kubeconfig is what it should be."""
        content = files.read(self.kubeconfig)
        return content is not None and hashlib.sha256(content).hexdigest() == self.checksum


@dataclass(frozen=True)
class _Change:
    """One look at the file, and what is done to it.

    Args:
        layout: of this machine.
        config: the file without ours.
        whole: its text with ours, as it is.

    """

    layout: Layout
    config: AuthorizationConfig
    whole: str

    @classmethod
    def begin(cls, layout: Layout) -> _Change:
        flag = named(layout)
        try:
            seen, path = ways.of(layout).file(flag)
            content = path.read_bytes()
            writable = os.access(path.resolve().parent, os.W_OK) and os.access(path, os.W_OK)
        except OSError as error:
            raise Conflict(f"--{FLAG}={flag} cannot be read: {error.strerror}; nothing was changed") from None
        if not writable:
            raise Conflict(f"--{FLAG}={flag} is read-only, so that nothing can be put in; nothing was changed")
        AuthorizationConfig.parse(path, seen, content)  # in its own words what cannot be read
        text = _run(layout, "others", content.decode())
        if _Record.read(layout) is None and not _only_ours(content.decode()):
            raise yamltext.conflict(path, "it has lines that look like ours")
        if MARK not in content.decode() and text != content.decode():
            logger.warning("somebody has taken the comments away that mark our entry of %s", path)
        return cls(layout, AuthorizationConfig.parse(path, seen, text.encode()), content.decode())

    @property
    def path(self) -> Path:
        return self.config.path

    def edited(self, authorizer: Authorizer, kubeconfig: str) -> str:
        """Give the text with ours, if it could be undone; see `AuthorizationConfig.with_ours`."""
        edited = self.config.with_ours(authorizer, kubeconfig)
        if _run(self.layout, "others", edited) != self.config.text:
            raise yamltext.conflict(self.path, "it has lines that look like ours")
        return edited

    def apply(self, authorizer: Authorizer, probe: Callable[[], None], patience: Patience) -> None:
        layout, checksum = self.layout, hashlib.sha256(authorizer.kubeconfig).hexdigest()
        found = _Record.read(layout)
        accepted = found if found and found.state == "confirmed" and found.config == self.path else None
        same = accepted is not None and accepted.checksum == checksum
        if accepted and same and self.whole == self.edited(authorizer, accepted.kubeconfig.name):
            if not accepted.intact:  # somebody has changed it, and the next start would go without
                self._write_kubeconfig(authorizer, accepted.kubeconfig)
            return
        # The name of the kubeconfig is another one each time; all else that would be tried is in this.
        digest = hashlib.sha256((self.config.with_ours(authorizer, "") + checksum).encode()).hexdigest()
        refused = Refused.read(layout.place.refused_authorizer)
        if refused and refused.digest == digest:
            raise ApplyFailed(refused.reason, refused.log)
        files.remove(layout.place.refused_authorizer)
        if found and found.config != self.path:
            remove(layout)
        kubeconfig = self.path.parent / _new_name()
        trial = _Record("trial", wanted.taken(), checksum, kubeconfig, self.path)
        edited = self.edited(authorizer, kubeconfig.name)
        reloads = self._in_order(patience)
        probe()
        way, since = ways.of(layout), time.time()
        with way.guard():
            with wanted.locked(layout.place):
                if self.path.read_bytes() != self.whole.encode():
                    raise NotReady(f"{self.path} was changed just now; the next hook tries again")
                trial.write(layout)
                self._write_kubeconfig(authorizer, kubeconfig)
                self._write(edited)
            logger.info("Keystone's authorizer is in %s, which the API server reads again by itself", self.path)
            try:
                self._until_accepted(edited, trial, reloads, patience)
                _until_reviewed(layout, authorizer, patience)
                verify.verify(layout, patience.ready, patience.token, patience.between)
            except Unverified as error:
                log = way.log_tail(since)
                self._put_back(edited, accepted)
                Refused(digest, f"{self.path}: {error}", log).write(layout.place.refused_authorizer)
                raise ApplyFailed(f"{self.path}: {error}", log) from None
            self._confirm(edited, trial)

    def _in_order(self, patience: Patience) -> _Reloads:
        """See that the API server works, and how often it has read the file."""
        try:
            verify.verify(self.layout, patience.already, patience.already, patience.between)
            return _Reloads.read(self.layout)
        except Unverified as error:
            raise NotReady(f"the API server is not in order, so nothing is added to {self.path}: {error}") from None

    def _until_accepted(self, edited: str, trial: _Record, before: _Reloads, patience: Patience) -> None:
        """Wait until the running API server has read the file with this text, and taken it.

        Raises:
            Unverified: it has refused it, or does not read it.
            NotReady: ours was taken out meanwhile, by a start of the API server.

        """
        digest = hashlib.sha256(edited.encode()).hexdigest()
        deadline = time.monotonic() + patience.reload
        while True:
            problem = "the API server has not read it again"
            try:
                now = _Reloads.read(self.layout)
            except Unverified as error:  # it is just being started, say
                problem = str(error)
            else:
                if now.digest == digest:
                    return
                started = now.began != before.began  # and counts anew
                if now.refused > (0 if started else before.refused):
                    raise Unverified("the API server does not accept it with Keystone's authorizer; its log says why")
                # Without the digest: it has accepted something since, or was started since, which it would not be else.
                if not now.digest and (started or now.accepted > before.accepted):
                    return
            if _Record.read(self.layout) != trial:
                raise NotReady(f"our entry of {self.path} was taken out while it was tried; the next hook tries again")
            if time.monotonic() + patience.between > deadline:
                raise Unverified(f"{problem} (waited {patience.reload:.0f} s)")
            time.sleep(patience.between)

    def _write_kubeconfig(self, authorizer: Authorizer, path: Path) -> None:
        """Write it for the user that reads the file beside it."""
        ways.of(self.layout).write_files({path: authorizer.kubeconfig})

    def _write(self, text: str) -> None:
        """Replace the file by one rename; owner and mode stay, and a link stays one."""
        file = self.path.resolve()
        have = file.stat()
        files.write(file, text.encode(), have.st_mode & 0o7777, (have.st_uid, have.st_gid))

    def _put_back(self, edited: str, before: _Record | None) -> None:
        """After a failed trial: what had been accepted before it, else nothing of ours."""
        with wanted.locked(self.layout.place):
            there = before is not None and before.intact and before.kubeconfig.name in self.whole
            if before is not None and there and self.path.read_bytes() == edited.encode():
                self._write(self.whole)
                before.write(self.layout)
                self._keep_only(before.kubeconfig)
            else:
                _run(self.layout, "cut")

    def _confirm(self, edited: str, trial: _Record) -> None:
        with wanted.locked(self.layout.place):
            if _Record.read(self.layout) != trial or self.path.read_bytes() != edited.encode():
                raise NotReady(f"{self.path} was changed while our entry was tried; the next hook tries again")
            replace(trial, state="confirmed").write(self.layout)
            self._keep_only(trial.kubeconfig)

    def _keep_only(self, kubeconfig: Path) -> None:
        for path in self.path.parent.glob(f"{_PREFIX}{'[0-9a-f]' * 12}.kubeconfig"):
            if path != kubeconfig:
                files.remove(path)


@dataclass(frozen=True)
class _Reloads:
    """What the API server's metrics say about its reading the file again; `digest` only from 1.35 on."""

    accepted: int
    refused: int
    digest: str
    began: str
    """when the process did: each counts from there"""

    @classmethod
    def read(cls, layout: Layout) -> _Reloads:
        """Ask for them.

        Raises:
            Unverified: it does not tell.

        """
        counted, digest, began = {"success": 0, "failure": 0}, "", ""
        with verify.as_admin(layout) as (session, url), session.get(f"{url}/metrics", stream=True, timeout=30) as got:
            if got.status_code != 200:
                raise Unverified(f"the API server's /metrics says {got.status_code}, so that nobody knows what it read")
            for line in got.iter_lines(chunk_size=65536):
                if line.startswith(b"process_start_time_seconds "):
                    began = line.decode(errors="replace")
                if not line.startswith(_METRICS.encode()):
                    continue
                name, _, rest = line.decode(errors="replace").removeprefix(_METRICS).partition("{")
                labels, _, value = rest.rpartition("} ")
                if name == "automatic_reloads_total":
                    for status in counted:
                        if f'status="{status}"' in labels:
                            counted[status] += int(float(value))
                elif name == "last_config_info":
                    digest = labels.partition(',hash="sha256:')[2].partition('"')[0]
        return cls(counted["success"], counted["failure"], digest, began)


def _until_reviewed(layout: Layout, authorizer: Authorizer, patience: Patience) -> None:
    """Wait until an access review that is for us gets an answer.

    Raises:
        Unverified: the API server cannot reach us, or cannot tell for whom a review is.

    """
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": authorizer.sample,
    }

    def attempt(layout: Layout) -> None:
        with verify.as_admin(layout) as (session, url):
            answer = session.post(f"{url}/apis/authorization.k8s.io/v1/subjectaccessreviews", json=review, timeout=30)
        if answer.status_code == 403:
            return  # this administrator may not ask
        if answer.status_code != 201:
            raise Unverified(f"the API server answers {answer.status_code} to an access review")
        try:
            error = str(answer.json()["status"].get("evaluationError", ""))
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        # Of an error, others' part is none of ours.
        if f'"{authorizer.url}' in error or any(condition in error for condition in authorizer.conditions):
            raise Unverified(f"the API server cannot ask Keystone's authorizer: {error[:300]}")

    verify.wait(layout, attempt, patience.token, patience.between)


def _script(layout: Layout) -> bytes:
    return script.render(
        "apiserver-authorizer",
        {
            "config_folder": layout.config_folder,
            "record": _Record.path_of(layout),
            "wanted": layout.place.wanted,
        },
    )


def _run(layout: Layout, mode: str, given: str = "") -> str:
    """Run the script, be it installed or not.

    Raises:
        WiringError: with what it said, where it did not succeed.

    """
    return script.execute(layout.place.authorizer_script, mode, text=_script(layout), given=given).decode()
