"""The test bed: the real parts that the tests, the demo and the benchmarks stand on.

One module a part, each usable alone: `setup` builds what they need into a cache outside the checkout (`cache`),
`keystone` runs a Keystone, `machine` a small machine with systemd, `charmed` and `canonical` the control plane of
either kind on it (`cluster` is what they share, `owners` who else writes to its flags), `agent` plays Juju's unit
agent there, `juju` takes an operator's commands for it, `shell` has them and a user's programs as a person does,
`users` is what a cluster's user has in hands, `pack` packs the charm, `stage` puts all of them together, for `demo`,
for the machine tests and, by hand, for `prompt`. Nothing of it is released.
"""
