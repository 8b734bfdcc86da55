"""A real Prometheus on loopback that scrapes what it is told to, for as long as its context lasts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import requests
import yaml

from testbed import setup
from testbed.cache import Run, TestbedError
from testbed.processes import Standing, free_port, process

START_TIMEOUT = 60.0  # seconds; one is usual


class Prometheus(Standing):
    """A Prometheus of one's own.

    Args:
        targets: where there are metrics: a port of 127.0.0.1, with the labels that its series get besides.
        every: seconds between two scrapes.

    """

    def __init__(self, targets: Sequence[tuple[int, Mapping[str, str]]], every: int = 1) -> None:
        super().__init__()
        self._targets = targets
        self.every = every

    def _begin(self) -> None:
        run = Run("prometheus")
        self._stack.callback(run.remove)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        scraped = [{"targets": [f"127.0.0.1:{port}"], "labels": dict(labels)} for port, labels in self._targets]
        configuration = run.folder / "prometheus.yml"
        configuration.write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": f"{self.every}s", "scrape_timeout": f"{self.every}s"},
                    "scrape_configs": [{"job_name": "kubernetes-keystone", "static_configs": scraped}],
                }
            )
        )
        command = [
            setup.prometheus() / "prometheus",
            f"--config.file={configuration}",
            f"--storage.tsdb.path={run.folder}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        log = run.folder / "log"
        running = self._stack.enter_context(process(log, command))
        end = time.monotonic() + START_TIMEOUT
        while not self._is_ready():
            if running.poll() is not None or time.monotonic() > end:
                raise TestbedError(f"Prometheus does not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        try:
            return requests.get(f"{self.url}/-/ready", timeout=10).status_code == 200
        except requests.RequestException:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Give what it has now: series with `metric` and `value`."""
        return self._ask("query", query=expression)

    def query_range(self, expression: str, begin: float, end: float, step: int) -> list[dict[str, Any]]:
        """Give what it had between two times (Unix), each `step` seconds: series with `metric` and `values`."""
        return self._ask("query_range", query=expression, start=begin, end=end, step=step)

    def _ask(self, what: str, **parameters: Any) -> list[dict[str, Any]]:
        answer = requests.post(f"{self.url}/api/v1/{what}", data=parameters, timeout=30)
        if answer.status_code != 200:
            raise TestbedError(f"Prometheus does not take {parameters['query']}: {answer.text}")
        return answer.json()["data"]["result"]
