"""Runs the commands of a page of docs/ as an operator would: on the stand-in for Juju, with the real kubectl and shell.

A block is what stands indented below a heading. Lines that begin with `#` are for people. What a page leaves to the
reader (a URL, a file of theirs) comes from the test. A command that nothing here knows is an error, so that no page
says what was not tried.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import yaml

from testbed.agent import Unit
from testbed.cluster import Cluster
from tests.documents import DOCS

APPLICATION = "kubernetes-keystone"
CONTROL_PLANE = "kubernetes-control-plane"


def commands(page: str, heading: str) -> list[str]:
    """Give the commands of the blocks below a heading of `docs/<page>`, up to the next one; continued lines in one."""
    text = (DOCS / page).read_text()
    found = re.search(rf"(?ms)^#+ {re.escape(heading)}$(.*?)(?=^#|\Z)", text)
    assert found, f"docs/{page} has no heading {heading!r}"
    block = "\n".join(line[4:] for line in found[1].splitlines() if line.startswith("    "))
    lines = block.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


class Operator:
    """Who works through a page.

    Args:
        cluster: the control plane.
        unit: of the application `kubernetes-keystone`.
        charm: the packed charm.
        options: what the page leaves open of `juju deploy`'s options: they win over what it says.
        control_plane: does what `juju config kubernetes-control-plane` does, given the options that it sets; a relation
            that is removed is one that is set to nothing.

    """

    def __init__(
        self,
        cluster: Cluster,
        unit: Unit,
        charm: Path,
        options: Mapping[str, str],
        control_plane: Callable[[Mapping[str, str]], None] = lambda _: None,
    ) -> None:
        self.cluster, self.unit = cluster, unit
        self._charm, self._options, self._control_plane = charm, options, control_plane
        self.folder = cluster.folder / "operator"
        self.folder.mkdir(exist_ok=True)

    def file(self, name: str, content: str) -> None:
        """Give the operator a file."""
        (self.folder / name).write_text(content)

    def follow(self, page: str, heading: str) -> None:
        """Run all commands below a heading."""
        for command in commands(page, heading):
            self.does(command)

    def does(self, command: str) -> None:
        """Run one command."""
        if not command.startswith("juju "):
            self._shell(command)
            return
        juju, _, pipe = command.partition(" | ")
        words = shlex.split(juju)
        if pipe:
            assert words[1] == "run", command
            result = self.unit.run_action(words[3])
            assert result.status == "completed", result.message
            self._shell(pipe, json.dumps({words[2]: {"results": result.results}}))
            return
        getattr(self, f"_{words[1].replace('-', '_')}")(words[2:])

    def _shell(self, command: str, given: str = "") -> None:
        """Run a line on the operator's own computer, or on the machine what it does there."""
        if command.startswith("sudo "):
            self.cluster.machine.shell(command.replace("sudo ", ""))
            return
        config = self.cluster.kubeconfig(self.cluster.tokens["admin"].token)
        environment = {"PATH": f"{self.cluster.kubectl_path.parent}:{os.environ['PATH']}", "KUBECONFIG": str(config)}
        subprocess.run(["sh", "-ec", command], input=given, text=True, check=True, cwd=self.folder, env=environment)

    def _values(self, words: list[str]) -> Iterator[tuple[str, str]]:
        for word in words:
            name, _, value = word.partition("=")
            yield name, (self.folder / value[1:]).read_text() if value.startswith("@") else value

    def _deploy(self, words: list[str]) -> None:
        assert words[0] == APPLICATION, words
        given = dict(self._values([word for word in words[1:] if word != "--config"]))
        self.unit.deploy(self._charm, _typed({**given, **self._options}))

    def _integrate(self, words: list[str]) -> None:
        assert [word.partition(":")[0] for word in words] == [CONTROL_PLANE, APPLICATION], words
        self.unit.relate()

    def _config(self, words: list[str]) -> None:
        application, *rest = words
        if rest[0] == "--reset":
            assert application == APPLICATION, words
            self.unit.reset(*rest[1].split(","))
            return
        values = dict(self._values(rest))
        if application == CONTROL_PLANE:
            self._control_plane(values)
            return
        assert application == APPLICATION, words
        self.unit.configure(**{name.replace("-", "_"): value for name, value in _typed(values).items()})

    def _refresh(self, words: list[str]) -> None:
        assert words[0] == APPLICATION, words
        self.unit.upgrade(self._charm)

    def _remove_application(self, words: list[str]) -> None:
        if words == [APPLICATION]:
            self.unit.remove()

    def _ssh(self, words: list[str]) -> None:
        *command, redirect, name = words[1:]
        assert redirect == ">", words
        self.file(name, self.cluster.machine.shell(shlex.join(command).replace("sudo ", "")))

    def _remove_relation(self, words: list[str]) -> None:
        application, _, endpoint = words[0].partition(":")
        assert application == CONTROL_PLANE, words
        self._control_plane({endpoint: ""})

    def _exec(self, words: list[str]) -> None:
        assert words[:2] == ["--application", CONTROL_PLANE], words
        self.cluster.machine.shell(shlex.join(words[words.index("--") + 1 :]))


def _typed(options: Mapping[str, str]) -> dict[str, object]:
    """Give `true` and numbers as what they are, as Juju does by what the charm declares."""
    typed = {name: yaml.safe_load(value) if len(value) < 10 else value for name, value in options.items()}
    return {name: value if isinstance(value, (bool, int)) else options[name] for name, value in typed.items()}
