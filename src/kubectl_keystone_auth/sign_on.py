"""`login --browser` and its `logout`: from single sign-on to a context of its own, and back.

A token of single sign-on ends within hours, so what the context logs in with is an application credential, made by that
token: for Kubernetes alone where the cloud's catalogue says that its clusters take such, and for some weeks. The
context has a note of where it came from, so that the next `login --browser` needs no flags.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubectl_keystone_auth import credentials, kubeconfig, terminal, websso
from kubectl_keystone_auth.cache import folder
from kubectl_keystone_auth.commands import Words, as_login, cluster_of, revoke, shown_time, who
from kubectl_keystone_auth.conversation import Conversation
from kubectl_keystone_auth.errors import BadInput, PluginError, Refused
from kubectl_keystone_auth.fresh import log_in
from kubectl_keystone_auth.keystone import Keystone
from kubectl_keystone_auth.options import CREDENTIAL, WEBSSO, Options, read
from kubectl_keystone_auth.store import Store
from kubectl_keystone_auth.tokens import Token, parse_time

VALUES = (
    *("identity-provider", "protocol", "timeout", "for", "name", "role", "expires", "namespace", "rule"),
    *("server", "certificate-authority", "context", "kubeconfig", "output"),
)
SWITCHES = ("browser", "read-only", "exec")
LIFE = "30d"
"""How long a credential is good where nothing else is said."""
REMEMBERED = ("auth_url", "identity_provider", "protocol", "redirect_port", "cacert", "insecure", "project_id")
"""Options that a context's note has, for the next login."""


@dataclass(frozen=True)
class Origin:
    """Where a context's credential came from: the options of the login, the credential, and whose it is."""

    context: str
    login: Mapping[str, str]
    credential: str
    name: str
    user_id: str

    def note(self) -> dict[str, Any]:
        """Give it as a context has it."""
        return {"login": dict(self.login), "credential": self.credential, "name": self.name, "user-id": self.user_id}


def origin(file: str, context: str) -> Origin | None:
    """Give where a context's credential came from, if `login --browser` made it or its predecessor.

    Raises:
        PluginError: there is no such context.

    """
    view = kubeconfig.current(file, context)
    note = kubeconfig.note_of(view)
    login = note.get("login")
    if not isinstance(login, dict):
        return None
    known = {name: str(login[name]) for name in REMEMBERED if login.get(name)}
    texts = (str(note.get(name) or "") for name in ("credential", "name", "user-id"))
    return Origin(str(view.get("current-context") or context), known, *texts)


# --- login


def login(words: Words) -> None:
    """Log in in the browser, make an application credential, and write the context that logs in with it.

    Raises:
        PluginError: its kind says what is wrong.

    """
    words.no_names()
    rules = credentials.rules(
        words.several("namespace"),
        read_only=words.has("read-only"),
        doors=words.has("exec"),
        more=words.several("rule"),
    )
    limited = any(words.several(name) for name in ("namespace", "rule")) or words.has("read-only") or words.has("exec")
    purpose = words.one("for") or ("kubernetes" if limited else "")
    if purpose not in ("", "kubernetes", "everything") or (limited and purpose == "everything"):
        raise BadInput("--for: kubernetes or everything; flags that say what in Kubernetes go with the former")
    expires = None if words.one("expires") == "never" else credentials.expiry(words.one("expires") or LIFE)
    if words.one("output") == "-":
        raise BadInput("--output: a file's name, as there is a secret in it")
    patience = _patience(words.one("timeout"))
    before = _before(words)
    options = _options(words, before)
    entry = cluster_of(words, before.context if before else "")
    conversation = Conversation(options.verbose, options.secrets())
    token = websso.login(options, terminal.present(), conversation, patience)
    try:
        print(f"logged in as {who(token)}", flush=True)
        keystone = Keystone(options, conversation)
        if not purpose and not _catalogued(keystone, token):
            purpose = "everything"
            sys.stderr.write(
                "The credential will be as good as you in the project, in OpenStack too: no service `kubernetes` in the"
                " cloud's catalogue says that clusters take others. --for=kubernetes makes one for Kubernetes alone\n"
            )
        name = words.one("name") or f"kubectl on {socket.gethostname()[:64]} {secrets.token_hex(4)}"
        wanted = () if purpose == "everything" else rules
        made = credentials.make(keystone, token, name, wanted, words.several("role"), expires)
        conversation.hide(made.secret)
        try:
            _write(words, before, options, entry, token, made, conversation)
        except BaseException:
            # Nobody has its secret.
            with contextlib.suppress(PluginError):
                credentials.delete(keystone, token, token.user_id, made.id)
            raise
        until = f", until {shown_time(parse_time(made.expires))}" if made.expires else ""
        print(f"by the application credential {name!r}, good for {'Kubernetes alone' if wanted else purpose}{until}")
        if before and before.credential and before.user_id == token.user_id:
            with contextlib.suppress(PluginError):
                credentials.delete(keystone, token, token.user_id, before.credential)
    finally:
        revoke(options, conversation, token.value)


def _patience(text: str) -> float:
    if not text:
        return websso.DEADLINE
    if not text.isdecimal() or not int(text):
        raise BadInput(f"--timeout={text!r} is no number of seconds")
    return float(text)


def _before(words: Words) -> Origin | None:
    """Give what this login is the next one of, unless it is one of its own."""
    chosen = words.one("context")
    try:
        found = origin(words.one("kubeconfig"), chosen)
    except PluginError:
        return None
    named = words.one("identity-provider") or words.one("protocol")
    sourced = not chosen and (os.environ.get("OS_AUTH_URL") or os.environ.get("OS_CLOUD"))
    return None if named or sourced or _place(words) else found


def _options(words: Words, before: Origin | None) -> Options:
    flags = [f"--os-{name}={words.one(name)}" for name in ("identity-provider", "protocol") if words.one(name)]
    environment = _remembered(before) if before else dict(os.environ)
    if (cloud := environment.get("OS_CLOUD")) and not _place(words):
        flags.append(f"--os-cloud={cloud}")
    return _read([*words.login, *flags], environment)


def _place(words: Words) -> set[str]:
    """Give the flags that say where Keystone is."""
    return {flag.partition("=")[0] for flag in words.login} & {"--keystone-url", "--os-auth-url", "--os-cloud"}


def _remembered(before: Origin) -> dict[str, str]:
    return {f"OS_{name.upper()}": value for name, value in before.login.items()}


def _read(flags: Sequence[str], environment: dict[str, str]) -> Options:
    options = read([*flags, f"--os-auth-type={WEBSSO}"], environment)
    options.auth_type = WEBSSO  # also where a cloud of clouds.yaml would say another
    return options


def _catalogued(keystone: Keystone, token: Token) -> bool:
    answer = keystone.call("GET", "/auth/catalog", token=token.value)
    services = answer.json().get("catalog")
    if answer.status != 200 or not isinstance(services, list):
        return False
    return any(isinstance(one, dict) and one.get("type") == credentials.SERVICE for one in services)


def _write(
    words: Words,
    before: Origin | None,
    options: Options,
    entry: Mapping[str, Any],
    token: Token,
    made: credentials.Made,
    conversation: Conversation,
) -> None:
    """Try the credential, and write the context."""
    given = {name: options.get(name) for name in ("auth_url", "cacert", "cert", "key", "insecure") if options.get(name)}
    given |= {"application_credential_id": made.id, "application_credential_secret": made.secret}
    robot = Options(given, CREDENTIAL, verbose=options.verbose, keep=options.keep)
    # What is written has been tried.
    first = log_in(robot, False, conversation)
    if robot.cacheable():
        Store(folder(), robot.login()).put(first.entry())
    known = {name: options.get(name) for name in REMEMBERED if options.get(name)}
    known["project_id"] = token.project_id
    if "cacert" in known:
        known["cacert"] = str(Path(known["cacert"]).expanduser().absolute())
    context = words.one("context") or (before.context if before else f"keystone-{token.project}")
    origin = Origin(context, known, made.id, made.name, token.user_id)
    user = kubeconfig.user_entry(as_login(robot), origin.note())
    content = kubeconfig.whole(context, entry, user, next(iter(words.several("namespace")), ""))
    path = Path(words.one("output")) if words.one("output") else kubeconfig.target(words.one("kubeconfig"))
    kubeconfig.merge(path, content, use=True)
    print(f"{path}: the context {shlex.quote(context)} logs in as {who(token)}")


# --- logout


def logout(before: Origin, file: str, arguments: list[str], patience: str) -> None:
    """Delete the credential of a context in Keystone, which takes another login in the browser, and take it out.

    Raises:
        PluginError: it is not deleted.

    """
    options = _read(arguments, _remembered(before))
    conversation = Conversation(options.verbose, options.secrets())
    sys.stderr.write("To delete the application credential Keystone has to know you again.\n")
    try:
        token = websso.login(options, terminal.present(), conversation, _patience(patience))
        try:
            if token.user_id != before.user_id:
                raise Refused(f"that login is {who(token)}, and the application credential is somebody else's")
            credentials.delete(Keystone(options, conversation), token, before.user_id, before.credential)
        finally:
            revoke(options, conversation, token.value)
    except PluginError as error:
        raise type(error)(
            f"{error}. The token is forgotten here, but the application credential {before.name!r} is as good as ever:"
            f" delete it in Horizon, or: openstack application credential delete {before.credential}"
        ) from None
    view = kubeconfig.current(file, before.context)
    entry, context = kubeconfig.cluster_of(view), (view.get("contexts") or [{}])[0].get("context") or {}
    user = kubeconfig.user_entry(as_login(options), {"login": dict(before.login)})
    content = kubeconfig.whole(before.context, entry or {}, user, str(context.get("namespace") or ""))
    kubeconfig.merge(kubeconfig.target(file), content, use=False)
    print(f"logged out; Keystone has deleted the application credential {before.name!r}")
