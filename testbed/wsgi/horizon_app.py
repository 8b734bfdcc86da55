"""Horizon as a WSGI application under gunicorn, with its static files, which a web server in front has elsewhere.

Runs in Horizon's own virtual environment, so it imports nothing of the test bed.
"""

from django.conf import settings  # pyright: ignore[reportMissingImports]
from openstack_dashboard import wsgi  # pyright: ignore[reportMissingImports]
from whitenoise import WhiteNoise  # pyright: ignore[reportMissingImports]

application = WhiteNoise(wsgi.application, root=settings.STATIC_ROOT, prefix=settings.STATIC_URL)
