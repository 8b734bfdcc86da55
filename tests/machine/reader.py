"""A reader of the documentation, who types what it says (tests/documents.py finds that) and compares what it shows."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path

from testbed.shell import Said, Session, Shell
from tests import documents

ASKED = ("kubectl keystone-auth kubeconfig",)  # for the secret of an application credential
# In an answer these are others each time.
VARYING = (
    (re.compile(r"\b[0-9a-f]{32}\b"), "<ID>"),
    (re.compile(r"\b\d+\.\d+\.\d+\.\d+\b"), "<address>"),
    (re.compile(r"[\w-]{60,}"), "<secret>"),
    (re.compile(r"[ \t]+"), " "),
)


@dataclasses.dataclass
class Reader:
    """Somebody who types a page's commands, and knows what it has told so far.

    Args:
        shell: where they are typed.
        folder: where that begins.
        document: the page, for messages.
        answers: how commands begin, and a word of what they are to answer where the page does not show it.
        left_out: how commands begin that are not run.
        words: what the page writes, and what a reader puts in its place.

    """

    shell: Shell
    folder: Path
    document: str
    answers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    words: dict[str, str] = dataclasses.field(default_factory=dict)
    secret: str = ""
    told: str = ""
    session: Session | None = None

    def fresh(self, **environment: str) -> None:
        """Open a new terminal."""
        self.close()
        self.session = Session(self.shell, self.folder, environment)

    def close(self) -> None:
        if self.session is not None:
            self.session.__exit__()
        self.session = None

    def type(self, command: str) -> Said:
        """Run a command with a reader's own words in it."""
        if self.session is None:
            self.fresh()
        assert self.session is not None
        for written, meant in self.words.items():
            command = command.replace(written, meant)
        assert not re.search(r"<[a-z]+ ID>|\.example\b", command), f"{command}: what is to be put in its place?"
        said = self.session.run(command)
        if found := re.findall(r"^secret:\w+", said.text, re.MULTILINE):
            self.words["secret:ID"] = found[-1]
        return said

    def reads(self, page: list[documents.Step]) -> None:
        """Do all steps of a page."""
        for step, following in zip(page, [*page[1:], None], strict=True):
            self.does(step, following.text if following is not None and following.kind == "answer" else "")

    def follows(self, heading: str) -> None:
        """Do the steps below a heading of the page."""
        self.reads(documents.below(self.document, heading))

    def does(self, step: documents.Step, answer: str = "") -> None:
        """Do one step, and look at the outcome: of all commands since the last answer, if the page shows one."""
        where = f"{self.document}:{step.line}: {step.text}"
        if step.kind == "file":
            (self.folder / step.name).write_text(step.text)
        if step.kind == "answer":
            said = _plain(self.told)
            assert [line for line in _plain(step.text) if line not in said] == [], f"{where}\n{self.told}"
            self.told = ""
        if step.kind != "command" or step.text.startswith(self.left_out):
            return
        asked = self.secret and step.text.startswith(ASKED)
        typed = f"OS_APPLICATION_CREDENTIAL_SECRET={shlex.quote(self.secret)} {step.text}" if asked else step.text
        said = self.type(typed)
        print(f"$ {step.text}\n{said.text}")
        refused = bool(answer) and answer.splitlines()[-1].lower().startswith("error")
        assert (said.code != 0) == refused, f"{where}\n{said.text}"
        wanted = [text for known, text in self.answers.items() if step.text.startswith(known)]
        assert all(text in said.text for text in wanted), f"{where}\n{said.text}"
        self.told += said.text
        if "application credential create" in step.text:
            self.learn(said.text)

    def learn(self, table: str) -> None:
        """Read what the page says is needed below of an answer that is a table."""
        rows = re.findall(r"^\| ([\w ]+?) +\| (.*?) +\|$", table, re.MULTILINE)
        told = {name.lower().replace(" ", "_"): value for name, value in rows}
        self.secret = told["secret"]
        self.words |= {"<credential ID>": told["id"], "3d1f0c5b7e4e6f9a8b7c6d5e4f3a2b10": told["id"]}
        self.words["<project ID>"] = told["project_id"]


Opener = Callable[[str], Reader]  # of a page, by its path in the repository


def _plain(text: str) -> list[str]:
    """The lines without what is another each time."""
    for varying, name in VARYING:
        text = varying.sub(name, text)
    return [line.strip() for line in text.splitlines()]
