"""Horizon's settings on the test bed; what differs from one Horizon to another is in its environment."""

import os

DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
SECRET_KEY = os.environ["TESTBED_SECRET_KEY"]
OPENSTACK_KEYSTONE_URL = os.environ["TESTBED_KEYSTONE_URL"]
OPENSTACK_SSL_CACERT = os.environ["TESTBED_KEYSTONE_CA"]
# No database and no cache server: sessions lie in the browser, signed.
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
CACHES = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
# Styles are compiled once, when the test bed is built, as packages of Horizon do it.
COMPRESS_OFFLINE = True
STATIC_ROOT = os.environ["TESTBED_STATIC_ROOT"]
TIME_ZONE = "UTC"
