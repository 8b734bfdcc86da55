"""`python3 -m benchmarks.sync`: passes of sync over a large Keystone into a real etcd and API server.

1,000 projects, 10,000 users, 30,000 role assignments, put into Keystone's database (through its API it would take
hours). A first pass makes everything, a second finds nothing to do, a third finds ten changes, a fourth that a project
was deleted. What counts is how many calls each makes, what it takes of memory, and how long a review waits meanwhile.
"""

from __future__ import annotations

import base64
import json
import os
import sqlite3
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from benchmarks import SOURCE, program
from benchmarks.report import number
from testbed.apiserver import ApiServer
from testbed.cache import Run, TestbedError, say
from testbed.keystone import Keystone, Project, User

PROJECTS, USERS, ASSIGNMENTS, CHANGED = 1_000, 10_000, 30_000, 10
LIMIT_SECONDS = 1800


class Filled(NamedTuple):
    """What was put in: projects' and users' IDs."""

    projects: list[str]
    users: list[str]


def fill(keystone: Keystone) -> Filled:
    """Put projects, users and assignments into the database of a Keystone, which is started again."""
    keystone.stop()
    projects, users = ([uuid.uuid4().hex for _ in range(count)] for count in (PROJECTS, USERS))
    each = ASSIGNMENTS // USERS
    with sqlite3.connect(keystone.folder / "keystone.sqlite") as database:
        (reader,) = database.execute("SELECT id FROM role WHERE name = 'reader'").fetchone()
        database.executemany(
            "INSERT INTO project (id, name, extra, description, enabled, domain_id, parent_id, is_domain)"
            " VALUES (?, ?, '{}', '', 1, 'default', 'default', 0)",
            [(identifier, f"project-{which:05}") for which, identifier in enumerate(projects)],
        )
        database.executemany(
            "INSERT INTO user (id, extra, enabled, created_at, domain_id)"
            " VALUES (?, '{}', 1, '2026-01-01 00:00:00.000000', 'default')",
            [(identifier,) for identifier in users],
        )
        database.executemany(
            "INSERT INTO local_user (user_id, domain_id, name) VALUES (?, 'default', ?)",
            [(identifier, f"user-{which:06}") for which, identifier in enumerate(users)],
        )
        database.executemany(
            "INSERT INTO assignment (type, actor_id, target_id, role_id, inherited) VALUES ('UserProject', ?, ?, ?, 0)",
            [
                (identifier, projects[(which * each + step) % PROJECTS], reader)
                for which, identifier in enumerate(users)
                for step in range(each)
            ],
        )
    database.close()
    keystone.start()
    return Filled(projects, users)


def settings(folder: Path, keystone: Keystone, server: ApiServer) -> Path:
    """Write what a pass is told."""
    cluster = {
        "server": f"https://127.0.0.1:{server.port}",
        "certificate-authority-data": base64.b64encode(server.ca.read_bytes()).decode(),
    }
    kubeconfig = {
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": server.admin_token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    (folder / "sync.yaml").write_text("data-types-to-sync: [projects, role_assignments]\n")
    account = {"username": "admin", "password": keystone.admin_password, "system-scope": "all"}
    (folder / "credentials").write_text(json.dumps(account))
    content = {
        "listen": "127.0.0.1:1",
        "private_listen": "127.0.0.1:2",
        "tls": {"certificate": "/c", "key": "/k", "client_ca": None, "require_client_certificate": False},
        "keystone": {"url": keystone.url, "ca": str(keystone.ca)},
        "default_domain": "default",
        "upstream_compatible": False,
        "token_cache_ttl": 60,
        "outage_grace": 300,
        "policy": None,
        "chained": None,
        "authentication_backend": None,
        "authorization_backend": None,
        "kubeconfig": str(folder / "kubeconfig"),
        "sync": {
            "config": str(folder / "sync.yaml"),
            "credentials": str(folder / "credentials"),
            "prune": "all",
            "interval": 300,
        },
        "policy_configmap": None,
        "log_level": "info",
    }
    path = folder / "settings.json"
    path.write_text(json.dumps(content))
    return path


def a_pass(path: Path, *arguments: str) -> dict[str, Any]:
    """Make a pass as the service does, and give its summary."""
    done = subprocess.run(
        [sys.executable, "-m", "keystone_authenticator", "sync", "--config", str(path), *arguments],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise TestbedError(f"the pass failed: {done.stdout}{done.stderr}")
    return json.loads(done.stdout)


def change(keystone: Keystone, filled: Filled) -> None:
    """Take half as many roles as are to be changed from users, and give as many."""
    for which in range(CHANGED // 2):
        user = User(filled.users[which], "", "default", "")
        taken, given = (Project(filled.projects[(which * 3 + step) % PROJECTS], "", "default") for step in (0, 500))
        keystone.revoke("reader", user, taken)
        keystone.grant("reader", user, given)


def main() -> int:
    """Fill, make the passes, and print the table."""
    kept = Run("sync")
    lines = [
        ("pass", "changes", "calls to the API server", "calls to Keystone", "seconds", "resident MB"),
        ("---",) * 6,
    ]

    def told(name: str, summary: dict[str, Any]) -> dict[str, Any]:
        changes = sum(summary["changes"].values())
        figures = (changes, summary["kubernetes_calls"], summary["keystone_calls"], summary["seconds"])
        lines.append((name, *map(number, figures), number(summary["memory_mb"])))
        say(" | ".join(lines[-1]))
        if summary["problems"]:
            raise TestbedError(f"there were problems: {summary['first_problems']}")
        return summary

    try:
        with Keystone() as keystone:
            say(f"{PROJECTS:,} projects, {USERS:,} users, {ASSIGNMENTS:,} role assignments")
            filled = fill(keystone)
            with ApiServer() as server:
                path = settings(kept.folder, keystone, server)
                told("a dry run, of everything", a_pass(path, "--dry-run", "--report", str(kept.folder / "report")))
                first = told("the first", a_pass(path))
                told("one without a change", a_pass(path))
                change(keystone, filled)
                few = told(f"one with {CHANGED} changes", a_pass(path))
                if sum(few["changes"].values()) != CHANGED:
                    raise TestbedError(f"not {CHANGED} changes: {few['changes']}")
                keystone.delete(Project(filled.projects[700], "", "default"))
                told("one after a project was deleted (sync-prune=all)", a_pass(path))
                if first["assignments"] < ASSIGNMENTS:
                    raise TestbedError(f"not all assignments were seen: {first}")
    finally:
        kept.remove()
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return 0


if __name__ == "__main__":
    program(main)
