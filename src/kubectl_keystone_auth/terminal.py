"""Asks the user for what a login lacks, where kubectl lends its terminal; otherwise says what is missing."""

from __future__ import annotations

import sys

from kubectl_keystone_auth.errors import BadInput
from kubectl_keystone_auth.options import CREDENTIAL, PASSWORD, Options

URL = ("auth_url",), "Keystone URL", "Keystone's URL (--keystone-url or OS_AUTH_URL)"
USER = ("username", "user_id"), "user name", "the user (--user-name or OS_USERNAME)"
PROJECT = ("project_name", "project_id"), "project name", "the project (--project-name or OS_PROJECT_NAME)"
WORD = ("password",), "password", "the password (OS_PASSWORD)"
CREDENTIAL_USER = (
    ("application_credential_id", "username", "user_id"),
    "user name",
    "whose application credential it is (its ID instead of its name, or --user-name)",
)
SECRET = (
    ("application_credential_secret",),
    "application credential secret",
    "the application credential's secret (OS_APPLICATION_CREDENTIAL_SECRET)",
)
NEEDED = {PASSWORD: (URL, USER, PROJECT, WORD), CREDENTIAL: (URL, CREDENTIAL_USER, SECRET)}


def present() -> bool:
    """Whether there is a terminal to ask on."""
    return sys.stdin is not None and sys.stdin.isatty()


def complete(options: Options, interactive: bool) -> None:
    """Ask for what is missing.

    Raises:
        BadInput: something is, and there is nobody to ask.

    """
    missing = [need for need in NEEDED.get(options.auth_type, ()) if not options.get(*need[0])]
    if not missing:
        return
    if options.auth_type == PASSWORD and len(missing) == len(NEEDED[PASSWORD]) and not interactive:
        raise BadInput(
            "nothing says how to log in: give --keystone-url and --application-credential-id with"
            " OS_APPLICATION_CREDENTIAL_SECRET, or a user, a project and OS_PASSWORD, or --os-cloud"
        )
    if not (interactive and present()):
        what = ", ".join(need[2] for need in missing)
        raise BadInput(f"missing, and there is no terminal to ask on: {what}")
    for names, label, what in missing:
        value = ask(label, hidden=names[0] in ("password", "application_credential_secret"))
        if not value:
            raise BadInput(f"missing: {what}")
        options.given[names[0] if names is not CREDENTIAL_USER[0] else "username"] = value


def ask(label: str, *, hidden: bool) -> str:
    """Ask for one value; standard output is kubectl's."""
    try:
        if hidden:
            import getpass

            return getpass.getpass(f"{label[0].upper()}{label[1:]}: ", sys.stderr)
        sys.stderr.write(f"{label[0].upper()}{label[1:]}: ")
        sys.stderr.flush()
        return sys.stdin.readline().rstrip("\r\n")
    except (EOFError, OSError):
        return ""
