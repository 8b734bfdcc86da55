"""How others change a file of flags that is not theirs alone, each in a few lines that do what the real one does.

Only what becomes of the text; who calls it when is the machines' affair (`testbed.canonical`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def canonical_charm(text: str, extra: Mapping[str, str] | None = None) -> str:
    """Give what the `k8s` charm writes: of each flag the last line, its own over it, sorted by name and quoted."""
    flags: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("--"):
            name, value = line.split("=", 1)
            flags[name] = value.strip('"').strip("'")
    flags |= {f"--{name}": value for name, value in (extra or {}).items()}
    return "".join(f'{name}="{value}"\n' for name, value in sorted(flags.items()))


def canonical_daemon(text: str, update: Mapping[str, str] | None = None, delete: Iterable[str] = ()) -> str:
    """Give what the `k8s` snap's daemon writes: its own values in each line of their names, all lines sorted."""
    wanted, gone = {f"--{name}": value for name, value in (update or {}).items()}, {f"--{name}" for name in delete}
    lines, seen = [], set()
    for line in filter(None, map(str.strip, text.splitlines())):
        name = line.split("=", 1)[0]
        seen.add(name)
        if name in wanted:
            lines.append(f"{name}={wanted[name]}")
        elif name not in gone:
            lines.append(line)
    lines += [f"{name}={value}" for name, value in wanted.items() if name not in seen]
    return "".join(f"{line}\n" for line in sorted(lines))


def microk8s_tools(text: str, name: str, value: str) -> str:
    """Give what MicroK8s' own tools write to set a flag: the value in every line of its name, or a new first line."""
    lines = text.split("\n")
    if not any(line.startswith(f"--{name}=") for line in lines):
        return f"--{name}={value}\n{text}"
    return "\n".join(f"--{name}={value}" if line.startswith(f"--{name}=") else line for line in lines)
