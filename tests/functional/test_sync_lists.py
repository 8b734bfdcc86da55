"""Lists of Keystone's that are longer than a page of its own: nothing may be missed in silence."""

from __future__ import annotations

import json
import sqlite3
import uuid
from pathlib import Path

import pytest

from keystone_authenticator.settings import Remote
from keystone_authenticator.sync.directory import Account
from testbed.keystone import Keystone

pytestmark = pytest.mark.functional

MANY = 1_203  # more than Keystone's max_db_limit, which is 1,000 if nobody sets it


async def test_all_projects_and_users_are_seen_however_many_there_are(tmp_path: Path) -> None:
    with Keystone() as keystone:
        keystone.stop()
        projects, users = ([uuid.uuid4().hex for _ in range(MANY)] for _ in range(2))
        with sqlite3.connect(keystone.folder / "keystone.sqlite") as database:
            (reader,) = database.execute("SELECT id FROM role WHERE name = 'reader'").fetchone()
            for which, (project, user) in enumerate(zip(projects, users, strict=True)):
                database.execute(
                    "INSERT INTO project (id, name, extra, enabled, domain_id, parent_id, is_domain)"
                    " VALUES (?, ?, '{}', 1, 'default', 'default', 0)",
                    (project, f"p{which}"),
                )
                database.execute(
                    "INSERT INTO user (id, extra, enabled, domain_id) VALUES (?, '{}', 1, 'default')", (user,)
                )
                name = (user, f"u{which}")
                database.execute("INSERT INTO local_user (user_id, domain_id, name) VALUES (?, 'default', ?)", name)
                assignment = (user, project, reader)
                database.execute("INSERT INTO assignment VALUES ('UserProject', ?, ?, ?, 0)", assignment)
        database.close()
        keystone.start()
        credentials = tmp_path / "credentials"
        account = {"username": "admin", "password": keystone.admin_password, "system-scope": "all"}
        credentials.write_text(json.dumps(account))
        asking = Account(Remote(keystone.url, keystone.ca), credentials)
        await asking.log_in()
        found = await asking.directory()
        assert set(projects) <= set(found.projects)
        assert {user: found.users[user].name for user in users} == {user: f"u{n}" for n, user in enumerate(users)}
        assert all((user, "reader") in found.holders[project] for project, user in zip(projects, users, strict=True))
        # Lists, and not one call for each user.
        assert asking.calls < 12
        assert await asking.is_gone(uuid.uuid4().hex)
        assert not await asking.is_gone(projects[0])
        await asking.close()
