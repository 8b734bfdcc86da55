"""Plays MicroK8s' kubelite, of which only the API server is here: it reads its flags from a file and shows none.

As the real one: a line at a time, quotes taken off, variables put in, `#` for comments; it ends with its API server.
Standard library only; it runs on the machine.
"""

import os
import pathlib
import signal
import subprocess
import sys

path = pathlib.Path(sys.argv[1].partition("=")[2])
flags = []
for line in path.read_text().splitlines():
    line = line.strip().replace('"', "").replace("'", "")
    if line and not line.startswith("#"):
        flags += [os.path.expandvars(word) for word in line.split(" ")]
server = subprocess.Popen([os.environ["SNAP"] + "/kube-apiserver", *flags])
signal.signal(signal.SIGTERM, lambda *_: server.terminate())
sys.exit(abs(server.wait()))
