"""Horizon's settings on the test bed; what is in braces is filled in by `testbed.setup` and `testbed.horizon`."""

DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
SECRET_KEY = "{secret}"
OPENSTACK_KEYSTONE_URL = "{keystone}"
OPENSTACK_SSL_CACERT = "{ca}"
# No database and no cache server: sessions lie in the browser, signed.
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
CACHES = {{"default": {{"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}}}
# Styles are compiled once, when the test bed is built, as packages of Horizon do it.
COMPRESS_OFFLINE = True
STATIC_ROOT = "{static}"
TIME_ZONE = "UTC"
