"""The main job from end to end, told step by step: what an operator and a user type, and what really answers.

Lines that begin with `$` are what a person would type. `juju` is played by the stand-in (there is no controller
here); charm, Keystone, API server, etcd, systemd and kubectl are the real ones. A step that does not end as it should
ends the demo with an error.
"""

from __future__ import annotations

import json
import sys
import textwrap
import time
from pathlib import Path

from testbed import users
from testbed.cache import TestbedError, say
from testbed.stage import Stage
from testbed.traffic import Traffic, lives_of

READERS = """\
- users: {projects: [demo], roles: [member]}
  resource_permissions:
    default/pods: [get, list, watch]
"""
WRITERS = (
    READERS
    + """\
    default/configmaps: [get, list, create]
"""
)
BAD = "- users: {projects: [demo]}\n  resource_permissions: [default/pods]\n"


class Demo:
    """The steps share a stage, and a number that counts them."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.unit, self.cluster, self.keystone = stage, stage.unit, stage.cluster, stage.keystone
        self._step = 0
        for name, text in (("readers", READERS), ("writers", WRITERS), ("bad", BAD)):
            (self.cluster.folder / f"{name}.yaml").write_text(text)

    # How it is told

    def step(self, title: str, *text: str) -> None:
        """Begin a step."""
        self._step += 1
        print(f"\n\n{self._step}. {title}\n{'-' * (len(title) + 3)}")
        for paragraph in text:
            print(textwrap.fill(paragraph, 100))

    def typed(self, command: str) -> None:
        """Show what a person types."""
        print(f"\n$ {command}", flush=True)

    def answer(self, text: str) -> None:
        """Show what comes back."""
        print("\n".join(f"  {line}" for line in text.rstrip("\n").splitlines()), flush=True)

    def juju(self, command: str) -> None:
        """Run a command of juju's, and show what it prints."""
        self.typed(f"juju {command}")
        self.answer(self.stage.juju(command, self.cluster.folder))

    def kubectl(self, *arguments: str, refused: str = "") -> str:
        """Run kubectl as alice, show it, and insist on the outcome.

        Args:
            arguments: kubectl's.
            refused: what its error must say; empty where it must succeed.
        """
        self.typed(f"kubectl {' '.join(arguments)}")
        done = self.cluster.kubectl(*arguments, kubeconfig=self.kubeconfig, check=False)
        output = done.stdout + done.stderr
        self.answer(output)
        if bool(done.returncode) != bool(refused) or refused not in output:
            wanted = f"be refused ({refused})" if refused else "succeed"
            raise TestbedError(f"this should {wanted}; the authenticator says:\n{self._journal()}")
        return output

    def follows(self, *arguments: str, refused: str = "") -> None:
        """Wait until kubectl's outcome changes, then show it; the API server keeps verdicts of a policy for 5 s."""
        began = time.monotonic()
        while time.monotonic() - began < 30:
            done = self.cluster.kubectl(*arguments, kubeconfig=self.kubeconfig, check=False)
            if bool(done.returncode) == bool(refused):
                break
        print(f"\n  (in force after {time.monotonic() - began:.0f} s)")
        self.kubectl(*arguments, refused=refused)

    def status(self, wanted: str) -> None:
        """Show `juju status`, and insist on the unit's state."""
        self.juju("status kubernetes-keystone")
        if self.unit.status.name != wanted:
            raise TestbedError(f"the unit should be {wanted} now:\n{self.unit.debug_log()}")

    def _journal(self) -> str:
        return self.stage.machine.journal("kubernetes-keystone.service", 20)

    # The story

    def run(self) -> None:
        """Tell all of it."""
        self.before()
        self.deploy()
        self.use()
        self.change()
        self.break_something()
        self.rewrite()
        self.remove()

    def before(self) -> None:
        """What there is."""
        keystone, cluster = self.keystone, self.cluster
        self.step(
            "What there is",
            f"A control plane of Charmed Kubernetes on a machine of its own ({cluster.server}), with its own token "
            f"webhook for kubelets and administrators, and a Keystone ({keystone.url}). Alice is a member of the "
            "project demo in Keystone; Kubernetes has never heard of her. From here on, an administrator and a "
            "kubelet of the cluster send requests all the time; at the end we count what they lost.",
        )
        cluster.pod("default", "hello")
        demo = keystone.project("demo")
        self.alice = keystone.member("alice", demo)
        self.typed("openstack application credential create laptop      # as alice")
        self.credential = keystone.application_credential(self.alice, demo, "laptop")
        self.answer(f"id      {self.credential.id}\nname    laptop\nroles   member\nsecret  (shown once, to alice)")
        self.kubeconfig = users.hand_out(self.credential, keystone, cluster)
        print(f"\nHer kubeconfig holds the credential and logs in with curl, no plug-in needed: {self.kubeconfig}")
        self.kubectl("get", "pods", refused="You must be logged in")

    def deploy(self) -> None:
        """The two commands."""
        self.step(
            "The operator deploys the charm and relates it",
            "Two commands. The charm installs the authenticator, asks it a question over the very certificate that "
            "the API server will use, sets the flags, restarts the API server once, and checks that the cluster's own "
            "tokens are still good. Were they not, everything would be put back.",
        )
        (self.cluster.folder / "keystone-ca.pem").write_bytes(self.keystone.ca.read_bytes())
        options = {"keystone-url": self.keystone.url, "keystone-ca": "@keystone-ca.pem", "policy": "@readers.yaml"}
        words = " ".join(f"--config {name}={value}" for name, value in options.items())
        self.juju(f"deploy kubernetes-keystone {words}")
        self.answer(f"readers.yaml:\n{READERS}")
        began = time.monotonic()
        self.juju("add-relation kubernetes-master kubernetes-keystone")
        for status in dict.fromkeys(self.unit.history):
            self.answer(f"{status.name}: {status.message}")
        print(f"  ({time.monotonic() - began:.0f} s)")
        self.status("active")

    def use(self) -> None:
        """The user."""
        self.step("Alice uses kubectl", "Her name cannot be forged by an Alice of another Keystone domain.")
        self.kubectl("auth", "whoami")
        self.kubectl("get", "pods")
        print("\nWhat neither the policy nor RBAC allows is refused; nor does a rule for pods cover pods/exec:")
        self.kubectl("get", "nodes", refused="is forbidden")
        self.kubectl("exec", "hello", "--", "id", refused="is forbidden")
        print("\nThe cluster's own tokens are as good as before, and Keystone has seen none of them:")
        admin = self.cluster.kubeconfig(self.cluster.tokens["admin"].token)
        self.typed(
            "kubectl auth whoami --output=jsonpath={.status.userInfo.username}      # the cluster's administrator"
        )
        output = ["auth", "whoami", "--output=jsonpath={.status.userInfo.username}"]
        self.answer(self.cluster.kubectl(*output, kubeconfig=admin).stdout)
        ours = {self.keystone.digest(token.token) for token in self.cluster.tokens.values()}
        calls = self.keystone.calls()
        if not calls or ours & {digest for call in calls for digest in (call.subject, call.token)}:
            raise TestbedError("a token of the cluster's own reached Keystone")

    def change(self) -> None:
        """Another policy."""
        self.step(
            "The operator changes the policy",
            "From one policy to another nothing restarts: neither the API server nor the authenticator.",
        )
        self.kubectl("create", "configmap", "notes", "--from-literal=a=b", refused="is forbidden")
        before = self._lives()
        self.answer(f"writers.yaml:\n{WRITERS}")
        self.juju("config kubernetes-keystone policy=@writers.yaml")
        # The API server keeps for 5 s that this very request was not allowed.
        self.follows("create", "configmap", "notes", "--from-literal=a=b", "--dry-run=server")
        self.kubectl("create", "configmap", "notes", "--from-literal=a=b")
        self.kubectl("get", "configmaps")
        self.juju("run kubernetes-keystone/0 reload-policy")
        question = "user=alice project-name=demo roles=member namespace=default verb=delete resource=configmaps"
        self.juju(f"run kubernetes-keystone/0 check-access {question}")
        if self._lives() != before:
            raise TestbedError("something was restarted")

    def break_something(self) -> None:
        """A bad policy."""
        self.step("A mistake changes nothing", "The status says where it is; the policy before it stays in force.")
        self.answer(f"bad.yaml:\n{BAD}")
        self.juju("config kubernetes-keystone policy=@bad.yaml")
        self.status("blocked")
        self.kubectl("get", "pods")
        self.juju("config kubernetes-keystone policy=@writers.yaml")
        self.status("active")

    def rewrite(self) -> None:
        """The control plane's own reconcile."""
        self.step(
            "The control plane writes all its flags anew",
            "Its charm does that at each of its reconciles, and restarts the API server. A script of ours before each "
            "start puts our flags in again; no hook of ours has to run for it.",
        )
        self.juju("config kubernetes-master api-extra-args=v=3")
        self.follows("get", "pods")
        self.juju("config kubernetes-master --reset api-extra-args")
        self.follows("get", "pods")
        self.unit.update_status()
        self.status("active")

    def remove(self) -> None:
        """The end."""
        self.step("The charm is removed", "The machine is as it was, to the byte.")
        self.juju("remove-relation kubernetes-master kubernetes-keystone")
        self.kubectl("get", "pods", refused="You must be logged in")

    def _lives(self) -> tuple[int, str]:
        service = self.stage.machine.show("kubernetes-keystone.service", "InvocationID")["InvocationID"]
        return len(lives_of(self.cluster)), service


def run() -> None:
    """Build what is missing, tell the story, count, and clean up."""
    began = time.monotonic()
    say("starting a control plane and a Keystone (15 seconds when everything is built)")
    with Stage() as stage, Traffic(stage.cluster) as traffic:
        args = stage.cluster.args()
        Demo(stage).run()
        outcome = traffic.outcome()
        same = stage.cluster.args() == args
        print(f"\n  the API server's flags are what they were before, byte for byte: {'yes' if same else 'NO'}")
        print(
            f"  requests with the cluster's own tokens during all this: {outcome.requests}; lost beyond the "
            f"{outcome.restarts} restarts (relate, the control plane's own, removal): {len(outcome.lost)}"
        )
        if outcome.lost or not same:
            raise TestbedError(f"that is not what was promised: {json.dumps(outcome.lost)}")
    print(
        f"\nThat was it ({time.monotonic() - began:.0f} s); everything is cleaned up. To try things by hand, with the "
        f"same parts and a shell for such commands:\n\n    {Path(sys.executable)} -m testbed up\n"
    )
