"""What is counted, and its text in Prometheus' format (version 0.0.4) for `/metrics`. Never a token or a user's name.

Counting happens on the way of every review, so it is an addition to a plain integer there; names and labels are put
together when somebody looks. (prometheus-client takes a lock for each addition, and a dictionary of labels.) What has
its own owner, as the size of a cache, is not counted here but read from there.
"""

from __future__ import annotations

import os
import resource
import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

PREFIX = "kubernetes_keystone_"
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
# Seconds: an answer from memory takes a fraction of a millisecond. Keystone's deadline is 4 s, a chained webhook 12 s.
BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Labels = Mapping[str, str]


class Histogram:
    """How long something took."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one more."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class Calls:
    """Calls to one service: by status, 0 where there was no answer."""

    __slots__ = ("by_status", "in_flight", "seconds")

    def __init__(self) -> None:
        self.by_status: dict[int, int] = {}
        self.in_flight = 0
        self.seconds = Histogram()

    def ended(self, status: int, seconds: float) -> None:
        """Count one more."""
        self.by_status[status] = self.by_status.get(status, 0) + 1
        self.seconds.observe(seconds)


class Metrics:
    """All that is counted; counters outlive the parts of the service that are rebuilt."""

    def __init__(self) -> None:
        # API version -> counts in the order of `RESULTS`
        self.tokens = {"v1": [0, 0, 0], "v1beta1": [0, 0, 0]}
        self.access = {"v1": [0, 0, 0], "v1beta1": [0, 0, 0]}
        self.not_reviews = 0
        # When the last one was answered, of the clock that measures durations; at first: when counting began.
        self.last_token = self.last_access = time.perf_counter()
        self.token_seconds = Histogram()
        self.access_seconds = Histogram()
        self.keystone_hits = self.keystone_misses = 0
        self.cluster_hits = self.cluster_misses = 0
        self.stale = 0
        self.shed = 0
        self.policy_failures = 0
        self.log_lines_left_out = 0
        self.calls = {name: Calls() for name in SERVICES}


TOKEN_RESULTS = ("authenticated", "refused", "error")
ACCESS_RESULTS = ("allowed", "no_opinion", "error")
SERVICES = ("keystone", "authentication_backend", "authorization_backend", "cluster_webhook", "kubernetes")


class Text:
    """The text, family by family."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, about: str, samples: Iterable[tuple[Labels, float]]) -> None:
        """Add a counter or a gauge with its samples."""
        name = PREFIX + name
        self._lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
        self._lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples]

    def value(self, name: str, kind: str, about: str, value: float) -> None:
        """Add one without labels."""
        self.family(name, kind, about, [({}, value)])

    def histogram(self, name: str, about: str, samples: Sequence[tuple[Labels, Histogram]]) -> None:
        """Add a histogram with its samples."""
        name = PREFIX + name
        self._lines += [f"# HELP {name} {about}", f"# TYPE {name} histogram"]
        for labels, histogram in samples:
            total = 0
            for bound, count in zip((*map(str, BOUNDS), "+Inf"), histogram.counts, strict=True):
                total += count
                self._lines.append(f"{name}_bucket{_labels({**labels, 'le': bound})} {total}")
            self._lines.append(f"{name}_sum{_labels(labels)} {_number(histogram.total)}")
            self._lines.append(f"{name}_count{_labels(labels)} {total}")

    def counted(self, metrics: Metrics) -> None:
        """Add everything that `Metrics` has."""
        reviews: list[tuple[Labels, float]] = []
        for kind, versions, results in (
            ("TokenReview", metrics.tokens, TOKEN_RESULTS),
            ("SubjectAccessReview", metrics.access, ACCESS_RESULTS),
        ):
            for version, counts in versions.items():
                for result, count in zip(results, counts, strict=True):
                    reviews.append(({"kind": kind, "version": version, "result": result}, count))
        reviews.append(({"kind": "none", "version": "none", "result": "invalid"}, metrics.not_reviews))
        self.family("reviews_total", "counter", "Reviews answered.", reviews)
        self.histogram(
            "review_duration_seconds",
            "Time from a review's last byte to its answer.",
            [
                ({"kind": "TokenReview"}, metrics.token_seconds),
                ({"kind": "SubjectAccessReview"}, metrics.access_seconds),
            ],
        )
        now = time.perf_counter()
        self.family(
            "last_review_age_seconds",
            "gauge",
            "Time since the last review was answered (the watchdog's do not count), or since the start.",
            [
                ({"kind": "TokenReview"}, now - metrics.last_token),
                ({"kind": "SubjectAccessReview"}, now - metrics.last_access),
            ],
        )
        for what, keystone, cluster in (
            ("hits", metrics.keystone_hits, metrics.cluster_hits),
            ("misses", metrics.keystone_misses, metrics.cluster_misses),
        ):
            samples = [({"tokens": "keystone"}, keystone), ({"tokens": "cluster"}, cluster)]
            self.family(f"token_cache_{what}_total", "counter", f"Token reviews that were cache {what}.", samples)
        self.value(
            "token_cache_stale_answers_total",
            "counter",
            "Answers within the outage grace, past their time.",
            metrics.stale,
        )
        self.value(
            "reviews_shed_total", "counter", "Token reviews answered 429, for want of a call slot.", metrics.shed
        )
        self.family(
            "calls_total",
            "counter",
            "Calls to other services by HTTP status, `none` for no answer.",
            [
                ({"service": name, "status": str(status or "none")}, count)
                for name, calls in metrics.calls.items()
                for status, count in sorted(calls.by_status.items())
            ],
        )
        self.family(
            "call_failures_total",
            "counter",
            "Calls to other services without a verdict: no answer, or a status of 429 or from 500 on.",
            [
                (
                    {"service": name},
                    sum(count for status, count in calls.by_status.items() if status in (0, 429) or status >= 500),
                )
                for name, calls in metrics.calls.items()
            ],
        )
        self.family(
            "calls_in_flight",
            "gauge",
            "Calls to other services under way.",
            [({"service": name}, calls.in_flight) for name, calls in metrics.calls.items()],
        )
        self.histogram(
            "call_duration_seconds",
            "Time that calls to other services took.",
            [({"service": name}, calls.seconds) for name, calls in metrics.calls.items()],
        )
        self.value(
            "policy_reload_failures_total", "counter", "Policies that could not be used.", metrics.policy_failures
        )
        self.value(
            "log_lines_left_out_total",
            "counter",
            "Lines of the log that were too many for their second.",
            metrics.log_lines_left_out,
        )

    def process(self, started: float) -> None:
        """Add what every Prometheus client tells of its process."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  a folder of the kernel's
        for name, kind, value in (
            ("process_cpu_seconds_total", "counter", usage.ru_utime + usage.ru_stime),
            ("process_resident_memory_bytes", "gauge", pages * resource.getpagesize()),
            ("process_open_fds", "gauge", descriptors),
            ("process_start_time_seconds", "gauge", started),
        ):
            self._lines += [f"# HELP {name} As Prometheus' clients have it.", f"# TYPE {name} {kind}"]
            self._lines.append(f"{name} {_number(value)}")

    def render(self) -> bytes:
        """The whole text."""
        return ("\n".join(self._lines) + "\n").encode()


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    escaped = {
        name: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for name, value in labels.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))
