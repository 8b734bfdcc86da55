"""Plays Charmed Kubernetes' own token webhook: knows the tokens that are kept as Secrets, and says no to all others.

As the real one: it answers in the apiVersion that it is asked in, says a plain no to everybody until it has loaded the
Secrets, and forwards what it does not know to where its charm's option `authn-webhook-endpoint` says: without a client
certificate, and believing any server's; whatever is no yes becomes a plain no. It logs each review as the token's
SHA-256 and the user it found. Standard library only; it runs on the machine.
"""

import base64
import hashlib
import http.server
import json
import pathlib
import socket
import ssl
import sys
import threading
import time
import urllib.parse
import urllib.request

CUSTOM_AUTHN_ENDPOINT = ""

FOLDER = pathlib.Path("/root/cdk/auth-webhook")
SECRETS = "https://127.0.0.1:6443/api/v1/namespaces/kube-system/secrets?fieldSelector=" + urllib.parse.quote(
    "type=juju.is/token-auth"
)
users = {}


def say(text):
    """Log a line."""
    print(text, file=sys.stderr, flush=True)


def load_forever():
    """Read the Secrets again and again; what was known stays known while the API server is away."""
    global users
    context = ssl.create_default_context(cafile="/root/cdk/ca.crt")
    context.load_cert_chain(FOLDER / "client.crt", FOLDER / "client.key")
    while True:
        try:
            with urllib.request.urlopen(SECRETS, context=context, timeout=5) as response:
                items = json.load(response)["items"]
            loaded = {}
            for item in items:
                data = {key: base64.b64decode(value).decode() for key, value in item["data"].items()}
                groups = [group for group in data.get("groups", "").split(",") if group]
                loaded[data["password"]] = {"username": data["username"], "uid": data["uid"], "groups": groups}
            if loaded != users:
                say(f"{len(loaded)} tokens loaded")
                users = loaded
        except (OSError, ValueError, KeyError) as error:
            say(f"cannot load the Secrets: {error}")
        time.sleep(1 if users else 0.3)


def forwarded(review):
    """Ask the endpoint that was configured; give the user that it names, if it names one."""
    if not CUSTOM_AUTHN_ENDPOINT:
        return None
    body, headers = json.dumps(review).encode(), {"Content-Type": "application/json"}
    request = urllib.request.Request(CUSTOM_AUTHN_ENDPOINT, body, headers)
    try:
        context = ssl._create_unverified_context()
        with urllib.request.urlopen(request, context=context, timeout=10) as response:
            status = json.load(response)["status"]
        return status["user"] if status["authenticated"] else None
    except (OSError, ValueError, KeyError) as error:
        say(f"{CUSTOM_AUTHN_ENDPOINT}: {error}")
        return None


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers TokenReviews."""

    protocol_version = "HTTP/1.1"
    timeout = 300

    def do_POST(self):
        """Answer one."""
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        token = review.get("spec", {}).get("token", "")
        user = users.get(token) or forwarded(review)
        review["status"] = {"authenticated": True, "user": user} if user else {"authenticated": False}
        say(f"review {hashlib.sha256(token.encode()).hexdigest()} {user['username'] if user else '-'}")
        body = json.dumps(review).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        """Say nothing: reviews are logged above."""


tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


class Server(http.server.ThreadingHTTPServer):
    """A TLS server whose handshakes do not hold up others."""

    daemon_threads = True

    def finish_request(self, request, client_address):
        """Serve a connection, in its own thread."""
        if isinstance(request, socket.socket):
            request.settimeout(10)
            with tls.wrap_socket(request, server_side=True) as connection:
                super().finish_request(connection, client_address)

    def handle_error(self, request, client_address):
        """Leave broken connections alone."""


tls.load_cert_chain("/root/cdk/server.crt", "/root/cdk/server.key")
server = Server(("127.0.0.1", 5000), Handler)
threading.Thread(target=load_forever, daemon=True).start()
server.serve_forever()
