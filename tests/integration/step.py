"""One step of the story in a model of a real Juju's: the same test for each kind of cluster, which its module names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests import scenarios


@pytest.mark.abort_on_fail
@pytest.mark.timeout(0)  # a model takes an hour to come up; the steps have deadlines of their own
@pytest.mark.parametrize("step", scenarios.STORY, ids=lambda step: step.__name__)
async def test_step(step: Callable[[scenarios.Story], None], story: scenarios.Story) -> None:
    await asyncio.to_thread(step, story)
