"""Where the API server keeps its flags: find the place, put ours in, prove that it works, take them out again.

This package owns our flags on the API server and nothing else: it does not know the charm, Keystone or the
authenticator. What it needs of them comes in by value (`Desired`) or as a callable (`probe`, `announce`).

    detect("auto")     which kind of cluster this machine belongs to: one module a layout, see `layouts.py`
    evidence(...)      by what it was recognised
    wired()            the layout that our files are in, whatever has become of it since: for `remove`
    asked(...)         is our endpoint asked already, because the operator has told the control plane to?
    check(...)         would our flags stand in someone's way? Raises `Conflict`, changes nothing
    chain(...)         write down which token webhook our flag displaces, for the authenticator to ask in its place
    apply(...)         trial, restart, verify, confirm; on failure everything is put back
    remove(...)        byte for byte as it was
    state(...)         what is in force, for the status
    address(...)       where others reach the API server, as far as this machine knows

Nothing of this is needed while the cluster runs. What keeps it safe then is a shell script, before each start of the
API server (`templates/apiserver/apiserver-flags`) or, where that is a static pod, beside it (`apiserver-pod`), and the
one file that they obey (`wanted.py`). Which of the two, and all that follows from it, is the layout's way (`ways.py`).
"""

from apiserver.address import Address, address
from apiserver.layouts import detect, evidence, wired
from apiserver.model import (
    Ambiguous,
    ApplyFailed,
    Asked,
    Conflict,
    Desired,
    Flag,
    Kind,
    Layout,
    NotFound,
    NotOurTurn,
    NotReady,
    Patience,
    Place,
    State,
    Unknown,
    WiringError,
)
from apiserver.wiring import apply, asked, chain, check, remove, state

__all__ = [
    "Address",
    "Ambiguous",
    "ApplyFailed",
    "Asked",
    "Conflict",
    "Desired",
    "Flag",
    "Kind",
    "Layout",
    "NotFound",
    "NotOurTurn",
    "NotReady",
    "Patience",
    "Place",
    "State",
    "Unknown",
    "WiringError",
    "address",
    "apply",
    "asked",
    "chain",
    "check",
    "detect",
    "evidence",
    "remove",
    "state",
    "wired",
]
