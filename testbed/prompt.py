"""The test bed by hand: everything stands, a prompt takes the place of `juju`, and it is told how to be a user.

It only hands what is typed to the parts; whoever wants to know what a command does looks there.
"""

from __future__ import annotations

import cmd
import shlex
import signal
import sys
from pathlib import Path

import yaml

from testbed import users
from testbed.cache import TestbedError, say
from testbed.keystone import Keystone
from testbed.stage import Stage

POLICY = """\
# Members of the project demo read pods, in every namespace.
- users: {roles: [member], projects: [demo]}
  resource_permissions:
    "*/pods": [get, list, watch]
"""

INTRODUCTION = """
A control plane of Charmed Kubernetes at {server}, a Keystone at {keystone}.
Everything ends when this prompt does (Ctrl-D).

  In another terminal, as alice (member of the project demo) with her application credential:
    export KUBECONFIG={user}
    {kubectl} auth whoami
  as the cluster's administrator, with a token of the cluster's own:
    {kubectl} --kubeconfig={admin} get nodes
  as Keystone's administrator:
    . {openrc}; {openstack} user list
  on the machine:
    {machine}

  Here: status, relate, config KEY=VALUE (KEY=@FILE for a file), run ACTION KEY=VALUE, log, update-status,
  reconcile (the control plane writes its flags anew), remove, help. To begin with: relate
"""


class Prompt(cmd.Cmd):
    """Takes commands as `juju` has them."""

    prompt = "juju> "

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage, self.unit = stage, stage.unit

    def onecmd(self, line: str) -> bool:
        """Run a line; what goes wrong is told and is no end."""
        try:
            return bool(super().onecmd(line.replace("update-status", "update_status", 1)))
        except (TestbedError, OSError, ValueError) as error:
            print(error)
            return False

    def emptyline(self) -> bool:
        """Do nothing (and not the last command again)."""
        return False

    def do_status(self, _: str) -> None:
        """Play: juju status."""
        print(self.unit.juju_status())

    def do_relate(self, _: str) -> None:
        """Play: juju add-relation kubernetes-master kubernetes-keystone."""
        self.unit.relate()
        self.do_status("")

    def do_config(self, line: str) -> None:
        """Play: juju config kubernetes-keystone KEY=VALUE … (KEY=@FILE takes a file's content)."""
        options = dict(word.split("=", 1) for word in shlex.split(line))
        read = {key: Path(value[1:]).read_text() if value[:1] == "@" else value for key, value in options.items()}
        self.unit.configure(**{key: value if value[:1] == "@" else _typed(value) for key, value in read.items()})
        self.do_status("")

    def do_run(self, line: str) -> None:
        """Play: juju run kubernetes-keystone/0 ACTION KEY=VALUE …."""
        action, *rest = shlex.split(line)
        result = self.unit.run_action(action, **{key: _typed(value) for key, value in (w.split("=", 1) for w in rest)})
        print("\n".join(result.log))
        print(yaml.safe_dump(result.results, sort_keys=False), end="")
        print(f"{result.status} {result.message}")

    def do_log(self, _: str) -> None:
        """Play: juju debug-log."""
        print(self.unit.debug_log())

    def do_update_status(self, _: str) -> None:
        """Let the hook run that Juju runs every few minutes."""
        self.unit.update_status()
        self.do_status("")

    def do_retry(self, _: str) -> None:
        """Play: juju resolve kubernetes-keystone/0."""
        self.unit.retry()

    def do_reconcile(self, _: str) -> None:
        """The control-plane charm writes all its flags anew and restarts its services."""
        self.stage.cluster.control_plane_reconcile()

    def do_remove(self, _: str) -> None:
        """Play: juju remove-relation kubernetes-master kubernetes-keystone."""
        self.unit.remove()
        self.do_status("")

    def do_EOF(self, _: str) -> bool:  # noqa: N802 (cmd's name for it)
        """End."""
        print()
        return True


def _typed(text: str) -> object:
    """Give a value of the command line as what it looks like, as Juju does."""
    value = yaml.safe_load(text)
    return value if isinstance(value, (bool, int, float)) else text


def _openrc(keystone: Keystone) -> str:
    settings = {
        "OS_AUTH_URL": keystone.url,
        "OS_CACERT": str(keystone.ca),
        "OS_USERNAME": "admin",
        "OS_PASSWORD": keystone.admin_password,
        "OS_PROJECT_NAME": "admin",
        "OS_USER_DOMAIN_ID": "default",
        "OS_PROJECT_DOMAIN_ID": "default",
        "OS_IDENTITY_API_VERSION": "3",
    }
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings.items())


def run() -> None:
    """Stand everything up, tell how to use it, and take commands until the end."""
    say("starting a control plane and a Keystone (warm: 15 seconds)")
    with Stage() as stage:
        keystone, cluster = stage.keystone, stage.cluster
        project = keystone.project("demo")
        alice = keystone.member("alice", project)
        user = users.hand_out(keystone.application_credential(alice, project), keystone, cluster)
        cluster.pod("default", "hello")
        openrc = cluster.folder / "openrc"
        openrc.touch(0o600)
        openrc.write_text(_openrc(keystone))
        stage.unit.deploy(stage.charm, {**stage.keystone_options, "policy": POLICY})
        openstack = Path(sys.executable).with_name("openstack")
        print(
            INTRODUCTION.format(
                server=cluster.server,
                keystone=keystone.url,
                user=user,
                kubectl=cluster.kubectl_path,
                admin=cluster.kubeconfig(cluster.tokens["admin"].token),
                openrc=openrc,
                openstack=openstack if openstack.exists() else "openstack",
                machine=shlex.join(stage.machine.command("bash", "-l")),
            ),
            flush=True,
        )
        if sys.stdin.isatty():
            Prompt(stage).cmdloop()
        else:
            for line in sys.stdin:
                print(f"juju> {line.strip()}", flush=True)
                if Prompt(stage).onecmd(line.strip()):
                    return
            signal.pause()
