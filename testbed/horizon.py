"""A real Horizon for tests and pictures, on loopback, in front of a Keystone of the test bed; ready within seconds.

It has a copy of Horizon's package of its own, so that settings are dropped where an operator drops them. What people do
there, they do in a browser (`testbed.browser`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from pathlib import Path

import requests
from playwright.sync_api import Page

from testbed import setup
from testbed.browser import page
from testbed.cache import Run, TestbedError
from testbed.keystone import Keystone, User
from testbed.processes import Standing, free_port, process

START_TIMEOUT = 120.0  # seconds; 3 are usual
SNIPPET = "_80_kubernetes_keystone.py"
CREATE = "/identity/application_credentials/create/"
"""Where an application credential is made."""
BUTTON = "text=Download kubeconfig file"
PICTURE = setup.HERE.parent / "docs" / "images" / "horizon.png"


class Horizon(Standing):
    """A Horizon of one's own.

    Args:
        keystone: whose users log in.
        settings: what to put into its folder `local_settings.d`, beside what it needs to run.

    """

    def __init__(self, keystone: Keystone, settings: str = "") -> None:
        super().__init__()
        self._keystone = keystone
        self._settings = settings

    def _begin(self) -> None:
        template, venv = setup.horizon_template(), setup.horizon()
        run = Run("horizon")
        self._stack.callback(run.remove)
        self.folder = run.folder
        package = self.folder / "openstack_dashboard"
        shutil.copytree(template / package.name, package, copy_function=os.link)
        (package / "local" / "local_settings.d" / SNIPPET).write_text(self._settings)
        self._start(venv / "bin" / "gunicorn", template / "static")

    def _start(self, gunicorn: Path, static: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        where = [f"--bind=127.0.0.1:{port}", f"--chdir={setup.HERE / 'wsgi'}"]
        rest = ["--workers=1", "--worker-class=gthread", "--threads=4", "--timeout=0", "--graceful-timeout=1"]
        command = [gunicorn, *where, *rest, "--log-level=warning", "horizon_app"]
        environment = {
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONWARNINGS": "ignore",
            "TESTBED_SECRET_KEY": secrets.token_urlsafe(32),
            "TESTBED_KEYSTONE_URL": self._keystone.url,
            "TESTBED_KEYSTONE_CA": str(self._keystone.ca),
            "TESTBED_STATIC_ROOT": str(static),
        }
        running = self._stack.enter_context(process(self.folder / "log", command, environment=environment))
        end = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if running.poll() is not None or time.monotonic() > end:
                raise TestbedError(f"Horizon does not start at {self.url}:\n{self.log()[-3000:]}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.url}/auth/login/", timeout=START_TIMEOUT).ok
        return False

    def log(self) -> str:
        """Give what Horizon wrote."""
        return (self.folder / "log").read_text(errors="replace")

    # --- what people do there

    def make_credential(self, seen: Page, user: User, name: str, secret: str = "", access_rules: str = "") -> None:
        """Log in and make an application credential; ends on the page that shows it, with its buttons.

        Args:
            seen: a page of a browser.
            user: who logs in, by password.
            name: the credential's name.
            secret: its secret; Keystone chooses one otherwise.
            access_rules: JSON or YAML, as the form takes them.

        """
        seen.goto(f"{self.url}/auth/login/?next={CREATE}")
        seen.fill("#id_username", user.name)
        seen.fill("#id_password", user.password)
        seen.click("#loginBtn")
        seen.fill("#id_name", name)
        seen.fill("#id_secret", secret)
        seen.fill("#id_access_rules", access_rules)
        seen.click("input[type=submit]")
        seen.wait_for_selector(BUTTON)

    @staticmethod
    def download(seen: Page, path: Path) -> None:
        """Press the button that this is all about, and keep the file as a browser's user has it."""
        with seen.expect_download() as found:
            seen.click(BUTTON)
        found.value.save_as(path)


def picture() -> Path:
    """Take the picture of the button for the documentation anew, and give where it lies."""
    with Keystone() as keystone, Horizon(keystone, "KUBECONFIG_ENABLED = True\n") as horizon, page() as seen:
        seen.set_viewport_size({"width": 1000, "height": 560})
        horizon.make_credential(seen, keystone.member("alice", keystone.project("demo")), "laptop")
        PICTURE.parent.mkdir(exist_ok=True)
        seen.locator(BUTTON).hover()
        seen.screenshot(path=PICTURE)
    return PICTURE
