"""The manifest of a static pod that is an API server: read it, and put lines of ours into its text.

How, and what is refused, is `yamltext`'s. A line that has to be changed (the authorization modes) is kept in a comment
above it. So the script that takes ours out again (`templates/apiserver/apiserver-pod`) needs no YAML.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from apiserver import yamltext
from apiserver.args import MODE, Args, from_words
from apiserver.model import Conflict, Flag
from apiserver.yamltext import MARK, Unsafe, entries

CHANGED = f"{MARK}: changed"
"""At the end of a line that we have changed."""
WAS = f"{MARK} was:"
"""Before such a line, as it was."""
VOLUME = "kubernetes-keystone"

_PROGRAM = "kube-apiserver"
_FLAG = re.compile("- --(authentication-token-webhook|authorization-webhook)-")


@dataclass(frozen=True)
class Manifest:
    """An API server's manifest.

    Args:
        path: where it is, for messages.
        text: all of it.
        pod: what it says.
        container: the API server's among the pod's containers, by its number.
        volume: the name of the volume by which the API server sees a folder more.

    """

    path: Path
    text: str
    pod: dict[str, Any]
    container: int
    volume: str = VOLUME

    @classmethod
    def parse(cls, path: Path, content: bytes) -> Manifest:
        """Read a manifest.

        Raises:
            Conflict: it is none that lines can be put into.

        """

        def refuse(why: object) -> Conflict:
            return yamltext.conflict(path, why)

        try:
            text, pod = yamltext.document(content)
        except Unsafe as error:
            raise refuse(error) from None
        if not isinstance(pod, dict) or pod.get("kind") != "Pod":
            raise refuse("it is not a Pod")
        spec = pod.get("spec")
        containers = spec.get("containers") if isinstance(spec, dict) else None
        if not isinstance(containers, list) or not all(isinstance(one, dict) for one in containers):
            raise refuse("it has no containers")
        numbers = range(len(containers))
        if len(containers) != 1:
            numbers = [n for n in numbers if containers[n].get("name") == _PROGRAM]
            if len(numbers) != 1:
                raise refuse(f"none or several of its {len(containers)} containers are called {_PROGRAM}")
        found = cls(path, text, pod, numbers[0])
        found._check_program(refuse)
        return found

    def _check_program(self, refuse: Any) -> None:
        given = [self._container.get("command") or [], self._container.get("args") or []]
        if not all(isinstance(words, list) and all(isinstance(word, str) for word in words) for words in given):
            raise refuse("`command` or `args` is not a list of words")
        command, arguments = given
        programs = [PurePosixPath(word).name for word in command]
        if command and _PROGRAM not in programs:
            shell = "a shell's" if programs[0] in ("sh", "bash", "dash", "ash") else "another one"
            raise refuse(f"its command is not {_PROGRAM} with one flag in each item, but {shell}")
        if not command and not arguments:
            raise refuse("neither `command` nor `args` is set")

    @property
    def _container(self) -> dict[str, Any]:
        return self.pod["spec"]["containers"][self.container]

    @property
    def args(self) -> Args:
        """The API server's flags."""
        return from_words([*(self._container.get("command") or []), *(self._container.get("args") or [])])

    @property
    def host_network(self) -> bool:
        """Whether the machine's loopback address is the pod's as well."""
        return self.pod["spec"].get("hostNetwork") is True

    @property
    def owner(self) -> tuple[int, int]:
        """The IDs of user and group that the API server runs as: root's, unless they are set (a rootless kubeadm)."""

        def one(name: str) -> int:
            for holder in (self._container, self.pod["spec"]):
                context = holder.get("securityContext")
                value = context.get(name) if isinstance(context, dict) else None
                if isinstance(value, int):
                    return value
            return 0

        return one("runAsUser"), one("runAsGroup")

    def on_host(self, path: PurePosixPath) -> Path | None:
        """Give the file of the machine that the API server sees as `path`; None where it is not the machine's."""
        sources = {volume.get("name"): volume.get("hostPath") for volume in _dicts(self.pod["spec"].get("volumes"))}
        best: tuple[int, Path] | None = None
        for mount in _dicts(self._container.get("volumeMounts")):
            source = sources.get(mount.get("name"))
            at = PurePosixPath(str(mount.get("mountPath")))
            if not path.is_relative_to(at) or (best and best[0] > len(at.parts)):
                continue
            if not isinstance(source, dict) or mount.get("subPathExpr"):
                best = (len(at.parts), Path())  # hides what is below
                continue
            below = Path(str(source.get("path")), str(mount.get("subPath") or ""))
            best = (len(at.parts), below / path.relative_to(at))
        return best[1] if best and best[1] != Path() else None

    def mounts_alone(self, path: PurePosixPath) -> bool:
        """Whether the API server sees this file by a volume of the file, not of its folder."""
        mounts = _dicts(self._container.get("volumeMounts"))
        return any(PurePosixPath(str(mount.get("mountPath"))) == path for mount in mounts)

    def with_flags(self, flags: tuple[Flag, ...], folder: Path) -> str:
        """Give the text with these flags, and with `folder` mounted where the API server can read it.

        A mode is added to the modes that are there: of a second flag with a mode that the first has, too, the API
        server ends (measured with 1.36: "has mode specified more than once").

        Raises:
            Conflict: that cannot be done safely.

        """
        try:
            edited = _Edit(self, flags, folder).text()
        except Unsafe as error:
            raise yamltext.conflict(self.path, error) from None
        if yaml.safe_load(edited) != self._expected(flags, folder):
            raise yamltext.conflict(self.path, "our lines would change more")
        return edited

    def _expected(self, flags: tuple[Flag, ...], folder: Path) -> dict[str, Any]:
        pod = copy.deepcopy(self.pod)
        container = pod["spec"]["containers"][self.container]
        for flag in flags:
            if flag.name == MODE:
                for words in filter(None, (container.get("command"), container.get("args"))):
                    words[:] = [_with_mode(words, number, flag.value) for number in range(len(words))]
        words = container["args"] if container.get("args") else container["command"]
        words += [f"--{flag.name}={flag.value}" for flag in flags if flag.name != MODE]
        if not self.has_volume(folder):
            mount = {"mountPath": str(folder), "name": self.volume, "readOnly": True}
            volume = {"hostPath": {"path": str(folder), "type": "DirectoryOrCreate"}, "name": self.volume}
            container["volumeMounts"] = [mount, *container.get("volumeMounts", [])]
            pod["spec"]["volumes"] = [volume, *pod["spec"].get("volumes", [])]
        return pod

    def has_volume(self, folder: Path) -> bool:
        """Whether our folder is mounted already, by lines of ours that somebody's tool has taken the comments from."""
        volumes = [one for one in _dicts(self.pod["spec"].get("volumes")) if one.get("name") == self.volume]
        return bool(volumes) and self.on_host(PurePosixPath(folder)) == folder


def foreign(text: str, folder: Path) -> int:
    """Give the number of the first line that ends as ours do and is none that we put in; 0 where there is none."""
    ours = {
        "volumeMounts:", f"- mountPath: {folder}", f"name: {VOLUME}", "readOnly: true",
        "volumes:", "- hostPath:", f"path: {folder}", "type: DirectoryOrCreate",
    }  # fmt: skip
    for number, line in enumerate(text.split("\n"), 1):
        bare = line.strip()
        if not bare.endswith(MARK) or bare.startswith("#"):
            continue
        bare = bare.removesuffix(MARK).rstrip()
        if bare not in ours and not _FLAG.match(bare):
            return number
    return 0


class _Edit:
    """One edit of one manifest's text: lines to put before others, and lines to change."""

    def __init__(self, manifest: Manifest, flags: tuple[Flag, ...], folder: Path) -> None:
        self._manifest = manifest
        self._flags = flags
        self._folder = folder
        self._lines = manifest.text.split("\n")
        self._before: dict[int, list[str]] = {}
        self._changed: dict[int, str] = {}

    def text(self) -> str:
        root = yaml.compose(self._manifest.text, Loader=yaml.SafeLoader)
        spec = entries(root, "the document")["spec"][1]
        containers = entries(spec, "spec")["containers"][1]
        if not isinstance(containers, yaml.SequenceNode) or containers.flow_style:
            raise Unsafe("`containers` is not a list with an item a line")
        container = containers.value[self._manifest.container]
        given = entries(container, "the container")
        words = [_items(given[key]) for key in ("command", "args") if key in given and given[key][1].value]
        for items in words:
            self._set_mode(items)
        if len(self._changed) > 1:
            raise Unsafe(f"--{MODE} is given twice")
        self._append(words[-1])
        if not self._manifest.has_volume(self._folder):
            name = self._manifest.volume
            if any(one.get("name") == name for one in _dicts(self._manifest.pod["spec"].get("volumes"))):
                raise Unsafe(f"another volume is called {name}")
            mount = [f"- mountPath: {self._folder}", f"  name: {name}", "  readOnly: true"]
            self._first_of(container, "volumeMounts", mount)
            volume = ["- hostPath:", f"    path: {self._folder}", "    type: DirectoryOrCreate", f"  name: {name}"]
            self._first_of(spec, "volumes", volume)
        result: list[str] = []
        for number, line in enumerate(self._lines):
            result += self._before.get(number, [])
            result += [f"{WAS}{line}", self._changed[number]] if number in self._changed else [line]
        return "\n".join(result)

    def _set_mode(self, items: list[yaml.ScalarNode]) -> None:
        for flag in self._flags:
            if flag.name != MODE:
                continue
            words = [item.value for item in items]
            for number, item in enumerate(items):
                new = _with_mode(words, number, flag.value)
                if new != item.value:
                    line = item.start_mark.line
                    self._changed[line] = f"{self._lines[line][: item.start_mark.column]}{new} {CHANGED}"

    def _append(self, items: list[yaml.ScalarNode]) -> None:
        line = items[-1].start_mark.line
        if line + 1 >= len(self._lines):
            raise Unsafe("its last line does not end")
        dash = self._lines[line].index("-")
        lines = [f"- --{flag.name}={flag.value}" for flag in self._flags if flag.name != MODE]
        self._put(line + 1, dash, lines)

    def _first_of(self, node: yaml.Node, key: str, item: list[str]) -> None:
        """Put an item before the first of a list, or make the list where there is none, as the second entry."""
        found = entries(node, f"what `{key}` is in")
        if key in found:
            values = found[key][1]
            if not isinstance(values, yaml.SequenceNode) or values.flow_style or not values.value:
                raise Unsafe(f"`{key}` is not a list with an item a line")
            mark = values.value[0].start_mark
            indent = self._lines[mark.line][: mark.column].rstrip(" ")
            if indent.strip(" ") != "-":
                raise Unsafe(f"the first item of `{key}` does not begin a line")
            self._put(mark.line, len(indent) - 1, item)
            return
        if len(node.value) < 2:
            raise Unsafe(f"there is no place for `{key}`")
        mark = node.value[1][0].start_mark
        if self._lines[mark.line][: mark.column].strip(" "):
            raise Unsafe(f"there is no place for `{key}`")
        self._put(mark.line, mark.column, [f"{key}:", *item])

    def _put(self, line: int, indent: int, lines: list[str]) -> None:
        self._before.setdefault(line, []).extend(f"{' ' * indent}{text} {MARK}" for text in lines)


def _items(entry: tuple[yaml.Node, yaml.Node]) -> list[yaml.ScalarNode]:
    """Give the words of `command` or `args`, each on a line of its own."""
    key, words = entry
    if not isinstance(words, yaml.SequenceNode) or words.flow_style:
        raise Unsafe(f"`{key.value}` is not a list with an item a line")
    before = -1
    for item in words.value:
        line = item.start_mark.line
        if not isinstance(item, yaml.ScalarNode) or item.style in ("|", ">") or item.end_mark.line != line:
            raise Unsafe(f"the item of `{key.value}` in line {line + 1} is longer than its line")
        if line == before or line == key.start_mark.line:
            raise Unsafe(f"line {line + 1} has more than an item")
        before = line
    return words.value


def _with_mode(words: list[str], number: int, mode: str) -> str:
    """Give the word of this number, with a mode more if it is the value of the flag for the modes."""
    name, is_set, value = words[number].partition("=")
    before = words[number - 1] if number else ""
    if is_set and name.replace("_", "-") == f"--{MODE}":
        return f"{name}={value},{mode}"
    return f"{words[number]},{mode}" if before.replace("_", "-") == f"--{MODE}" else words[number]


def _dicts(values: Any) -> Iterator[dict[str, Any]]:
    yield from (value for value in values if isinstance(value, dict)) if isinstance(values, list) else ()
