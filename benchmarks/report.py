"""The table of results, and `benchmarks/README.md`, whose second half each run writes anew."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import HERE

README = HERE / "README.md"
MARK = "<!-- What follows is written by the command. -->\n"
HEAD = ("measured", "ours", "upstream", "ratio", "target", "this machine's limit", "met")


@dataclass(frozen=True)
class Row:
    """A line of the table; all is text but `met`, which is None where there is no target."""

    measured: str
    ours: str
    upstream: str = ""
    ratio: str = ""
    target: str = ""
    limit: str = ""
    met: bool | None = None
    why: str = ""

    def cells(self) -> tuple[str, ...]:
        """Give what stands in the columns of `HEAD`."""
        verdict = {None: "", True: "yes", False: f"**no**: {self.why or 'not looked into yet'}"}[self.met]
        return (self.measured, self.ours, self.upstream, self.ratio, self.target, self.limit, verdict)


def number(value: float) -> str:
    """Write a figure with what digits are worth reading."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Write the median and, in brackets, the least and the most."""
    return f"{number(median(values))} ({number(min(values))} to {number(max(values))})"


def table(rows: Sequence[Row]) -> str:
    """Give the rows as Markdown, in columns that line up in a terminal too."""
    lines = [HEAD, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD) - 1)] + [3]
    lines.insert(1, tuple("-" * width for width in widths))
    return "".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |\n"
        for line in lines
    )


def others() -> float:
    """Give the processor seconds that all other programs have used; ours count once they have ended."""
    # user, nice, system, idle, iowait, irq, softirq, steal: proc_stat(5)
    ticks = [int(field) for field in _lines("/proc/stat")[0].split()[1:9]]
    busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:4])


def circumstances(versions: Sequence[str], seconds: float, others: float) -> str:
    """Say when and on what it was measured; `others`: processor seconds that other programs took meanwhile."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if "model name" in line), "unknown"
    )
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    share = others / seconds / (os.cpu_count() or 1)
    noise = "" if share < 0.05 else ": **noisy; trust ratios and processor time rather than rates, p99 least**"
    facts = (
        f"{date}, {seconds / 60:.0f} minutes",
        f"{os.cpu_count()} processors, {model}; Linux {platform.release()}",
        f"other programs took {share:.0%} of the processors meanwhile{noise}",
        *versions,
    )
    return "".join(f"- {fact}\n" for fact in facts)


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def write(text: str) -> None:
    """Put the results into the README, after what people wrote."""
    kept = README.read_text().partition(MARK)[0]
    new = README.with_suffix(".new")
    new.write_text(f"{kept}{MARK}\n## The last run\n\n{text}")
    new.replace(README)
