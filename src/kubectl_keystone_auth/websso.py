"""Single sign-on in a browser: Keystone's WebSSO, then a token for a project. `loopback` takes what the browser brings.

No plug-in of keystoneauth1's: keystoneauth-websso takes a token from any page that posts one, and keeps it as good as
the user for whoever reads the file; keystoneauth-oidc-browser needs a client of the identity provider's for itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import webbrowser
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from kubectl_keystone_auth import terminal
from kubectl_keystone_auth.conversation import Conversation
from kubectl_keystone_auth.errors import BadInput, NoProject, PluginError, Refused, printable
from kubectl_keystone_auth.keystone import Keystone, domain_of
from kubectl_keystone_auth.loopback import PORT, Loopback
from kubectl_keystone_auth.options import Options, base_url
from kubectl_keystone_auth.tokens import Token, from_answer

DEADLINE = 300.0
"""Seconds for a person to log in."""
MOST_SHOWN = 20
"""Projects that a message names."""


def login(options: Options, interactive: bool, conversation: Conversation, patience: float = DEADLINE) -> Token:
    """Log in.

    Args:
        options: where Keystone is, and which identity provider, protocol and project are meant.
        interactive: whether the user can be asked which project is meant.
        conversation: what is shown.
        patience: seconds for the person to log in.

    Raises:
        PluginError: its kind says what is wrong.

    """
    read_cloud(options)
    keystone = Keystone(options, conversation)
    with Loopback(_port(options), lambda origin: page(options, origin)) as loopback:
        _show(loopback.url)
        unscoped = loopback.token(patience)
    conversation.hide(unscoped)
    return _scoped(keystone, options, unscoped, interactive, conversation)


def page(options: Options, origin: str) -> str:
    """Give the address of Keystone's page that sends a browser to the identity provider, and its token to the origin.

    Raises:
        BadInput: the protocol is missing.

    """
    protocol, provider = options.get("protocol"), options.get("identity_provider")
    if not protocol:
        raise BadInput(
            "missing: --protocol (OS_PROTOCOL), such as openid or saml2, and mostly --identity-provider"
            " (OS_IDENTITY_PROVIDER): the cloud's operator knows both"
        )
    path = f"websso/{quote(protocol, safe='')}"
    if provider:
        path = f"identity_providers/{quote(provider, safe='')}/protocols/{quote(protocol, safe='')}/websso"
    return f"{base_url(options.get('auth_url'))}/auth/OS-FEDERATION/{path}?{urlencode({'origin': origin})}"


def read_cloud(options: Options) -> None:
    """Take from clouds.yaml what a cloud's single sign-on needs.

    Raises:
        BadInput: there is no such cloud.

    """
    name = options.get("cloud")
    if not name:
        return
    from openstack.config import OpenStackConfig
    from openstack.exceptions import ConfigException

    try:
        found = OpenStackConfig().get_one(cloud=name, validate=False).config
    except ConfigException as error:
        raise BadInput(f"the cloud {name!r} of clouds.yaml: {error}") from None
    told = {**(found.get("auth") or {}), **{part: found.get(part) for part in ("cacert", "cert", "key")}}
    told["insecure"] = "true" if found.get("verify") is False else ""
    options.found = {str(part): str(value) for part, value in told.items() if value}


def _port(options: Options) -> int:
    given = options.get("redirect_port") or str(PORT)
    if not given.isdecimal() or not 0 < int(given) < 65536:
        raise BadInput(f"--os-redirect-port={given!r} is no port")
    return int(given)


def _show(url: str) -> None:
    """Open the browser, and say where it is to go if there is none."""
    opened = can_open(os.environ)
    say = f"the browser opens; if it does not: {url}" if opened else f"open this in a browser: {url}"
    sys.stderr.write(f"Log in, {say}\n")
    if not opened and os.environ.get("SSH_CONNECTION"):
        port = url.split(":")[2].partition("/")[0]
        sys.stderr.write(
            f"From the machine that you sit at: ssh -L {port}:localhost:{port} to here, and the browser there\n"
        )
    sys.stderr.flush()
    if opened:
        # Some browsers let a caller wait until they end.
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def can_open(environment: Mapping[str, str]) -> bool:
    """Whether a browser may open: in a terminal there would be one without JavaScript, and in its way."""
    screens = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY", "WSL_DISTRO_NAME")
    return os.name == "nt" or sys.platform == "darwin" or any(environment.get(name) for name in screens)


# --- from who one is to what for


def _scoped(
    keystone: Keystone, options: Options, unscoped: str, interactive: bool, conversation: Conversation
) -> Token:
    answer = keystone.call("GET", "/auth/projects", token=unscoped)
    projects = answer.json().get("projects")
    if answer.status == 401 and keystone.words(answer):
        raise Refused("Keystone does not know the token that the browser brought: is it another cloud's?")
    if answer.status != 200 or not isinstance(projects, list):
        raise keystone.no_keystone(answer)
    project = choose([Project(one) for one in projects if isinstance(one, dict)], options, interactive)
    identity = {"methods": ["token"], "token": {"id": unscoped}}
    body: dict[str, Any] = {"auth": {"identity": identity, "scope": {"project": {"id": project}}}}
    answer = keystone.call("POST", "/auth/tokens?nocatalog", body)
    token = from_answer(answer.headers.get("x-subject-token", ""), answer.json(), answer.skew)
    if answer.status == 201 and token is not None:
        conversation.hide(token.value)
        # The browser has seen it. Others that came of it are to go on: releases that let them end know this query.
        with contextlib.suppress(PluginError):
            keystone.call("DELETE", "/auth/tokens?cascade=false", token=unscoped, subject=unscoped)
        return token
    if answer.status in (401, 403) and keystone.words(answer):
        raise NoProject(f"Keystone gives no token for the project {project!r}: {keystone.words(answer)}")
    raise keystone.no_keystone(answer)


class Project:
    """A project, as Keystone lists it."""

    def __init__(self, listed: Mapping[str, Any]) -> None:
        self.id, self.name, self.domain = (str(listed.get(key) or "") for key in ("id", "name", "domain_id"))

    def __str__(self) -> str:
        """Name it."""
        return f"{self.name!r} ({self.id}, domain {self.domain})"


def choose(projects: Sequence[Project], options: Options, interactive: bool) -> str:
    """Give the ID of the project that is meant.

    Raises:
        NoProject: there is none, or nobody says which.

    """
    identifier, name = options.get("project_id"), options.get("project_name")
    if identifier:
        found = [one for one in projects if one.id == identifier]
    elif name:
        found = [one for one in projects if one.name == name]
        if len(found) > 1:
            found = [one for one in found if one.domain == domain_of(options, "project").get("id")]
    else:
        found = list(projects)
        if len(found) > 1 and interactive and terminal.present():
            found = _asked(found)
    if len(found) == 1:
        return found[0].id
    listed = "; ".join(str(one) for one in projects[:MOST_SHOWN]) or "none"
    if not projects:
        raise NoProject("the login is good, but has no role in any project: the cloud's operator gives those")
    if not found:
        raise NoProject(f"the login has no role in the project {identifier or name!r}. It has in: {listed}")
    raise NoProject(f"which project is meant? --project-id says it. There are: {listed}")


def _asked(projects: Sequence[Project]) -> list[Project]:
    for number, project in enumerate(projects, 1):
        sys.stderr.write(f"{number:3} {printable(str(project))}\n")
    given = terminal.ask("project, by its number", hidden=False).strip()
    if given.isdecimal() and 0 < int(given) <= len(projects):
        return [projects[int(given) - 1]]
    return [one for one in projects if given in (one.id, one.name)] or list(projects)
