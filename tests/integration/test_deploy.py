"""The two commands on a real Juju: beside a control plane that is there, with a Keystone that is there.

What they need is named in the environment, since neither can be made here. The test bed's stand-in agent runs the same
story on every machine (tests/machine/test_story.py); this one is for a controller.

    KEYSTONE_URL=https://… [KEYSTONE_CA=ca.pem] KEYSTONE_TOKEN=… pytest tests/integration --model MODEL --keep-models
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from pytest_operator.plugin import OpsTest

APPLICATION = "kubernetes-keystone"
CONTROL_PLANES = ("kubernetes-control-plane", "kubernetes-master")


def _why_not() -> str:
    """Say what is missing for a real Juju; empty where nothing is."""
    if shutil.which("juju") is None:
        return "there is no juju on this machine"
    if subprocess.run(["juju", "whoami"], capture_output=True, check=False).returncode:
        return "juju has no controller here (juju whoami)"
    missing = [name for name in ("KEYSTONE_URL", "KEYSTONE_TOKEN") if not os.environ.get(name)]
    return f"{' and '.join(missing)} must be set" if missing else ""


WHY_NOT = _why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=f"NOT TESTED ON A REAL JUJU: {WHY_NOT}")


@pytest.mark.abort_on_fail
async def test_two_commands_end_in_active_units(ops_test: OpsTest) -> None:
    assert ops_test.model is not None
    principal = next((name for name in CONTROL_PLANES if name in ops_test.model.applications), None)
    assert principal, f"the model {ops_test.model_name} has none of {CONTROL_PLANES}: deploy Charmed Kubernetes first"
    charm = await ops_test.build_charm(".")
    config = {"keystone-url": os.environ["KEYSTONE_URL"]}
    if ca := os.environ.get("KEYSTONE_CA"):
        config["keystone-ca"] = Path(ca).read_text()
    await ops_test.model.deploy(str(charm), APPLICATION, config=config, num_units=0)
    await ops_test.model.integrate(f"{principal}:juju-info", f"{APPLICATION}:kubernetes-master")
    await ops_test.model.wait_for_idle([APPLICATION, principal], status="active", timeout=1800)


async def test_a_keystone_token_is_somebody_to_the_api_server(ops_test: OpsTest) -> None:
    assert ops_test.model is not None
    unit = ops_test.model.applications[APPLICATION].units[0]
    leader = unit.principal_unit
    token = os.environ["KEYSTONE_TOKEN"]
    code, output, error = await ops_test.juju(
        "exec", "--unit", str(leader), "--", "kubectl", "--token", token, "auth", "whoami", "-o", "yaml"
    )
    assert code == 0, error
    assert "username: keystone:" in output


async def test_removal_leaves_the_control_plane_active(ops_test: OpsTest) -> None:
    assert ops_test.model is not None
    principal = next(name for name in CONTROL_PLANES if name in ops_test.model.applications)
    await ops_test.model.remove_application(APPLICATION, block_until_done=True)
    await ops_test.model.wait_for_idle([principal], status="active", timeout=1800)
