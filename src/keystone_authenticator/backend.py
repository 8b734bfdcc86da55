"""A k8s-keystone-auth, or another service of its kind, behind our endpoint in the embedded authenticator's place.

Routing, caching and filtering in front stay ours. It is spoken to in `v1beta1`, as k8s-keystone-auth refuses `v1`,
and what it answers is checked: its users must carry the `extra` that marks Keystone's, and may not be ones that
Kubernetes keeps for itself.
"""

from __future__ import annotations

from keystone_authenticator import reviews
from keystone_authenticator.identity import PROJECT_ID, ROLES, USER_DOMAIN_ID, Identity, is_reserved
from keystone_authenticator.keystone import Refused
from keystone_authenticator.outbound import CannotTell, Client
from keystone_authenticator.reviews import AccessReview, NotAReview

DEADLINE = 4.0
_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}


class Backend:
    """One service, by its URL."""

    def __init__(self, url: str, client: Client) -> None:
        """`client` brings the TLS context and the deadline."""
        self._url = url
        self._client = client

    async def identity(self, token: str) -> Identity:
        """Ask it about a Keystone token.

        Raises:
            Refused: its no, which it also gives when its own Keystone fails; or a user that cannot be.
            CannotTell: no answer, or none that is a review.

        """
        body = reviews.token_review("v1beta1", token, ())
        answer = await self._client.call("POST", self._url, _HEADERS, body, attempts=2)
        # k8s-keystone-auth answers a no with 401 and the review.
        if answer.status not in (200, 201, 401):
            raise CannotTell(f"the authentication backend answered with status {answer.status}")
        try:
            verdict = reviews.read_verdict(answer.body)
        except NotAReview as error:
            raise CannotTell(f"the authentication backend's answer was not understood: {error}") from None
        if verdict.identity is None:
            if verdict.error:
                raise CannotTell(f"the authentication backend cannot tell: {verdict.error}")
            raise Refused("the authentication backend says no")
        return _acceptable(verdict.identity)

    async def allows(self, review: AccessReview) -> bool:
        """Ask it about access.

        Raises:
            CannotTell: no answer, or none that is a review.

        """
        answer = await self._client.call("POST", self._url, _HEADERS, reviews.access_review_v1beta1(review), attempts=2)
        if answer.status not in (200, 201):
            raise CannotTell(f"the authorization backend answered with status {answer.status}")
        try:
            return reviews.read_allowed(answer.body)
        except NotAReview as error:
            raise CannotTell(f"the authorization backend's answer was not understood: {error}") from None

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()


def _acceptable(identity: Identity) -> Identity:
    """What may be passed on of a backend's user: all of it but reserved groups.

    Raises:
        Refused: a reserved name, no UID, or not a user of Keystone's with a project.

    """
    if is_reserved(identity.username):
        raise Refused("the authentication backend's user has a reserved name")
    extra = dict(identity.extra)
    if not identity.uid or any(
        len(extra.get(key, ())) != 1 or not extra[key][0] for key in (PROJECT_ID, USER_DOMAIN_ID)
    ):
        raise Refused("the authentication backend's user has no UID, or no project and domain in extra")
    # As of Keystone's own: where all roles were taken away, it may be said that the token is good.
    if not extra.get(ROLES):
        raise Refused("the authentication backend's user has no roles in extra")
    groups = tuple(group for group in identity.groups if not is_reserved(group))
    return Identity(identity.username, identity.uid, groups, identity.extra)
