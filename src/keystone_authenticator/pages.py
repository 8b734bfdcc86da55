"""The private listener's pages: `/healthz`, `/readyz`, `/status` and `/metrics`; no token or user name is on them."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import Any

from keystone_authenticator import __version__, certificates, document, flags, metrics
from keystone_authenticator.clock import rfc3339
from keystone_authenticator.metrics import CONTENT_TYPE
from keystone_authenticator.parts import Parts
from keystone_authenticator.server import Connections, Reply, Request, text
from keystone_authenticator.sync.following import told


class Pages:
    """How the parts are, for the charm and for monitoring.

    Args:
        parts: they.
        endpoint: gives the connections to the webhook's endpoint, if there is one.
        address_error: gives why it is not where the settings want it, if so.

    """

    def __init__(
        self, parts: Parts, endpoint: Callable[[], Connections | None], address_error: Callable[[], str | None]
    ) -> None:
        self._parts = parts
        self._endpoint = endpoint
        self._address_error = address_error

    def refuse(self, request: Request) -> Reply | None:
        """All that can be said from the head."""
        if request.path not in ("/healthz", "/readyz", "/status", "/metrics"):
            return text(404, "there are only /healthz, /readyz, /status and /metrics here")
        if request.method not in ("GET", "HEAD"):
            return text(405, "only GET", b"Allow: GET, HEAD\r\n")
        return None

    def answer(self, request: Request, body: bytes) -> bytes | Reply:  # noqa: ARG002  a GET has none
        """Answer."""
        if request.path == "/healthz":
            return text(200, "ok")
        if request.path == "/status":
            return document.encode(self._status())
        if request.path == "/metrics":
            return Reply(200, self._metrics(), CONTENT_TYPE)
        reasons = self._not_ready()
        return text(503, "\n".join(reasons)) if reasons else text(200, "ok")

    def _not_ready(self) -> list[str]:
        """Why the API server should not be pointed here yet; Keystone's being down is no reason."""
        parts, reasons = self._parts, []
        if parts.chain_state in ("missing", "broken"):
            reasons.append(f"chained: {parts.chain_part.error}")
        if parts.settings.policy is not None and parts.policy is None:
            reasons.append(f"policy: {parts.policy_part.error}")
        if parts.keystone_part.loaded is None:
            reasons.append(f"keystone: {parts.keystone_part.error}")
        if parts.settings.authorization_backend is not None and parts.backend is None:
            reasons.append(f"authorization_backend: {parts.access_part.error}")
        return reasons

    def _metrics(self) -> bytes:
        """All that is counted, for Prometheus."""
        parts, page, now = self._parts, metrics.Text(), time.time()
        policy = parts.policy_part
        page.counted(parts.metrics)
        tokens, cluster = parts.authenticator.keystone.gauges(), parts.authenticator.cluster.gauges()
        page.family(
            "token_cache_entries",
            "gauge",
            "Verdicts at hand, kept past their time for the outage grace included.",
            [
                ({"tokens": "keystone", "verdict": "known"}, tokens["known"]),
                ({"tokens": "keystone", "verdict": "refused"}, tokens["refused"]),
                ({"tokens": "cluster", "verdict": "any"}, cluster["verdicts"]),
            ],
        )
        sizes = [({"tokens": "keystone"}, tokens["bytes"]), ({"tokens": "cluster"}, cluster["bytes"])]
        page.family("token_cache_bytes", "gauge", "About what they take.", sizes)
        page.value(
            "breaker_open", "gauge", "Whether calls about Keystone's tokens are held back.", tokens["breaker_open"]
        )
        page.value(
            "outage_seconds", "gauge", "For how long calls have been held back; 0 if they are not.", tokens["outage"]
        )
        page.value(
            "outage_grace_left_seconds",
            "gauge",
            "For how long the last user who was known before is let in without an answer; all of it without an outage.",
            tokens["grace_left"],
        )
        page.family("build_info", "gauge", "The version that runs.", [({"version": __version__}, 1)])
        loaded = policy.hash is not None and policy.loaded is not None
        hashes: list[tuple[metrics.Labels, float]] = [({"sha256": str(policy.hash)}, 1)] if loaded else []
        page.family("policy_info", "gauge", "The SHA-256 of the policy file in force.", hashes)
        page.value("policy_items", "gauge", "Items of the policy.", len(parts.policy.items) if parts.policy else 0)
        ages: list[tuple[metrics.Labels, float]] = [({}, now - (policy.loaded or 0))] if loaded else []
        page.family("policy_age_seconds", "gauge", "Time since the policy was put in force.", ages)
        for name, part in (
            ("policy", parts.policy_part),
            ("settings", parts.settings_part),
            ("chained", parts.chain_part),
            ("tls", parts.tls_part),
            ("sync", parts.sync_part),
        ):
            about = f"Whether the last look at this file failed ({name})."
            page.value(f"{name}_failed", "gauge", about, int(part.error is not None))
        configmap = self._configmap_status()
        page.value(
            "policy_configmap_failed",
            "gauge",
            "Whether the policy's ConfigMap cannot be looked at.",
            int(configmap is not None and configmap["error"] is not None),
        )
        sources = [({"source": name}, int(parts.policy_source == name)) for name in ("none", "option", "configmap")]
        page.family("policy_source", "gauge", "Where the policy in force comes from.", sources)
        self._sync_metrics(page)
        connections = self._endpoint()
        if connections is not None:
            page.value("connections", "gauge", "Open connections to the endpoint.", len(connections.open))
            errors = [({"status": str(status)}, count) for status, count in sorted(connections.errors.items())]
            page.family("http_errors_total", "counter", "Requests to the endpoint answered with an error.", errors)
        page.family(
            "certificate_end_timestamp_seconds",
            "gauge",
            "When it ends: the endpoint's own, the CA of its clients, the one that the API server showed last.",
            self._ends(),
        )
        state = flags.state(parts.settings.flags)
        page.family(
            "api_server_flags",
            "gauge",
            "How it is with the API server's flags: 1 for the state that they are in.",
            [({"state": name}, int(name == state)) for name in flags.STATES],
        )
        # By flags for access reviews alone, no token comes here.
        expected = int(parts.settings.chained is not None and state == flags.CONFIRMED)
        page.value("token_reviews_expected", "gauge", "Whether the API server's flags have it ask here.", expected)
        page.value("ready", "gauge", "Whether /readyz says so.", int(not self._not_ready()))
        page.process(parts.started)
        return page.render()

    def _ends(self) -> list[tuple[metrics.Labels, float]]:
        parts, connections = self._parts, self._endpoint()
        client = connections.client_ends if connections is not None else None
        found = {
            "endpoint": parts.certificate_ends,
            "client_ca": certificates.last_authority_ends(parts.tls_context) if parts.tls_context else None,
            "api_server": ssl.cert_time_to_seconds(client) if client else None,
        }
        return [({"certificate": name}, end) for name, end in found.items() if end is not None]

    def _status(self) -> dict[str, Any]:
        """All that the private listener tells."""
        parts = self._parts
        last = parts.keystone.last_answer if parts.keystone is not None else None
        policy = parts.policy_part
        return {
            "version": __version__,
            "started": rfc3339(parts.started),
            "policy": {
                "hash": policy.hash,
                "rules": len(parts.policy.items) if parts.policy is not None else 0,
                "loaded": rfc3339(policy.loaded) if policy.loaded is not None and policy.hash is not None else None,
                "load_ms": parts.policy_ms,
                "source": parts.policy_source,
                "configmap": self._configmap_status(),
                "error": policy.error,
            },
            "sync": self._sync_status(),
            "settings": {
                "hash": parts.settings_part.hash,
                "loaded": rfc3339(parts.settings_part.loaded or parts.started),
                "error": parts.settings_part.error or self._address_error(),
            },
            "chained": {
                "state": parts.chain_state,
                "hash": parts.chain_part.hash,
                "error": parts.chain_part.error,
                "outage": parts.authenticator.cluster.outage,
            },
            "tls": {"hash": parts.tls_part.hash, "error": parts.tls_part.error},
            "keystone": {
                "last_answer": {"at": rfc3339(last.at), "status": last.status, "error": last.error} if last else None,
                "error": parts.keystone_part.error,
                "outage": parts.authenticator.keystone.outage,
            },
        }

    def _configmap_status(self) -> dict[str, Any] | None:
        named, found = self._parts.settings.policy_configmap, self._parts.configmap
        if named is None:
            return None
        error = self._parts.configmap_part.error if found is None else found.error
        state = "unknown" if found is None or not found.known else "absent" if found.content is None else "present"
        return {"name": "/".join(named), "state": state, "error": error}

    def _sync_status(self) -> dict[str, Any] | None:
        parts = self._parts
        if parts.settings.sync is None:
            return None
        logins, passes = parts.login_counts, parts.pass_counts
        return {
            "hash": parts.sync_part.hash,
            "error": parts.sync_part.error or parts.writing_part.error,
            "logins": {
                "waiting": parts.logins.waiting if parts.logins is not None else 0,
                "done": logins.done,
                "failed": logins.failed,
                "dropped": logins.dropped,
                "error": logins.last_error,
            },
            "passes": {
                "set": parts.passes is not None,
                "holds_lease": passes.holds,
                "holder": passes.holder,
                "done": passes.done,
                "failed": passes.failed,
                "last": told(passes.last),
                "last_at": rfc3339(passes.last_at) if passes.last_at is not None else None,
                "error": passes.error if parts.passes is not None else None,
            },
        }

    def _sync_metrics(self, page: metrics.Text) -> None:
        parts = self._parts
        logins, passes = parts.login_counts, parts.pass_counts
        outcomes = [("written", logins.done), ("failed", logins.failed), ("dropped", logins.dropped)]
        about = "Logins that were to be written into the cluster."
        page.family("sync_logins_total", "counter", about, [({"result": name}, count) for name, count in outcomes])
        waiting = parts.logins.waiting if parts.logins is not None else 0
        page.value("sync_logins_waiting", "gauge", "Logins that wait for it.", waiting)
        samples = [({"result": "done"}, passes.done), ({"result": "failed"}, passes.failed)]
        page.family("sync_passes_total", "counter", "Passes over everything that this unit made.", samples)
        changes: list[tuple[metrics.Labels, float]] = []
        for by, counted in (("login", logins.changes), ("pass", passes.changes)):
            for key, count in sorted(counted.items()):
                verb, kind = key.split()
                changes.append(({"by": by, "verb": verb, "kind": kind}, count))
        page.family("sync_changes_total", "counter", "Objects of the cluster that were changed.", changes)
        page.value("sync_holds_lease", "gauge", "Whether this unit makes the passes.", int(passes.holds))
        last: list[tuple[metrics.Labels, float]] = [({}, passes.last_at)] if passes.last_at is not None else []
        page.family("sync_last_pass_timestamp_seconds", "gauge", "When the last good pass ended.", last)
        problems = passes.last.problems if passes.last is not None else 0
        page.value("sync_problems", "gauge", "What the last good pass left as it is although it should not.", problems)
