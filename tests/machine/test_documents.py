"""What README, tutorial and the users' page tell people to type, typed: command by command, in the order of the page.

One stage, one shell with the real kubectl, openstack client, jq and pipx; `juju` is the stand-in's. The tables here say
what a reader brings along (addresses, IDs, a secret that is asked for), what a command is to answer where that is not
simply success, and which commands are not run, with the reason. A command that is new is run without any entry.
"""

from __future__ import annotations

import pytest
import yaml

from testbed import prompt
from testbed.shell import Shell
from testbed.stage import Stage
from tests import documents
from tests.machine.reader import Opener, Reader

README, TUTORIAL, USERS = "README.md", "docs/tutorial.md", "docs/users.md"
pytestmark = pytest.mark.timeout(1800)

NOT_RUN = {
    README: {
        "make demo": "it makes a stage of its own and tells what tests/machine/test_story.py tests",
        "make test": "this is part of it",
    },
    USERS: {
        "openstack --os-cloud openstack server list": "there is no Nova here",
        "openstack server list": "there is no Nova here",
        "kubectl keystone-auth login --browser": "tests/functional/test_single_sign_on.py does it, with Chromium",
    },
}
# What a command answers, where the page does not show it.
ANSWERS = {
    README: {
        "juju run kubernetes-keystone/0 check-access": "allowed: 'true'",
        "juju run kubernetes-keystone/0 check-authentication": "user: keystone:alice",
        "kubectl --token": "hello",
    },
    USERS: {"kubectl get pods": "hello", "kubectl --token": "hello"},
}
ALICES = "kubectl --kubeconfig alice.kubeconfig get pods"


def test_what_is_not_run_is_still_there() -> None:
    for document, left_out in NOT_RUN.items():
        commands = [step.text for step in documents.steps(document)]
        assert [one for one in left_out if not any(command.startswith(one) for command in commands)] == []


def test_the_tutorial_works_as_it_is_written(stage: Stage, opened: Opener, request: pytest.FixtureRequest) -> None:
    reader, page = opened(TUTORIAL), documents.steps(TUTORIAL)
    reader.fresh(OS_CLOUD="admin")
    request.addfinalizer(stage.keystone.start)
    away = False
    for step, following in zip(page, [*page[1:], None], strict=True):
        if step.kind == "note":
            assert step.text in ("Keystone stops here.", "Keystone starts here."), step
            away = "stops" in step.text
            (stage.keystone.stop if away else stage.keystone.start)()
        if away and step.text.startswith("juju status"):
            # "When she has worked for more than that minute, the status has it from the next hook on."
            stage.machine.wait(lambda: _told_at_a_hook(stage, reader), "the status to tell of the outage", 180, every=3)
        reader.does(step, following.text if following is not None and following.kind == "answer" else "")
        if "application credential create" in step.text:
            # Keystone on SQLite gives a deleted credential's number again while its roles are still there: this one
            # has the last number when hers goes with her.
            bystanders = stage.keystone.project("bystanders")
            stage.keystone.application_credential(stage.keystone.member("bystander", bystanders), bystanders)
        if step.text.startswith("juju deploy"):
            # The minute in which her token is believed is for readers.
            stage.juju("config kubernetes-keystone token-cache-ttl=5")
    assert not stage.machine.exists("/etc/kubernetes-keystone")


def _told_at_a_hook(stage: Stage, reader: Reader) -> bool:
    said = reader.type(ALICES)
    assert said.code == 0, f"she goes on\n{said.text}"
    stage.unit.update_status()
    return "no answers" in stage.unit.status.message


def test_the_readme_works_as_it_is_written(stage: Stage, shell: Shell, opened: Opener) -> None:
    """Keystone's certificate is one that the machine trusts, as the first command takes for granted."""
    reader, keystone = opened(README), stage.keystone
    demo = keystone.project("demo")
    alice = keystone.member("alice", demo)
    reader.words["<project ID>"] = demo.id
    stage.trust_keystone()
    clouds = prompt.clouds(keystone, alice=keystone.application_credential(alice, demo))
    (shell.home / ".config" / "openstack" / "clouds.yaml").write_text(clouds)
    (reader.folder / "token.txt").write_text(keystone.token(alice, demo))
    stage.cluster.pod("default", "hello")
    stage.cluster.namespace("web")
    reader.fresh(OS_CLOUD="alice")
    reader.reads(documents.steps(README))
    assert stage.unit.status == ("active", "ready: charmed, policy 1 rules")
    given = yaml.safe_load((reader.folder / "demo.kubeconfig").read_text())
    assert given["clusters"][0]["cluster"]["server"] == stage.cluster.server


def test_the_users_page_works_as_it_is_written(stage: Stage, shell: Shell, opened: Opener) -> None:
    """On the cluster that the README's commands have made; the operators' file is of the flavour `curl`."""
    reader, keystone = opened(USERS), stage.keystone
    project = keystone.project("users")
    bob = keystone.member("bob", project)
    stage.unit.configure(policy='[{"users": {"projects": ["users"]}, "resource_permissions": {"*/*": ["*"]}}]')
    password = {
        "OS_AUTH_URL": keystone.url,
        "OS_USERNAME": "bob",
        "OS_PASSWORD": bob.password,
        "OS_PROJECT_NAME": "users",
        "OS_USER_DOMAIN_ID": "default",
        "OS_PROJECT_DOMAIN_ID": "default",
        "OS_IDENTITY_API_VERSION": "3",
    }
    trust = {"OS_CACERT": str(keystone.ca)}
    kube = shell.home / ".kube" / "config"
    given = stage.unit.run_action("get-kubeconfig", flavour="curl", projects="users")
    kube.write_text(given.results["kubeconfig"])
    (shell.home / ".config" / "openstack" / "clouds.yaml").unlink()
    reader.fresh(**password, **trust)
    for step in documents.steps(USERS):
        if step.heading == "From Horizon" and step.text.startswith("cp "):
            # Its file is any kubeconfig with a credential in it.
            laptop = (reader.folder / "laptop.kubeconfig").read_text()
            (reader.folder / "app-cred-NAME-kubeconfig").write_text(laptop)
        if step.text == "umask 077":
            reader.fresh(**password, **trust)  # "it takes a login that may make application credentials"
        reader.does(step)
        if "application credential create" in step.text:
            credential = reader.words["<credential ID>"]
            (reader.folder / "app-cred-kubernetes-openrc.sh").write_text(
                _openrc(keystone.url, credential, reader.secret)
            )
            reader.fresh(**trust)  # "take a fresh shell"
            assert "OS_APPLICATION_CREDENTIAL" in kube.read_text(), "it is the operators' file"
    token = (reader.folder / "token.txt").read_text().strip()
    assert stage.cluster.status("/api/v1/namespaces/default/pods", token) == 200


def _openrc(url: str, credential: str, secret: str) -> str:
    """What Horizon gives for an application credential."""
    settings = {
        "OS_AUTH_TYPE": "v3applicationcredential",
        "OS_AUTH_URL": url,
        "OS_IDENTITY_API_VERSION": "3",
        "OS_REGION_NAME": "RegionOne",
        "OS_INTERFACE": "public",
        "OS_APPLICATION_CREDENTIAL_ID": credential,
        "OS_APPLICATION_CREDENTIAL_SECRET": secret,
    }
    return "#!/usr/bin/env bash\n" + "".join(f"export {name}={value}\n" for name, value in settings.items())
