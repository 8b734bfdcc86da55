"""Plays the API server: `/readyz`, SelfSubjectReview, one Lease; TLS, on the port in its flags. Does as a file says.

With --authorization-config it reads that file as the real one does: it does not start with what it does not like, and
while it runs it follows what it likes, counts, and keeps what it had otherwise. What it likes has no text that it is
told to dislike, and names kubeconfigs that are there.
"""

import contextlib
import fcntl
import hashlib
import http.server
import json
import pathlib
import re
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


def lease(method: str, path: str, body: dict) -> tuple[int, dict]:
    """Answer as the API does; what there is lies in a file, as in an etcd, which several of these may share."""
    if is_so("forbidden"):
        return 403, {"message": "leases are not for you"}
    with pathlib.Path(folder, "leases.json").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        versions, found = json.loads(file.read() or "[0, null]")
        meant = body.get("preconditions") or body.get("metadata") or {}
        if method == "POST":
            assert path.endswith("/leases")
            if found:
                return 409, {"message": "already exists"}
        elif not found:
            return 404, {"message": "not found"}
        elif method == "GET":
            return 200, found
        elif any(meant[key] != found["metadata"][key] for key in ("uid", "resourceVersion")):
            return 409, {"message": "the object has been modified"}
        versions += 1
        if method == "DELETE":
            found = None
        else:
            uid = found["metadata"]["uid"] if found else f"uid-{versions}"
            found = {**body, "metadata": {**body["metadata"], "uid": uid, "resourceVersion": str(versions)}}
        file.truncate(0)
        file.write(json.dumps([versions, found]))
    return (201 if method == "POST" else 200), found or {"status": "Success"}


BEGAN = time.time()


class Authorization:
    """What the file of --authorization-config said when it was last liked."""

    def __init__(self, path: str) -> None:
        self.path = pathlib.Path(path)
        self.read = self.path.read_text()
        self.reloads = {"success": 0, "failure": 0}
        if not self.likes(self.read):
            print("E0101 the authorization configuration is not to its liking", file=sys.stderr)
            sys.exit(1)
        self.liked = self.read

    @staticmethod
    def now() -> dict:
        while True:
            with contextlib.suppress(ValueError):  # a test is just writing it
                return json.loads(pathlib.Path(folder, "behaviour.json").read_text())
            time.sleep(0.01)

    def likes(self, text: str) -> bool:
        named = re.findall(r"kubeConfigFile: *([^ \n]+)", text)
        return self.now().get("dislikes", "\0") not in text and all(pathlib.Path(one).is_file() for one in named)

    def follow(self) -> None:
        while True:
            time.sleep(0.02)
            if "blind" in self.now():
                continue
            text = self.path.read_text()
            if text == self.read:
                continue
            self.read = text
            if self.likes(text):
                self.liked = text
                self.reloads["success"] += 1
            else:
                print("E0101 the authorization configuration is not to its liking", file=sys.stderr, flush=True)
                self.reloads["failure"] += 1

    def metrics(self) -> str:
        name = "apiserver_authorization_config_controller_"
        lines = ["# HELP a few of many", 'apiserver_request_total{code="200"} 7', f"process_start_time_seconds {BEGAN}"]
        for status, count in self.reloads.items():
            lines.append(f'{name}automatic_reloads_total{{apiserver_id_hash="sha256:ab",status="{status}"}} {count}')
        if "old" not in self.now():
            digest = hashlib.sha256(self.liked.encode()).hexdigest()
            lines.append(f'{name}last_config_info{{apiserver_id_hash="sha256:ab",hash="sha256:{digest}"}} 1')
        return "\n".join(lines) + "\n"


class Handler(http.server.BaseHTTPRequestHandler):
    """Knows one token (or nobody's, in the place of a certificate), and a few paths."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        token = self.headers.get("Authorization")
        known = token == "Bearer admin::cluster-token-0123456789abcdef" or (token is None and is_so("certificate"))
        known = known and not is_so("lockout")
        code = 401 if not known else 500 if is_so("deaf") else 200
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status = {"error": 'Post "https://127.0.0.1:8443/webhook": refused' if is_so("unreached") else "invalid token"}
        answer = {"status": status} if self.path.endswith("/tokenreviews") else {}
        if code == 200 and "/namespaces/kube-system/leases" in self.path:
            code, answer = lease(self.command, self.path, json.loads(sent or b"{}"))
        elif code == 200 and self.command == "POST":
            code = 201
        if self.path.endswith("/subjectaccessreviews"):
            answer = {"status": {"evaluationError": authorization.now().get("evaluates", "")}} if authorization else {}
        body = json.dumps(answer).encode()
        if code == 200 and self.path == "/metrics":
            body = (authorization.metrics() if authorization else "").encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


if is_so("crash"):
    time.sleep(0.1)
    print("panic: bearer gAAAAABsecret: the flags are not to its liking", file=sys.stderr)
    sys.exit(1)
named = [word.partition("=")[2] for word in flags if word.startswith("--authorization-config=")]
authorization = Authorization(named[-1].strip('"')) if named else None
if authorization:
    threading.Thread(target=authorization.follow, daemon=True).start()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(pathlib.Path(folder, "server.pem"))
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
if is_so("crash_later"):
    threading.Timer(0.7, lambda: __import__("os")._exit(1)).start()
server.serve_forever()
