"""`python -m kubectl_keystone_auth`, where the scripts that pip makes are not on the path."""

import sys

from kubectl_keystone_auth.main import main

sys.exit(main())
