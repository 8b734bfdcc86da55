"""`python3 -m benchmarks`: measure everything, print the table, and write it into `benchmarks/README.md`."""

from __future__ import annotations

import time

from benchmarks import measure, plugin, program, report, start, work
from benchmarks.servers import Files
from testbed import setup
from testbed.cache import Run, say
from testbed.keystone import Keystone


def main() -> int:
    """Run all benchmarks, about nine minutes after what they need is built."""
    client = setup.benchmark_program("client")
    for part in (setup.upstream, setup.etcd, setup.kubernetes, lambda: setup.benchmark_program("webhook")):
        part()
    others = report.others()
    began = time.monotonic()
    run = Run("benchmarks")
    try:
        with Keystone() as keystone:
            say(f"{work.USERS} users, and {measure.MINTED:,} tokens minted with Keystone's keys")
            accounts = work.people(keystone)
            minted = work.mint(keystone, accounts, measure.MINTED)
            bench = measure.Bench(Files(run.folder), keystone, client, accounts, minted)
            rows = list(measure.everything(bench))
        rows += start.rows(bench.files, client, measure.PASSES)
        rows += plugin.rows()
    finally:
        run.remove()
    facts = report.circumstances(measure.versions(), time.monotonic() - began, report.others() - others)
    text = f"{facts}\n{report.table(rows)}"
    print(text)
    report.write(text)
    return 0


if __name__ == "__main__":
    program(main)
