"""A policy in the cluster, in a ConfigMap as k8s-keystone-auth reads it: watched. Policies are judged elsewhere."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

import msgspec

from keystone_authenticator import document
from keystone_authenticator.kubernetes import Kubernetes, Metadata, Refusal
from keystone_authenticator.outbound import CannotTell

logger = logging.getLogger("keystone_authenticator.policy")

KEY = "policies"
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0


class _ConfigMap(msgspec.Struct, frozen=True):
    metadata: Metadata
    data: Mapping[str, str] | None = None


_config_map = document.decoder(_ConfigMap)


class PolicyConfigMap:
    """One ConfigMap, followed.

    `known` says whether it was ever looked at; `content` is the policy's text, None while there is no ConfigMap, and
    empty, which is no policy, without the key. `error` is why it cannot be looked at now: what was seen last stays.
    """

    def __init__(self, kube: Kubernetes, namespace: str, name: str) -> None:
        self._kube = kube
        self._namespace, self._name = namespace, name
        self.known = False
        self.content: bytes | None = None
        self.error: str | None = None
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def _follow(self) -> None:
        path = f"/api/v1/namespaces/{self._namespace}/configmaps"
        wait = _FIRST_WAIT
        while True:
            try:
                async for found in self._kube.watch(path, self._name, _config_map):
                    wait, self.error, self.known = _FIRST_WAIT, None, True
                    self.content = None if found is None else ((found.data or {}).get(KEY) or "").encode()
            except (CannotTell, Refusal) as error:
                told = f"the ConfigMap {self._namespace}/{self._name} cannot be read: {error}"
                if told != self.error:
                    logger.warning("the policy stays as it was: %s", told)
                self.error = told
            except Exception:
                logger.exception("a fault of ours while a ConfigMap was watched")
            await asyncio.sleep(wait)
            wait = min(wait * 2, _LONGEST_WAIT)

    async def close(self) -> None:
        """Stop, and close the connections."""
        self._task.cancel()
        await asyncio.wait((self._task,))
        await self._kube.close()
