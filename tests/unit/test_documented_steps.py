"""How the documentation's commands are found; that they work is tests/machine/test_documents.py's."""

from __future__ import annotations

from tests.documents import _steps, steps

PAGE = """\
# A page

Some words, and a command:

    juju config x policy='[{
      "a": 1}]'     # with a comment
    kubectl get \\
      pods

## Files

- a list

    indented in an item

Save this as `policy.yaml`:

```yaml
- users: {}
```

```text
active
```

<!-- Keystone stops here. -->

```sh
juju status
```
"""


def test_commands_files_and_notes_are_found_in_their_order() -> None:
    found = [(step.kind, step.text, step.heading, step.name) for step in _steps(PAGE)]
    assert found == [
        ("command", """juju config x policy='[{\n  "a": 1}]'     # with a comment""", "A page", ""),
        ("command", "kubectl get \\\n  pods", "A page", ""),
        ("file", "- users: {}\n", "Files", "policy.yaml"),
        ("answer", "active", "Files", ""),
        ("note", "Keystone stops here.", "Files", ""),
        ("command", "juju status", "Files", ""),
    ]


def test_a_step_knows_its_line() -> None:
    lines = PAGE.splitlines()
    for step in _steps(PAGE):
        if step.kind == "command":
            assert lines[step.line - 1].strip() == step.text.splitlines()[0].strip()


def test_the_readme_begins_with_its_two_commands() -> None:
    first, second, *_ = steps("README.md")
    assert first.text.startswith("juju deploy kubernetes-keystone")
    assert second.text.startswith("juju add-relation kubernetes-master kubernetes-keystone")
