"""What a monitoring agent is told over `cos-agent`: where the metrics are, what is worth an alert, and a dashboard.

The interface is grafana-agent's: one JSON document under the key `config` of the unit's own data, with dashboards as
LZMA in base64 (github.com/canonical/charm-relation-interfaces, interfaces/cos_agent/v0; its library is no package, and
the little that it does for a charm is here, compared with `cosl` by a test). The agent adds the unit's labels to what
it scrapes, and takes the log from the journal by itself.

Not here: what is counted (keystone_authenticator/metrics.py), and what the rules and the dashboard say (their files).
"""

from __future__ import annotations

import base64
import json
import logging
import lzma
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ops
import yaml

from config import PRIVATE_PORT

logger = logging.getLogger(__name__)

RELATION = "cos-agent"
RULES = Path(__file__).parent / "prometheus_alert_rules"
DASHBOARDS = Path(__file__).parent / "grafana_dashboards"
_KEY = "config"


def publish(charm: ops.CharmBase, *, running: bool) -> None:
    """Tell each agent that is related; what it has been told already is not told again.

    Args:
        charm: whose unit speaks.
        running: whether there is something to watch. Otherwise what was told is taken back: a service that was taken
            away on purpose is no fault.
    """
    text = ""
    for relation in charm.model.relations[RELATION]:
        if not relation.active:
            continue
        if running and not text:
            text = document(
                {
                    "juju_model": charm.model.name,
                    "juju_model_uuid": charm.model.uuid,
                    "juju_application": charm.app.name,
                    "juju_charm": charm.meta.name,
                }
            )
        try:
            data = relation.data[charm.unit]
            if data.get(_KEY, "") != text:
                data[_KEY] = text
        except ops.ModelError as error:
            # The relation is there for the application before it is for the unit; its own event comes yet.
            logger.info("the monitoring agent is told later: %s", error)


def document(labels: Mapping[str, str]) -> str:
    """Give what the agent is told, in JSON; the same labels give the same text.

    Args:
        labels: of the application (Juju's topology), as the agent puts them on the metrics.
    """
    return json.dumps(
        {
            "metrics_alert_rules": alert_rules(labels),
            "log_alert_rules": {},
            "dashboards": [_packed(path.read_bytes()) for path in sorted(DASHBOARDS.glob("*.json"))],
            "metrics_scrape_jobs": [
                {
                    "job_name": labels["juju_application"],
                    "metrics_path": "/metrics",
                    "static_configs": [{"targets": [f"127.0.0.1:{PRIVATE_PORT}"]}],
                }
            ],
            "log_slots": [],
        }
    )


def alert_rules(labels: Mapping[str, str]) -> dict[str, Any]:
    """Give the alert rules as a rule file of Prometheus, about the metrics with these labels and no others.

    Args:
        labels: put on each alert, and as matchers into each expression; but for the charm's name, which metrics have
            not.
    """
    matchers = ",".join(f"{name}={json.dumps(value)}" for name, value in labels.items() if name != "juju_charm")
    # As COS names groups, so that those of two applications do not meet.
    parts = (labels.get("juju_model"), labels.get("juju_model_uuid", "")[:8], labels.get("juju_application"))
    prefix = "_".join(part for part in parts if part)
    groups: list[dict[str, Any]] = []
    for path in sorted(RULES.glob("*.yaml")):
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                rule["expr"] = rule["expr"].replace("%%juju_topology%%", matchers)
                rule["labels"] = {**labels, **rule["labels"]}
            name = re.sub(r"\W", "_", f"{prefix}_{group['name']}_rules")
            groups.append({**group, "name": name})
    return {"groups": groups}


def _packed(content: bytes) -> str:
    return base64.b64encode(lzma.compress(content)).decode()
