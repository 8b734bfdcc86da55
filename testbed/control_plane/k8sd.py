"""Plays the token webhook of Canonical Kubernetes' daemon, k8sd: knows the tokens of its database, here a file.

With an argument, the folder of its state, it plays somebody else's webhook that does the same.
As the real one: any address, a certificate for 127.0.0.1, the version that it is asked in; to a token that it does not
know it answers 401, with a review that has an error. It logs each review as the token's SHA-256 and the user it found.
Standard library only; it runs on the machine.
"""

import hashlib
import http.server
import json
import pathlib
import ssl
import sys

STATE = pathlib.Path(sys.argv[1] if sys.argv[1:] else "/var/snap/k8s/common/var/lib/k8sd/state")
PATH = "/1.0/kubernetes/auth/webhook"
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(STATE / "cluster.crt", STATE / "cluster.key")


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers TokenReviews."""

    protocol_version = "HTTP/1.1"
    timeout = 300

    def setup(self):
        """Shake hands in the connection's own thread, so that it holds up nobody."""
        self.request = tls.wrap_socket(self.request, server_side=True)
        super().setup()

    def do_POST(self):
        """Answer one."""
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        token = review.get("spec", {}).get("token", "")
        known = json.loads((STATE / "tokens.json").read_text()) if self.path.partition("?")[0] == PATH else {}
        user = known.get(token)
        review["status"] = {"authenticated": True, "user": user} if user else {"error": "invalid token"}
        name = user["username"] if user else "-"
        print(f"review {hashlib.sha256(token.encode()).hexdigest()} {name}", file=sys.stderr, flush=True)
        body = json.dumps(review).encode()
        self.send_response(200 if user else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):
        """Say nothing: reviews are logged above."""


class Server(http.server.ThreadingHTTPServer):
    """A server that leaves broken connections alone."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        """Say nothing."""


Server(("0.0.0.0", 6400), Handler).serve_forever()
