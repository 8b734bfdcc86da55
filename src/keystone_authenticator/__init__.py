"""The authenticator: the webhook that tells a Kubernetes API server who a Keystone token is and what it may do.

It runs for months as an unprivileged service and imports nothing of the charm's; the two meet in files and on the
wire only.
"""

__version__ = "0.1.0"
