"""`python3 -m testbed …`: make the parts, stand them up to try things by hand, clean up.

    setup      build what is missing: Keystone, Horizon, etcd, kube-apiserver, kubectl, the machine's image, an identity
               provider; install Chromium
    demo       the main job from end to end, told step by step
    up         a control plane, a Keystone and a shell that takes the documentation's commands, `juju` among them
    picture    Horizon with the button for kubeconfigs, for the documentation
    dashboard  the dashboard after an outage on three control-plane machines, for the documentation; 10 to 15 minutes
    clean      remove what a killed run left behind

Everything that `up` started ends with it, however it ends.
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys

from testbed import machine, setup
from testbed.cache import TestbedError, root, say


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(
        prog="python3 -m testbed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("setup", "demo", "up", "picture", "dashboard", "clean"))
    command = parser.parse_args().command
    # An order to end must end what was started, like Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if command == "setup":
            setup.everything()
            say(f"all parts are in {root()}")
        elif command == "clean":
            machine.clean()
        elif command == "picture":
            say(f"the picture is {importlib.import_module('testbed.horizon').picture()}")
        elif command == "dashboard":
            say(f"the picture is {importlib.import_module('testbed.dashboard').picture()}")
        elif command == "demo":
            importlib.import_module("testbed.demo").run()
        else:
            from testbed import prompt

            prompt.run()
    except TestbedError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; everything is cleaned up", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
