"""Put our flags in force, prove it, take them out. (Interface first; see the package's docstring.)"""

from __future__ import annotations

from collections.abc import Callable

from apiserver.model import Desired, Layout, Patience, State


def check(layout: Layout, authorization: bool) -> None:
    """Raise `Conflict` where our flags would displace someone's webhook or never be asked; changes nothing.

    Args:
        layout: of this machine.
        authorization: whether an authorization webhook is wanted (a policy is set). Without one nothing can conflict.
    """
    raise NotImplementedError


def chain(layout: Layout) -> None:
    """Install the script and write the chain file (`layout.place.chain_file`) now, before any flag is set.

    The folder of the chain file and the group `layout.place.reader` must exist. Idempotent; restarts nothing.

    Raises:
        WiringError: the webhook that is set now could not be written down (its kubeconfig cannot be read).
    """
    raise NotImplementedError


def apply(
    layout: Layout,
    desired: Desired,
    probe: Callable[[], None],
    announce: Callable[[str], None],
    patience: Patience = Patience(),  # noqa: B008 - frozen
) -> bool:
    """Put `desired` in force: trial, restart, verify, confirm. Idempotent.

    Args:
        layout: of this machine.
        desired: what the API server shall be told.
        probe: raises, with an operator's message, unless the authenticator answers a real TokenReview over the
            kubeconfig that is about to be set. Called before any flag is changed, never when there is nothing to do.
            Whatever it raises is passed on as it is.
        announce: told, in one sentence, what is about to happen before each restart of the API server.
        patience: how long to wait for what.

    Returns:
        Whether the API server was restarted by this call.

    Raises:
        NotReady: the API server was not in order beforehand; nothing was added.
        ApplyFailed: it did not work with our flags, now or when the same was tried before; they are out again.
        WiringError: anything else, such as a file that cannot be written.
    """
    raise NotImplementedError


def remove(
    layout: Layout,
    announce: Callable[[str], None] = lambda _: None,
    patience: Patience = Patience(),  # noqa: B008 - frozen
) -> bool:
    """Take out everything that `chain` and `apply` put in. Safe in any order, twice, and when the API server is down.

    Returns:
        Whether the API server was restarted: only when it was running with our flags.

    Raises:
        WiringError: our lines could not be taken out of the args file; everything else was removed.
    """
    raise NotImplementedError


def state(layout: Layout) -> State:
    """Tell what is in force, judged by the running process. Changes nothing, never raises for what it finds."""
    raise NotImplementedError
