"""Whose token is this? Asked once, of Keystone itself and past all caches: the charm's action check-authentication.

The running service is not asked here, and nothing of it is used but the code that decides.
"""

from __future__ import annotations

from typing import Any

from keystone_authenticator.authentication import KeystoneValidator, has_keystone_shape
from keystone_authenticator.clock import rfc3339
from keystone_authenticator.identity import Naming
from keystone_authenticator.keystone import DEADLINE, Keystone, Refused
from keystone_authenticator.outbound import CannotTell, Client, TlsMaterialError, remote_context
from keystone_authenticator.settings import Settings


async def identify(settings: Settings, token: str) -> dict[str, Any]:
    """Say who holds a token, and whom the cluster takes them for.

    Returns:
        `verdict`: `valid`, `refused` or `cannot-tell`, with a `reason` for the last two; `not-keystones` for a token
        that Keystone is never asked about; `elsewhere` where another service (`reason`) stands in Keystone's place.
        With `valid` also user, domain, project, roles, expires, credential (its ID, or null), and the Kubernetes names
        username and groups.

    """
    if not has_keystone_shape(token):
        return {"verdict": "not-keystones"}
    if settings.authentication_backend is not None:
        return {"verdict": "elsewhere", "reason": settings.authentication_backend.url}
    try:
        context = remote_context(settings.keystone.url, settings.keystone.ca)
    except (TlsMaterialError, OSError) as error:
        return {"verdict": "cannot-tell", "reason": str(error)}
    keystone = Keystone(settings.keystone.url, Client("Keystone", context, DEADLINE))
    naming = Naming(settings.default_domain, settings.upstream_compatible)
    validator = KeystoneValidator(keystone, naming, 0, 0)
    try:
        valid = await keystone.validate(token)
        identity = (await validator.known(token)).identity
    except Refused as error:
        return {"verdict": "refused", "reason": str(error)}
    except CannotTell as error:
        return {"verdict": "cannot-tell", "reason": str(error)}
    finally:
        await validator.close()
    account = valid.account
    return {
        "verdict": "valid",
        "user": account.user_name,
        "domain": account.user_domain_name,
        "project": account.project_name,
        "roles": list(account.roles),
        "expires": None if valid.expires_at == float("inf") else rfc3339(valid.expires_at),
        "credential": account.application_credential_id,
        "username": identity.username,
        "groups": list(identity.groups),
    }
