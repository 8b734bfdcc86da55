"""Plays the API server: `/readyz` and SelfSubjectReview over TLS, on the port in its flags. Does as a file says."""

import http.server
import json
import pathlib
import ssl
import sys
import threading
import time

folder, *flags = sys.argv[1:]
if flags[0].startswith("--apiserver-args-file="):
    # As kubelite does; it shows none of them.
    lines = pathlib.Path(flags[0].partition("=")[2]).read_text().splitlines()
    lines = [line.strip().replace('"', "").replace("'", "") for line in lines]
    flags = [word for line in lines if line and not line.startswith("#") for word in line.split(" ")]
    pathlib.Path(folder, "given.json.new").write_text(json.dumps(flags))
    pathlib.Path(folder, "given.json.new").rename(pathlib.Path(folder, "given.json"))
told = json.loads(pathlib.Path(folder, "behaviour.json").read_text())
port = next(int(word.partition("=")[2]) for word in flags if word.startswith("--secure-port="))


def is_so(what: str) -> bool:
    return what in told and any(told[what] in word for word in flags)


class Handler(http.server.BaseHTTPRequestHandler):
    """Knows one token (or nobody's, in the place of a certificate), and a few paths."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        token = self.headers.get("Authorization")
        known = token == "Bearer admin::cluster-token-0123456789abcdef" or (token is None and is_so("certificate"))
        known = known and not is_so("lockout")
        code = 401 if not known else 500 if is_so("deaf") else 200
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(201 if code == 200 and self.command == "POST" else code)
        status = {"error": 'Post "https://127.0.0.1:8443/webhook": refused' if is_so("unreached") else "invalid token"}
        body = json.dumps({"status": status} if self.path.endswith("/tokenreviews") else {}).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


if is_so("crash"):
    time.sleep(0.1)
    print("panic: bearer gAAAAABsecret: the flags are not to its liking", file=sys.stderr)
    sys.exit(1)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(pathlib.Path(folder, "server.pem"))
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
if is_so("crash_later"):
    threading.Timer(0.7, lambda: __import__("os")._exit(1)).start()
server.serve_forever()
