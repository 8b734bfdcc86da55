"""The dashboard, drawn from what a real control plane went through: for the documentation, and to see how it looks.

Grafana itself is not part of the test bed (its licence and its size); the components that it draws with are, and its
formats of numbers, colours and thresholds (builds/dashboard/panels.jsx). What they draw is the JSON that the charm
ships, its queries answered by a real Prometheus, which scraped the authenticators of three machines while users came
and Keystone was away for a while.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from playwright.sync_api import Route

from testbed import setup
from testbed.agent import MODEL, Unit
from testbed.browser import page
from testbed.cache import TestbedError, say
from testbed.highly_available import HighlyAvailable
from testbed.keystone import Project, User
from testbed.machine import Machine
from testbed.prometheus import Prometheus
from testbed.traffic import Traffic

ROOT = setup.HERE.parent
DASHBOARD = ROOT / "src" / "grafana_dashboards" / "kubernetes-keystone.json"
PICTURE = ROOT / "docs" / "images" / "dashboard.png"
WIDTH = 1400
POLICY = json.dumps([{"users": {"projects": ["demo"]}, "resource_permissions": {"default/pods": ["list"]}}])
SCRAPE = 5  # seconds
BEFORE, AWAY, AFTER = 150.0, 150.0, 120.0
"""Seconds that everything is well, that Keystone is away, that it is back: known users are in the grace after 60."""
USERS = 12
NEWCOMER = 3.0  # seconds between two logins
TURNS = 10  # hooks that a unit may wait until the others have restarted their API servers


def filled(expression: str, rate_interval: str) -> str:
    """Put into a query what Grafana does in the places of its variables, all units being selected."""
    return re.sub(r"\$juju_\w+", ".+", expression.replace("$__rate_interval", rate_interval))


def picture() -> Path:
    """Live through an outage, draw the dashboard, and give where the picture lies."""
    setup.dashboard_page()
    return draw(lived(), PICTURE)


# --- what it shows


def lived() -> dict[str, Any]:
    """Give the dashboard with what Prometheus answers its panels after a few minutes, one outage among them."""
    with HighlyAvailable() as plane, contextlib.ExitStack() as stack:
        units = [
            Unit(one.machine, principal=f"kubernetes-master/{number}", number=number)
            for number, one in enumerate(plane.members)
        ]
        options = {"keystone-url": plane.keystone.url, "keystone-ca": plane.keystone.ca.read_text(), "policy": POLICY}
        project = plane.keystone.project("demo")
        say("deploying the charm on each machine")
        with ThreadPoolExecutor(len(units)) as pool:
            list(pool.map(lambda unit: _deploy(unit, plane.charm, options), units))
        targets = [(stack.enter_context(_relay(unit.machine)), _labels(unit)) for unit in units]
        prometheus = stack.enter_context(Prometheus(targets, SCRAPE))
        for member in plane.members:
            stack.enter_context(Traffic(member))
        with People(plane, plane.keystone.member("alice", project), project) as people:
            began = time.time()
            say(f"users come; {BEFORE + AWAY + AFTER:.0f} s from now there is a picture")
            time.sleep(BEFORE)
            plane.keystone.stop()
            people.keystone_is_there.clear()
            time.sleep(AWAY)
            plane.keystone.start()
            people.keystone_is_there.set()
            time.sleep(AFTER)
        return answers(prometheus, began, time.time())


def answers(prometheus: Prometheus, began: float, ended: float) -> dict[str, Any]:
    """Give what a drawing needs: the dashboard, its variables, and what each panel's queries give."""
    content = json.loads(DASHBOARD.read_text())
    # As Grafana has it: four scrapes, so that a rate has two samples even where one was missed.
    rate = f"{4 * prometheus.every}s"
    results = {
        f"{panel['id']} {target['refId']}": prometheus.query_range(
            filled(target["expr"], rate), began, ended, prometheus.every
        )
        for panel in content["panels"]
        for target in panel["targets"]
    }
    variables = [
        (one["label"], one["current"]["text"] if "current" in one else one["label"])
        for one in content["templating"]["list"]
    ]
    told = {"dashboard": content, "results": results, "variables": variables}
    return {**told, "from": began, "to": ended, "step": prometheus.every}


def _deploy(unit: Unit, charm: Path, options: Mapping[str, str]) -> None:
    unit.deploy(charm, options)
    unit.relate()
    for _ in range(TURNS):
        if unit.status.name == "waiting":
            unit.update_status()
    if unit.status.name != "active":
        raise TestbedError(f"{unit.name} is {unit.status.name}: {unit.status.message}")


def _labels(unit: Unit) -> dict[str, str]:
    return {"juju_model": MODEL, "juju_application": unit.application, "juju_unit": unit.name}


@contextlib.contextmanager
def _relay(machine: Machine) -> Iterator[int]:
    """Give a port here on which a machine's metrics are, whose own listener is its loopback's alone."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told = machine.run("curl", "-qsf", "http://127.0.0.1:8444/metrics", check=False)
            self.send_response(502 if told.returncode else 200)
            self.send_header("Content-Type", "text/plain")
            self.end_headers()
            self.wfile.write(told.stdout.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: a line each scrape."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


class People:
    """Users who list pods and try more than they may, who log in anew, and somebody who guesses; inside the context."""

    def __init__(self, plane: HighlyAvailable, user: User, project: Project) -> None:
        self._plane, self._user, self._project = plane, user, project
        self.keystone_is_there = threading.Event()
        self.keystone_is_there.set()
        self._over = threading.Event()
        self._tokens = [self._login() for _ in range(USERS)]
        # Whoever logged in before the outage and comes for the first time in it.
        self._late = [self._login() for _ in range(int(AWAY / NEWCOMER))]
        self._threads = [
            threading.Thread(target=self._again_and_again, args=item)
            for item in ((self._known, 0.2), (self._new, NEWCOMER), (self._guesses, 4.0))
        ]

    def __enter__(self) -> People:
        """Begin."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End; every request under way is waited for."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _login(self) -> str:
        return self._plane.keystone.token(self._user, self._project)

    def _again_and_again(self, what: Any, pause: float) -> None:
        while not self._over.wait(pause):
            what()

    def _known(self) -> None:
        self._lists(random.choice(self._tokens), random.choice(("default", "default", "kube-system")))

    def _new(self) -> None:
        if not self.keystone_is_there.is_set():
            self._lists(self._late.pop() if self._late else self._tokens[0], "default")
            return
        with contextlib.suppress(TestbedError, requests.RequestException):  # Keystone may be going just now
            self._lists(self._login(), "default")

    def _guesses(self) -> None:
        token = self._tokens[0]
        self._lists(token[:-12] + "".join(random.sample(token[-60:], 10)) + token[-2:], "default")

    def _lists(self, token: str, namespace: str) -> None:
        random.choice(self._plane.members).status(f"/api/v1/namespaces/{namespace}/pods", token)


# --- the drawing


def draw(told: Mapping[str, Any], path: Path) -> Path:
    """Draw what `answers` gave, and keep the picture.

    Raises:
        TestbedError: the page says that something is wrong, or a panel has nothing to show.

    """
    folder = setup.dashboard_page()

    def serve(route: Route) -> None:
        # The page asks for its icons by the path that they have on a Grafana server.
        file = folder / urlsplit(route.request.url).path.lstrip("/")
        if file.is_file():
            route.fulfill(path=file)
        else:
            route.fulfill(body="<!doctype html><title>dashboard</title><body></body>", content_type="text/html")

    with page() as seen:
        wrong: list[str] = []
        seen.on("pageerror", lambda error: wrong.append(str(error)))
        seen.set_viewport_size({"width": WIDTH, "height": 1000})
        seen.route("**/*", serve)
        seen.goto("http://localhost/")
        seen.add_style_tag(path=folder / "panels.css")
        seen.add_script_tag(path=folder / "panels.js")
        seen.evaluate("([told, width]) => draw(told, width)", [dict(told), WIDTH])
        seen.wait_for_selector("#dashboard canvas")
        seen.wait_for_load_state("networkidle")
        seen.evaluate("document.fonts.ready")
        empty = seen.eval_on_selector_all("[data-series='0']", "found => found.map(one => one.dataset.panel)")
        if wrong or empty:
            raise TestbedError(f"the dashboard cannot be drawn whole: {'; '.join(wrong)} empty panels: {empty}")
        path.parent.mkdir(exist_ok=True)
        seen.locator("#dashboard").screenshot(path=path)
    return path
