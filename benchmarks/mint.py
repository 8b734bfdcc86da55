"""Mints tokens in bulk with Keystone's own formatter and keys. Runs in Keystone's virtual environment.

Standard input: `{"configuration": folder, "holders": [[user ID, project ID], …], "count": n}`. It prints a token a
line, the holders taking turns.
"""

import base64
import datetime
import json
import sys
import uuid

from keystone.common import utils  # pyright: ignore[reportMissingImports]
from keystone.server import configure  # pyright: ignore[reportMissingImports]
from keystone.token import token_formatters  # pyright: ignore[reportMissingImports]


class Formatter(token_formatters.TokenFormatter):
    """Keystone's formatter; only the keys are not read again for each token."""

    crypto = None


wanted = json.load(sys.stdin)
sys.argv = sys.argv[:1]
configure(config_files=[f"{wanted['configuration']}/keystone.conf"])
Formatter.crypto = token_formatters.TokenFormatter().crypto
formatter = Formatter()
expiry = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None) + datetime.timedelta(hours=1)
holders = wanted["holders"]
for number in range(wanted["count"]):
    user, project = holders[number % len(holders)]
    token = formatter.create_token(
        user,
        utils.isotime(expiry, subsecond=True),
        [base64.urlsafe_b64encode(uuid.uuid4().bytes)[:-2].decode()],
        token_formatters.ProjectScopedPayload,
        methods=["password"],
        project_id=project,
    )
    print(token)
