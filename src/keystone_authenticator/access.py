"""May this user do this? Answers SubjectAccessReviews from the policy, or from the service that stands in its place.

There is an opinion only on users who came from here, and only ever a yes: what is not allowed is left to RBAC.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from keystone_authenticator import access_rules, reviews
from keystone_authenticator.backend import Backend
from keystone_authenticator.identity import Naming
from keystone_authenticator.outbound import CannotTell
from keystone_authenticator.policy import Policy
from keystone_authenticator.reviews import AccessReview

logger = logging.getLogger("keystone_authenticator.access")


@dataclass(frozen=True)
class Authorizer:
    """The policy in force, or a backend; neither: no opinion on anything."""

    naming: Naming
    policy: Policy | None = None
    backend: Backend | None = None

    def answer(self, review: AccessReview) -> bytes | Coroutine[Any, Any, bytes]:
        """The answer's JSON at once, or a coroutine for it."""
        if review.request is None:
            return reviews.no_opinion(review.version, "neither resourceAttributes nor nonResourceAttributes are there")
        if self.policy is None and self.backend is None:
            return reviews.no_opinion(review.version)
        subject = self.naming.subject(review.username, review.uid, review.groups, review.marks)
        if subject is None:
            return reviews.no_opinion(review.version)
        rules = subject.access_rules
        if rules is not None and not access_rules.read(rules).allow(review.request):
            return reviews.no_opinion(review.version)
        if self.backend is not None:
            return self._ask(self.backend, review)
        if self.policy is not None and self.policy.allows(subject, review.request):
            return reviews.allowed(review.version)
        return reviews.no_opinion(review.version)

    async def _ask(self, backend: Backend, review: AccessReview) -> bytes:
        try:
            allowed = await backend.allows(review)
        except CannotTell as error:
            logger.warning("%s", error)
            return reviews.no_opinion(review.version, str(error))
        return reviews.allowed(review.version) if allowed else reviews.no_opinion(review.version)
