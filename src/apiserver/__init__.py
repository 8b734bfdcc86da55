"""Where the API server keeps its flags: find the place, put ours in, prove that it works, take them out again.

This package owns our flags on the API server and nothing else: it does not know the charm, Keystone or the
authenticator. What it needs of them comes in by value (`Desired`) or as a callable (`probe`, `announce`).

    detect("auto")     which kind of cluster this machine belongs to: one module a layout, see `layouts.py`
    evidence(...)      by what it was recognised
    wired()            the layout that our files are in, whatever has become of it since: for `remove`
    asked(...)         is our endpoint asked already, because the operator has told the control plane to?
    check(...)         would our flags stand in someone's way? Raises `Conflict`, changes nothing
    authorization_config(...)    the file, if there is one, that ours is to go into beside others' authorizers
    way_over(...)      how its owner gives the API server such a file, where another webhook is in the way
    chain(...)         write down which token webhook our flag displaces, for the authenticator to ask in its place
    apply(...)         trial, restart, verify, confirm; on failure everything is put back
    remove(...)        byte for byte as it was
    state(...)         what is in force, for the status
    knows(...)         whose certificate the API server would take now
    byhand             the same for an API server whose flags somebody else sets: is our endpoint asked? how is it done?
    address(...)       where others reach the API server, as far as this machine knows

Nothing of this is needed while the cluster runs. What keeps it safe then is a shell script, before each start of the
API server (`templates/apiserver/apiserver-flags`) or, where that is a static pod, beside it (`apiserver-pod`), and the
one file that they obey (`wanted.py`). Which of the two, and all that follows from it, is the layout's way (`ways.py`).
Either has a third one look after what is in a file of the API server's authorization (`structured.py`).
"""

from apiserver import byhand
from apiserver.address import Address, address
from apiserver.conversion import Conversion, way_over
from apiserver.layouts import detect, evidence, wired
from apiserver.model import (
    Ambiguous,
    ApplyFailed,
    Asked,
    Authorizer,
    Conflict,
    Desired,
    Flag,
    Hand,
    Kind,
    Knows,
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
from apiserver.structured import as_text as entry_of
from apiserver.structured import named as authorization_config
from apiserver.structured import shown as entry_as_text
from apiserver.verify import Unverified
from apiserver.wiring import apply, asked, chain, check, knows, remove, state

__all__ = [
    "Address",
    "Ambiguous",
    "ApplyFailed",
    "Asked",
    "Authorizer",
    "Conflict",
    "Conversion",
    "Desired",
    "Flag",
    "Hand",
    "Kind",
    "Knows",
    "Layout",
    "NotFound",
    "NotOurTurn",
    "NotReady",
    "Patience",
    "Place",
    "State",
    "Unknown",
    "Unverified",
    "WiringError",
    "address",
    "apply",
    "asked",
    "authorization_config",
    "byhand",
    "chain",
    "check",
    "detect",
    "entry_as_text",
    "entry_of",
    "evidence",
    "knows",
    "remove",
    "state",
    "way_over",
    "wired",
]
