"""The layouts that there are, and which of them this machine has.

A new layout is a module with a class that satisfies `Layout`, and one entry in `LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable

from apiserver import ways
from apiserver.canonical import Canonical
from apiserver.charmed import Charmed
from apiserver.microk8s import MicroK8s
from apiserver.model import Ambiguous, Layout, NotFound, Place, Unknown
from apiserver.static_pod import StaticPod

LAYOUTS: tuple[Callable[[Place], Layout], ...] = (Charmed, Canonical, MicroK8s, StaticPod)


def detect(choice: str, place: Place = Place()) -> Layout:  # noqa: B008 - frozen, and the one default there is
    """Find the layout of this machine.

    Args:
        choice: "auto", or a layout's name (the charm option `api-server`).
        place: where to look; the machine itself unless a test says otherwise.

    Raises:
        NotFound: none is here (yet), or not the one that was chosen.
        Ambiguous: "auto", and more than one is here.
        Unknown: no layout has that name.

    """
    layouts = [make(place) for make in LAYOUTS]
    names = ", ".join(layout.name for layout in layouts)
    if choice != "auto":
        layouts = [layout for layout in layouts if layout.name == choice]
        if not layouts:
            raise Unknown(f"api-server={choice}: there is no such layout; use auto or one of: {names}")
    found = [layout for layout in layouts if layout.present]
    if not found:
        looked = "; ".join(f"{layout.name}: {evidence(layout)}" for layout in layouts)
        raise NotFound(f"no API server found on this machine (looked for {looked})")
    if len(found) > 1:
        told = ", ".join(f"{layout.name} ({evidence(layout)})" for layout in found)
        raise Ambiguous(f"more than one kind of API server is on this machine: {told}; set api-server to one of them")
    return found[0]


def present(place: Place = Place()) -> tuple[Layout, ...]:  # noqa: B008 - as above
    """Give every layout that is on this machine."""
    return tuple(layout for layout in (make(place) for make in LAYOUTS) if layout.present)


def evidence(layout: Layout) -> str:
    """Say by what a layout is known: what runs its API server, and where that has its flags."""
    return ways.of(layout).evidence


def wired(place: Place = Place()) -> Layout | None:  # noqa: B008 - as above
    """Give the layout that our files are in, be its API server still installed or not; None where there are none.

    This is what `remove` takes when the relation is gone or `api-server` has been changed, for then `detect` may find
    another layout, or nothing.
    """
    for make in LAYOUTS:
        layout = make(place)
        if ways.of(layout).installed() or layout.config_folder.exists():
            return layout
    return None
