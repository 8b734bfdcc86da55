"""The story on Canonical Kubernetes, with a real Keystone charm, step by step in one model."""

from __future__ import annotations

from tests import scenarios
from tests.integration.step import test_step as test_step

KIND = scenarios.CANONICAL
