"""Put our flags in force, prove that the cluster works with them, take them out.

The charm may be killed at any line here, and the API server at any moment. Two things make that harmless: a trial has
one start, which is taken before our lines go in, and what runs without the charm ends it (`ways.py`); and every step
looks at what is there, not at what it remembers.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from apiserver import files, structured, wanted, ways
from apiserver.conversion import WEBHOOK
from apiserver.lease import Turn
from apiserver.model import (
    ApplyFailed,
    Asked,
    Conflict,
    Desired,
    Kind,
    Knows,
    Layout,
    NotReady,
    Patience,
    Place,
    State,
    WiringError,
)
from apiserver.refused import Refused
from apiserver.verify import Unverified, verify
from apiserver.wanted import Stage, Wanted

logger = logging.getLogger(__name__)

_PATIENCE = Patience()
_RAN_OUT = (
    "the API server kept ending soon after its starts with Keystone's flags and has been running without them since; "
    "see its log"
)
_BYPASSED = "the authenticator could not be kept running: the API server goes on without Keystone until it is back"


def asked(layout: Layout, url: str) -> Asked:
    """Tell what the endpoint at `url` is asked about already, because the operator has told the control plane to.

    About access this counts only beside the cluster's own token webhook: the kubeconfig that passes through the
    control plane's options shows no client certificate, and we ask for one unless we are behind that webhook.

    Raises:
        WiringError: the API server's flags cannot be read.

    """
    if not layout.asks(url):
        return Asked()
    way = ways.of(layout)
    path = way.others().last(WEBHOOK)
    try:
        config = yaml.safe_load(way.named(path)) if path else {}
        servers = {item["cluster"]["server"] for item in config.get("clusters", ())}
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError):
        servers = set()
    return Asked(True, url in servers)


def check(layout: Layout, authorization: bool) -> None:
    """Raise `Conflict` where our flags would displace someone's webhook or never be asked; changes nothing.

    Args:
        layout: of this machine.
        authorization: whether an authorization webhook is wanted (a policy is set). Without one no flag can conflict.

    """
    way = ways.of(layout)
    way.check()
    if not authorization:
        return
    flags = way.others()
    if flags.last(structured.FLAG):  # excludes all flags for authorization, and takes several webhooks
        structured.check(layout)
        return
    if flags.last(WEBHOOK):
        raise Conflict(
            f"another authorization webhook is set already, --{WEBHOOK}={flags.last(WEBHOOK)}, and flags can name one "
            f"only: unset `policy`, or give the API server both in a file with --{structured.FLAG}, as the action "
            "show-webhook-config tells; nothing was changed"
        )
    modes = way.modes(flags)
    if not modes:
        raise Conflict(
            f"no --authorization-mode is set in {way.where}, so everything is allowed to everybody and `policy` "
            "would never be asked: set one (usually Node,RBAC), or unset `policy`; nothing was changed"
        )
    for mode, problem in (
        ("AlwaysAllow", "allows everything before `policy` is asked: take that mode out, or unset `policy`"),
        ("Webhook", "is set without a webhook's file: take that mode out, it is added with `policy`"),
    ):
        if mode in modes:
            raise Conflict(f"--authorization-mode={','.join(modes)}: {mode} {problem}; nothing was changed")


def chain(layout: Layout) -> None:
    """Write the chain file (`layout.place.chain_file`) now, before any flag is set.

    The folder of the chain file and the group `layout.place.reader` must exist. Idempotent; restarts nothing.

    Raises:
        WiringError: the webhook that is set now could not be written down (its kubeconfig cannot be read).

    """
    _make_state_folder(layout.place)
    ways.of(layout).chain()


def apply(
    layout: Layout,
    desired: Desired,
    probe: Callable[[], None],
    announce: Callable[[str], None],
    patience: Patience = _PATIENCE,
) -> bool:
    """Put `desired` in force: trial, restart, verify, confirm. Idempotent.

    Args:
        layout: of this machine.
        desired: what the API server shall be told.
        probe: raises, with an operator's message, unless the authenticator answers a real TokenReview over the
            kubeconfig that is about to be set. Called before any flag is changed, never when there is nothing to do.
            Whatever it raises is passed on as it is.
        announce: told, in one sentence, what is about to happen before each restart of the API server, and whom it has
            to wait for.
        patience: how long to wait for what.

    Returns:
        Whether the API server was restarted by this call.

    Raises:
        NotReady: the API server was not in order beforehand; nothing was changed.
        NotOurTurn: another unit restarts its API server; no flag was changed.
        Conflict: its authorization configuration is not a file that ours can be put into.
        ApplyFailed: it did not work with our flags, now or when the same was tried before; what was in force before
            (other flags of ours that had been verified, or none) is again.
        WiringError: anything else, such as a file that cannot be written.

    """
    try:
        if desired.authorizer is None:
            structured.remove(layout)
        with Turn(layout, announce, patience) as turn:
            wiring = _Wiring(layout, announce, patience, turn)
            restarted = wiring.apply(desired, probe) if desired.flags else wiring.stand_by(desired)
        found = wanted.read(layout.place)
        # Set aside with the authenticator, the flags come back by themselves, and ours in the file has stayed there.
        if desired.authorizer is not None and found is not None and found.stage is Stage.CONFIRMED:
            structured.apply(layout, desired.authorizer, probe, patience)
        return restarted
    except OSError as error:
        raise WiringError(f"cannot set the API server's flags: {error}") from error


def remove(
    layout: Layout,
    announce: Callable[[str], None] = lambda _: None,
    patience: Patience = _PATIENCE,
) -> bool:
    """Take out everything that `chain` and `apply` put in. Safe in any order, twice, and when the API server is down.

    Returns:
        Whether the API server was restarted: only when it was running with our flags.

    Raises:
        NotOurTurn: another unit restarts its API server; nothing was changed.
        WiringError: our lines could not be taken out of the args file (a disk is full), so the rest stays as well.

    """
    place, way = layout.place, ways.of(layout)
    try:
        structured.remove(layout)  # before its kubeconfig may go, and what would take it out
        with Turn(layout, announce, patience) as turn:
            restarted = way.with_ours()
            if restarted:
                turn.take_if_in_order()
            if place.wanted.exists():
                wanted.forget(place)
            if restarted:
                announce("restarting the API server without Keystone's flags")
            way.cut()
            if restarted:
                complaint = way.start_without(patience.restart)
                try:
                    verify(layout, patience.removal, patience.token, patience.between)
                except Unverified as error:
                    logger.warning("after Keystone's flags were taken out: %s %s", error, complaint)
        way.cut()  # once more: whoever was about to write the file back has done it by now
        structured.uninstall(layout)
        way.uninstall()
        if layout.config_folder.exists():
            shutil.rmtree(layout.config_folder)
        for path in (place.chain_file, place.refused, place.wanted, place.lease, place.lock):
            files.remove(path)
        with contextlib.suppress(OSError):  # others keep things there, too
            place.state_folder.rmdir()
    except OSError as error:
        raise WiringError(f"cannot take away the API server's flags or what belongs to them: {error}") from error
    return restarted


def state(layout: Layout) -> State:
    """Tell what is in force, judged by the running process. Changes nothing."""
    found = wanted.read(layout.place)
    refused = Refused.read(layout.place.refused)
    if found is None:
        if refused:
            return State(Kind.FAILED, refused.reason, refused.digest, refused.log)
        return State(Kind.ABSENT)
    if found.stage is Stage.TRIAL:
        return State(Kind.TRIAL, "not verified yet", found.digest)
    if found.stage is Stage.BYPASSED:
        return State(Kind.BYPASSED, _BYPASSED, found.digest)
    if found.ran_out:
        return State(Kind.FAILED, _RAN_OUT, found.digest)
    if ways.of(layout).in_force(found):
        if refused:  # what is in force is what had been verified before
            return State(Kind.IN_FORCE, f"a change was taken back: {refused.reason}", found.digest, refused.log)
        return State(Kind.IN_FORCE, "", found.digest)
    if found.stage is Stage.ACQUITTED:
        return State(Kind.PENDING, "the API server kept ending, with and without Keystone's flags", found.digest)
    return State(Kind.PENDING, "the API server is not running with Keystone's flags", found.digest)


def knows(layout: Layout) -> tuple[Knows, ...] | None:
    """Tell what the running API server knows of us by what we have set; changes nothing.

    Returns:
        An item for each kubeconfig; None where nothing of ours is set. What a trial was cut off from cannot be told.

    """
    found, contents = wanted.read(layout.place), list[bytes]()
    try:
        if found is None and ways.of(layout).with_ours():
            contents.append(b"")
        if found is not None and found.lines:
            sure = _Verified.read(found) if ways.of(layout).in_force(found) else None
            contents += sure.contents.values() if sure else [b""]
        contents += structured.kubeconfigs(layout)
    except (OSError, WiringError) as error:
        logger.info("what the API server knows of us cannot be told: %s", error)
        contents.append(b"")
    return tuple(map(Knows.of, contents)) or None


@dataclass(frozen=True)
class _Wiring:
    """One call of `apply`."""

    layout: Layout
    announce: Callable[[str], None]
    patience: Patience
    turn: Turn

    @property
    def way(self) -> ways.Way:
        return ways.of(self.layout)

    def apply(self, desired: Desired, probe: Callable[[], None]) -> bool:
        layout, place, way = self.layout, self.layout.place, self.way
        trial = Wanted.trial(layout, desired)
        _make_state_folder(place)
        way.install()

        refused = Refused.read(place.refused)
        if refused and refused.digest != desired.digest:
            files.remove(place.refused)
            refused = None
        found = wanted.read(place)
        if found and found.digest == desired.digest:
            way.write_files(desired.files)  # someone may have changed them: the next start would go without
            if found.stage is Stage.BYPASSED and not found.may_come_back:
                return False  # looked at again, by a hook or by the script
            trial = replace(trial, retry=found.retry)  # how often it has happened is not forgotten
            if found.ran_out:
                raise ApplyFailed(_RAN_OUT)
            if found.stage is Stage.CONFIRMED and way.in_force(found):
                problem = self._problem()
                if problem:  # nothing to change for us, but nothing to call ready either
                    raise NotReady(f"the API server runs with Keystone's flags, but is not in order: {problem}")
                return False

        # What an interrupted call left behind: a trial that took its start, or flags that nobody wants any more.
        if found and found.stage is Stage.TRIAL and found.starts == 0:
            same = found.digest == desired.digest and not refused
            if same and way.in_force(found) and not self._problem() and wanted.confirm(place, desired.digest):
                return False
            self._take_out_in_turn()
            found = None
        elif found is None and way.with_ours():
            self._take_out_in_turn()
        if refused:
            raise ApplyFailed(refused.reason, refused.log)

        problem = self._problem()
        if problem and way.with_ours():
            # Perhaps through us: what it was given may lead nowhere any more. Taking ours out is always allowed.
            self._take_out()
            found, problem = None, self._problem()
        if problem:
            raise NotReady(f"the API server is not in order, so Keystone's flags are not added: {problem}")
        if self.turn.take() and (problem := self._problem()):
            raise NotReady(f"the API server has come out of order, so Keystone's flags are not added: {problem}")
        probe()
        self.turn.take()  # once more for what comes now, which may take all of its time
        before = _Verified.read(found) if found and found.digest != desired.digest else None
        since = time.time()
        problem = self._try(trial, desired.files, "with Keystone's flags")
        if problem:
            log = way.log_tail(since)
            Refused(desired.digest, problem, log).write(place.refused)
            self._put_back(before)
            raise ApplyFailed(problem, log)
        return True

    def stand_by(self, desired: Desired) -> bool:
        """Want no flag: what there is of ours lies in the file of the authorization configuration alone.

        The script still counts the starts, and takes ours out there if they keep ending soon.
        """
        place = self.layout.place
        _make_state_folder(place)
        self.way.install()
        found = wanted.read(place)
        if found and found.ran_out and found.digest == desired.digest:
            raise ApplyFailed(_RAN_OUT)
        restarted = self.way.with_ours()
        if restarted or (found and found.lines):
            self._take_out_in_turn()
        if found is None or found.digest != desired.digest or found.stage is Stage.ACQUITTED:
            wanted.write(place, Wanted(Stage.CONFIRMED, wanted.STARTS, desired.digest, (), ()))
        return restarted

    def _problem(self) -> str:
        """Say what is wrong with the API server as it is; empty where nothing is."""
        try:
            verify(self.layout, self.patience.already, self.patience.already, self.patience.between)
        except Unverified as error:
            return str(error)
        return ""

    def _try(self, trial: Wanted, contents: Mapping[Path, bytes], how: str) -> str:
        """Restart the API server once with these flags and confirm them. Returns what was wrong, if anything was."""
        layout, way, patience = self.layout, self.way, self.patience
        was = way.life()
        way.write_files(contents)
        self.announce(f"restarting the API server {how}")
        with way.guard():
            complaint = way.start_with(trial, patience.restart)
            try:
                verify(layout, patience.ready, patience.token, patience.between)
            except Unverified as error:
                return f"{error}; {complaint}" if complaint else str(error)
            if way.life() == was:
                return complaint or "the API server was not restarted"
            if not way.in_force(trial) or not wanted.confirm(layout.place, trial.digest):
                problem = (
                    "the API server did not keep running with Keystone's flags: it ended with them, or was started "
                    f"without them; see {way.log}"
                )
                return f"{problem}; {complaint}" if complaint else problem
        return ""

    def _put_back(self, before: _Verified | None) -> None:
        """After a failed trial: what had been verified before it, else nothing of ours."""
        self.turn.renew()
        how = "with the Keystone flags that it had before"
        if before is None or self._try(before.trial, before.contents, how):
            self._take_out(start=True)

    def _take_out_in_turn(self) -> None:
        """Take ours out of a server that may work well with them."""
        if self.way.with_ours():
            self.turn.take_if_in_order()
        self._take_out()

    def _take_out(self, start: bool = False) -> None:
        """Nothing of ours from now on; restart the API server if it runs with our flags, or failed, perhaps for them.

        Args:
            start: start it as well where it is simply not running.

        """
        layout, way, patience = self.layout, self.way, self.patience
        self.turn.renew()
        wanted.forget(layout.place)
        complaint = ""
        restart = way.with_ours() or way.down(for_any_reason=start)
        if restart:
            self.announce("restarting the API server without Keystone's flags")
        way.cut()
        if restart:
            complaint = way.start_without(patience.restart)
        try:
            verify(layout, patience.ready, patience.token, patience.between)
        except Unverified as error:
            logger.error("the API server is not in order without Keystone's flags either: %s %s", error, complaint)


@dataclass(frozen=True)
class _Verified:
    """Flags that had been verified, with their files as they still are on disk."""

    trial: Wanted
    contents: Mapping[Path, bytes]

    @classmethod
    def read(cls, found: Wanted) -> _Verified | None:
        contents = {path: files.read(path) or b"" for _, path in found.files}
        intact = all(hashlib.sha256(contents[path]).hexdigest() == checksum for checksum, path in found.files)
        if found.stage is not Stage.CONFIRMED or found.ran_out or not intact:
            return None
        return cls(replace(found, stage=Stage.TRIAL, starts=1, life="-"), contents)


def _make_state_folder(place: Place) -> None:
    files.folder(place.state_folder)
