"""What a kubeconfig logs in with: this plug-in, or a script that needs nothing of it, or a token that is there already.

The scripts and their exec sections lie in `logins`, which the charm has too: its action get-kubeconfig gives files of
the same flavours without a credential. Here the user's own is put in. Not here: writing the file (`kubeconfig`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kubectl_keystone_auth.errors import BadInput
from kubectl_keystone_auth.keystone import check_url
from kubectl_keystone_auth.options import CREDENTIAL, Options, base_url
from kubectl_keystone_auth.tokens import Token

PLUGIN = "plugin"
TOKEN = "token"  # noqa: S105 - a flavour's name
SCRIPTS = ("curl", "powershell")
FLAVOURS = (PLUGIN, *SCRIPTS, "openstack", TOKEN)
LOGINS = Path(__file__).parent / "logins"
API = "client.authentication.k8s.io/v1"
MARK = "kubernetes-keystone"
"""The name of the extension by which a user of ours is known that does not log in with the plug-in."""
ID, SECRET = "OS_APPLICATION_CREDENTIAL_ID", "OS_APPLICATION_CREDENTIAL_SECRET"


def section(flavour: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Give the exec section of a flavour that has one, with these variables."""
    entry = yaml.safe_load((LOGINS / "flavours.yaml").read_text(encoding="utf-8"))[flavour]
    script = [(LOGINS / entry["script"]).read_text(encoding="utf-8")] if "script" in entry else []
    made = {
        "apiVersion": API,
        "interactiveMode": entry["interactiveMode"],
        "command": entry["command"],
        "env": [{"name": name, "value": value} for name, value in environment.items()],
        "args": [*entry["args"], *script],
    }
    return {**made, "installHint": entry["installHint"]} if "installHint" in entry else made


def user(flavour: str, options: Options, token: Token) -> dict[str, Any]:
    """Give the user of a kubeconfig that logs in with a script, with the openstack client, or has a token.

    Args:
        flavour: which.
        options: the login, which has been tried.
        token: what that gave.

    Raises:
        BadInput: it is no login that can be put into such a file.

    """
    mark = [{"name": MARK, "extension": {"flavour": flavour}}]
    if flavour == TOKEN:
        return {"token": token.value, "extensions": mark}
    environment = _environment(options, token) if flavour in SCRIPTS else _client_environment(options, token)
    return {"exec": section(flavour, environment), "extensions": mark}


def _environment(options: Options, token: Token) -> dict[str, str]:
    """Give what a script reads: Keystone, its CA itself, and an application credential."""
    url = base_url(options.get("auth_url"))
    if options.insecure and not url.startswith("http://"):
        raise BadInput("this flavour checks certificates: give Keystone's CA (--cacert) in the place of --insecure")
    check_url(url, options.insecure)
    if options.get("cert"):
        raise BadInput("this flavour shows Keystone no client certificate (--cert): take the flavour plugin")
    environment = {"OS_AUTH_URL": url, **_credential(options, token)}
    if ca := authority(options):
        environment["KEYSTONE_CA"] = ca
    return environment


def _client_environment(options: Options, token: Token) -> dict[str, str]:
    """Give what the openstack client reads: a cloud's name, or an application credential."""
    if options.get("cloud"):
        return {"OS_CLOUD": options.get("cloud")}
    found = openrc(options, token)
    if not found.get("OS_CACERT") and authority(options):
        raise BadInput("the openstack client takes Keystone's CA as a file: give --cacert")
    return found


def _credential(options: Options, token: Token) -> dict[str, str]:
    secret = options.get("application_credential_secret")
    identifier = options.get("application_credential_id") or token.credential_id
    if not secret or not identifier:
        raise BadInput(
            "a file that has all that it needs takes an application credential, which can be taken back by itself: make"
            " one (openstack application credential create NAME) and give --application-credential-id"
        )
    for name, value in (("its ID", identifier), ("its secret", secret)):
        if "\0" in value:
            raise BadInput(f"the application credential cannot be put into a file: {name} has a NUL character")
    return {ID: identifier, SECRET: secret}


def openrc(options: Options, token: Token) -> dict[str, str]:
    """Give the variables by which the openstack client logs in with this application credential.

    Raises:
        BadInput: it is none.

    """
    found = {"OS_AUTH_TYPE": CREDENTIAL, "OS_AUTH_URL": base_url(options.get("auth_url"))}
    found |= {"OS_IDENTITY_API_VERSION": "3", **_credential(options, token)}
    if options.get("cacert"):
        found["OS_CACERT"] = str(Path(options.get("cacert")).expanduser().absolute())
    return found


def cloud(options: Options, token: Token, name: str) -> dict[str, Any]:
    """Give the same as the content of a clouds.yaml."""
    found = openrc(options, token)
    auth = {"auth_url": found["OS_AUTH_URL"], "application_credential_id": found[ID]}
    auth["application_credential_secret"] = found[SECRET]
    made: dict[str, Any] = {"auth_type": CREDENTIAL, "auth": auth, "identity_api_version": 3}
    if "OS_CACERT" in found:
        made["cacert"] = found["OS_CACERT"]
    return {"clouds": {name: made}}


def authority(options: Options) -> str:
    """Give the PEM of Keystone's CA, where one was named or is at hand.

    Raises:
        BadInput: the file cannot be read.

    """
    if not options.get("cacert"):
        return options.get("ca_data")
    from kubectl_keystone_auth.kubeconfig import read_ca

    return read_ca(options.get("cacert")).decode("utf-8", "replace")


def login(view_user: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, str]] | None:
    """Give the plug-in's flags and variables that log in as a user of one of these flavours; None if it is none."""
    if not marked(view_user):
        return None
    listed = (view_user.get("exec") or {}).get("env") or []
    found = {str(one.get("name")): str(one.get("value")) for one in listed if isinstance(one, dict)}
    if "OS_CLOUD" in found:
        return (f"--os-cloud={found['OS_CLOUD']}",), {}
    if not {"OS_AUTH_URL", ID, SECRET} <= found.keys():
        return None
    flags = [f"--keystone-url={found['OS_AUTH_URL']}", f"--application-credential-id={found[ID]}"]
    flags += [f"--cacert={found['OS_CACERT']}"] if found.get("OS_CACERT") else []
    return tuple(flags), {name: found[name] for name in (SECRET, "KEYSTONE_CA") if name in found}


def keystone(view_user: Mapping[str, Any]) -> dict[str, str]:
    """Give what a user of ours says of Keystone, its URL and its CA, whether or not a credential is there."""
    exec_section = view_user.get("exec") or {}
    listed = [one for one in exec_section.get("env") or [] if isinstance(one, dict)]
    found = {str(one.get("name")): str(one.get("value")) for one in listed}
    words = [str(word) for word in exec_section.get("args") or []]
    url = next((word.partition("=")[2] for word in words if word.startswith("--keystone-url=")), "")
    given = {"auth_url": url or found.get("OS_AUTH_URL", ""), "ca_data": found.get("KEYSTONE_CA", "")}
    return {name: value for name, value in given.items() if value} if url or marked(view_user) else {}


def marked(view_user: Mapping[str, Any]) -> bool:
    """Whether a kubeconfig's user was written by `user` or by the charm."""
    listed = view_user.get("extensions") or []
    return any(isinstance(one, dict) and one.get("name") == MARK for one in listed)


def namespace(form: str, token: Token) -> str:
    """Give the namespace of a token's project: a name, or a synchronization's format, with %i, %n and %d in it.

    Raises:
        BadInput: it is no namespace's name.

    """
    made = form.replace("%i", token.project_id).replace("%n", token.project).replace("%d", token.project_domain_id)
    if len(made) > 63 and "%" in form:
        made = token.project_id
    if made and not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", made):
        raise BadInput(f"--namespace: {made!r} is no name of a namespace")
    return made
