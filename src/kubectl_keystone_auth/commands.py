"""`kubectl keystone-auth …`: what a person runs, not kubectl."""

from __future__ import annotations

from kubectl_keystone_auth import __version__
from kubectl_keystone_auth.errors import BadInput

HELP = """\
kubectl-keystone-auth: log in to Kubernetes with an OpenStack account.

As an exec plug-in of kubectl it prints a token. How to log in, by flags or, where there is no flag, by the environment:

  --keystone-url URL                  OS_AUTH_URL
  --application-credential-id ID      OS_APPLICATION_CREDENTIAL_ID
  --application-credential-name NAME  OS_APPLICATION_CREDENTIAL_NAME; then with a user as well
  --application-credential-secret …   OS_APPLICATION_CREDENTIAL_SECRET; better than the flag: process lists show flags
  --user-name NAME, --user-id ID      OS_USERNAME, OS_USER_ID
  --password …                        OS_PASSWORD; better than the flag
  --project-name NAME, --project-id   OS_PROJECT_NAME, OS_PROJECT_ID
  --domain-name NAME, --domain-id     OS_DOMAIN_NAME, OS_DOMAIN_ID: of both; else the domain with the ID `default`
  --user-domain-name, --project-domain-name, …-id   OS_USER_DOMAIN_NAME, …
  --cacert FILE                       OS_CACERT
  --cert FILE, --key FILE             OS_CERT, OS_KEY: a client certificate for Keystone
  --insecure                          OS_INSECURE: check no certificate, allow http://
  --os-cloud NAME                     OS_CLOUD: a cloud of clouds.yaml
  --os-auth-type TYPE                 OS_AUTH_TYPE: any other way of keystoneauth1's, with its options as --os-… or OS_…

  -v          show the conversation with Keystone, secrets masked
  --no-cache  log in anew, and keep no token
  --version

Exit codes: 2 input, 3 refused by Keystone, 4 project, 5 Keystone away, 6 certificate, 7 clock, 1 anything else.
"""


def run(arguments: list[str]) -> int:
    """Run a command; returns the exit code.

    Raises:
        PluginError: it cannot be done.

    """
    first = arguments[0]
    if first in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if first in ("--version", "version"):
        print(__version__)
        return 0
    raise BadInput(f"{first!r} is no command; --help lists what is")
