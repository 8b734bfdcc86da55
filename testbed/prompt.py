"""The test bed by hand: everything stands, and a shell takes the documentation's commands as they are written.

It only makes the shell and says what is there; whoever wants to know what a command does looks at the parts.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from typing import Any

import yaml

from testbed import setup, users
from testbed.cache import say
from testbed.keystone import ApplicationCredential, Keystone
from testbed.shell import Shell
from testbed.stage import Stage, StageOf

INTRODUCTION = """
A control plane of Charmed Kubernetes at {server}, a Keystone at {keystone}, and no charm yet.
This is a shell in {home}; everything ends when it does (exit, or Ctrl-D). What the tutorial tells you
to type works here, with this Keystone's URL in the place of its example's. It begins with:

    juju deploy kubernetes-keystone --config keystone-url={keystone} --config keystone-ca=@keystone-ca.pem
    juju add-relation kubernetes-master kubernetes-keystone

  juju        takes what the tutorial and the README have of it; its commands return when their hooks have run
  kubectl     is the cluster's administrator; with --kubeconfig bob it is bob, a member of the project lab
  openstack   is Keystone's administrator; with --os-cloud bob it is bob
  machine     a shell on the control plane's machine; machine COMMAND (or sudo COMMAND) runs one
"""


def clouds(keystone: Keystone, **credentials: ApplicationCredential) -> str:
    """Write a `clouds.yaml`: `admin` is Keystone's administrator, the others log in with application credentials."""
    base = {"identity_api_version": 3, "cacert": str(keystone.ca)}
    domains = {"user_domain_id": "default", "project_domain_id": "default"}
    administrator = {"username": "admin", "password": keystone.admin_password, "project_name": "admin", **domains}
    made = {"admin": {**base, "auth": {"auth_url": keystone.url, **administrator}}}
    for name, one in credentials.items():
        login = {"application_credential_id": one.id, "application_credential_secret": one.secret}
        kind = {"auth_type": "v3applicationcredential"}
        made[name] = {**base, **kind, "auth": {"auth_url": keystone.url, **login}}
    return yaml.safe_dump({"clouds": made}, sort_keys=False)


def furnish(shell: Shell, stage: StageOf[Any]) -> None:
    """Put into a shell's home what the documentation takes for there: an administrator's files, Keystone's CA."""
    for folder in (".kube", ".config/openstack"):
        (shell.home / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    admin = stage.cluster.kubeconfig(stage.cluster.tokens["admin"].token)
    (shell.home / ".kube" / "config").write_bytes(admin.read_bytes())
    (shell.home / ".config" / "openstack" / "clouds.yaml").write_text(clouds(stage.keystone))
    (shell.home / "keystone-ca.pem").write_bytes(stage.keystone.ca.read_bytes())
    (shell.home / "kubernetes-keystone").symlink_to(setup.HERE.parent)
    machine = shell.programs / "machine"
    there = shlex.join(stage.machine.command())
    machine.write_text(f'#!/bin/sh\n[ "$#" -gt 0 ] || set -- bash -l\nexec {there} "$@"\n')
    machine.chmod(0o755)
    (shell.programs / "sudo").symlink_to(machine.name)  # nothing in a document is for this system's root


def run() -> None:
    """Stand everything up, tell how to use it, and leave the shell to whoever is there."""
    say("starting a control plane and a Keystone (warm: 15 seconds)")
    with Stage() as stage, Shell(stage.juju, stage.cluster.folder / "shell") as shell:
        furnish(shell, stage)
        keystone, cluster = stage.keystone, stage.cluster
        project = keystone.project("lab")  # the tutorial makes a project and a user of its own
        credential = keystone.application_credential(keystone.member("bob", project), project)
        (shell.home / "bob").write_bytes(users.hand_out(credential, keystone, cluster).read_bytes())
        (shell.home / ".config" / "openstack" / "clouds.yaml").write_text(clouds(keystone, bob=credential))
        cluster.pod("default", "hello")
        print(INTRODUCTION.format(server=cluster.server, keystone=keystone.url, home=shell.home), flush=True)
        prompt = {"PS1": "testbed:\\w$ ", "OS_CLOUD": "admin"}
        bash = ["bash", "--norc", "--noprofile"]
        subprocess.run(bash, cwd=shell.home, env=shell.environment(**prompt), check=False)
        if not sys.stdin.isatty():
            say("the commands have been run; everything stays up until it is told to end")
            signal.pause()
