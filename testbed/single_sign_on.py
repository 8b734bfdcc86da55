"""A cloud with single sign-on: Keystone behind Apache's mod_auth_openidc, and an identity provider beside it.

People log in at the provider in a browser (`log_in`), and come back to Keystone as users of the provider's own domain,
with the roles of the Keystone groups that the provider puts them into.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Sequence
from typing import Any

import requests
from playwright.sync_api import Page

from testbed import setup
from testbed.cache import TestbedError
from testbed.keystone import Group, Keystone
from testbed.processes import Standing, free_port, process

PROVIDER = "sso"
PROTOCOL = "openid"
START_TIMEOUT = 60.0  # seconds; 2 are usual
KEYSTONE = """
[auth]
methods = password,token,application_credential,openid
[federation]
assertion_prefix = HTTP_OIDC_
remote_id_attribute = HTTP_OIDC_ISS
sso_callback_template = {venv}/etc/keystone/sso_callback_template.html
"""


class SingleSignOn(Standing):
    """A Keystone, Apache in front of it (`url`) and an identity provider.

    Args:
        origins: where Keystone lets a browser take a token (`trusted_dashboard`).
        authorization_ttl: how many minutes the groups last that the provider puts somebody into; None: not at all.

    """

    def __init__(self, *origins: str, authorization_ttl: int | None = 60) -> None:
        super().__init__()
        self._origins = origins
        self._ttl = authorization_ttl
        self.port, self._provider_port = free_port(), free_port()
        self.url = f"https://127.0.0.1:{self.port}/v3"
        self._issuer = f"http://127.0.0.1:{self._provider_port}"
        self._session = requests.Session()
        self._session.trust_env = False

    def _begin(self) -> None:
        trusted = "".join(f"trusted_dashboard = {origin}\n" for origin in self._origins)
        settings = KEYSTONE.format(venv=setup.keystone()) + trusted
        setup.apache()
        self._stack.enter_context(self._session)
        self.keystone = self._stack.enter_context(Keystone(settings=settings))
        self._start()
        self._federate()

    def _start(self) -> None:
        folder = self.keystone.folder / "apache2"
        folder.mkdir()
        provider = setup.identity_provider() / "bin" / "oidc-provider-mock"
        command = [provider, f"--port={self._provider_port}"]
        self._stack.enter_context(process(folder / "provider.log", command))
        self._wait("the identity provider", f"{self._issuer}/.well-known/openid-configuration")
        configuration = (setup.BUILDS / "identity-provider" / "apache2.conf").read_text()
        filled = configuration.format(
            folder=folder,
            modules="/usr/lib/apache2/modules",
            port=self.port,
            keystone=self.keystone.folder,
            keystone_port=self.keystone.port,
            provider_port=self._provider_port,
            secret=secrets.token_hex(16),
            passphrase=secrets.token_hex(16),
        )
        (folder / "apache2.conf").write_text(filled)
        # It ends its children when it is told to, and could not if it were killed.
        command = ["setpriv", "--pdeathsig=TERM", "--", "apache2", "-DFOREGROUND", "-f", folder / "apache2.conf"]
        self._stack.enter_context(process(folder / "apache2.log", command))
        self._wait("Apache", self.url)

    def _wait(self, what: str, url: str) -> None:
        end = time.monotonic() + START_TIMEOUT
        while True:
            with contextlib.suppress(requests.RequestException):
                if self._session.get(url, verify=str(self.keystone.ca), timeout=START_TIMEOUT).ok:
                    return
            if time.monotonic() > end:
                raise TestbedError(f"{what} does not start at {url}:\n{self.log()[-3000:]}")
            time.sleep(0.1)

    def log(self) -> str:
        """Give what Apache and the provider wrote."""
        return "".join(path.read_text(errors="replace") for path in (self.keystone.folder / "apache2").glob("*.log"))

    def _federate(self) -> None:
        place = f"/OS-FEDERATION/identity_providers/{PROVIDER}"
        self._set({"enabled": True, "remote_ids": [self._issuer], "authorization_ttl": self._ttl}, "PUT")
        user: dict[str, Any] = {"user": {"name": "{0}"}}
        groups = {"groups": "{1}", "domain": {"id": "default"}}
        remote = [{"type": "HTTP_OIDC_SUB"}, {"type": "HTTP_OIDC_GROUPS"}]
        mapping = {"rules": [{"local": [user, groups], "remote": remote}]}
        self.keystone.request("PUT", f"/OS-FEDERATION/mappings/{PROVIDER}", {"mapping": mapping})
        protocol = {"protocol": {"mapping_id": PROVIDER}}
        self.keystone.request("PUT", f"{place}/protocols/{PROTOCOL}", protocol)

    def _set(self, attributes: dict[str, Any], method: str = "PATCH") -> None:
        place = f"/OS-FEDERATION/identity_providers/{PROVIDER}"
        self.keystone.request(method, place, {"identity_provider": attributes})

    def lasting(self, authorization_ttl: int | None) -> None:
        """Say how many minutes groups last from now on; None: not at all."""
        self._set({"authorization_ttl": authorization_ttl})

    def person(self, name: str, groups: Sequence[Group]) -> None:
        """Tell the provider of somebody, and of the groups in Keystone that she is to be in."""
        told = {"groups": [group.name for group in groups]}
        self._session.put(f"{self._issuer}/users/{name}", json=told, timeout=START_TIMEOUT).raise_for_status()

    def log_in(self, page: Page, name: str) -> None:
        """Do what a person does at the provider's page, once the browser shows it."""
        page.wait_for_url(f"{self._issuer}/oauth2/authorize**")
        page.fill("input[name=sub]", name)
        page.click("button[type=submit]:not([name])")
