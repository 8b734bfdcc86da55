"""Steady clients of the webhook endpoint, as an API server is one: kept connections with its certificate.

Runs on the machine, with the system's Python alone. Standard input: one line of JSON (address, PEM texts, reviews with
the part of the answer that is right, how many clients, seconds between two reviews of one); its end ends the clients.
Then what they saw is printed as one line of JSON.
"""

import http.client
import json
import select
import ssl
import sys
import tempfile
import threading
import time

TIMEOUT = 30.0  # seconds, as the API server waits


def context(wanted):
    """Give the TLS context of the API server's webhook client."""
    made = ssl.create_default_context(cadata=wanted["ca"])
    made.check_hostname = False
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(wanted["certificate"] + wanted["key"])
        file.flush()
        made.load_cert_chain(file.name)
    return made


class Client(threading.Thread):
    """One client, with a connection that it keeps."""

    def __init__(self, number, wanted, stop):
        super().__init__(daemon=True)
        self.number, self.wanted, self.stop = number, wanted, stop
        self.answered = 0
        self.slowest = 0.0
        self.failures = []
        self.connection = None
        self.context = context(wanted)

    def run(self):
        """Ask until the end."""
        reviews = self.wanted["reviews"]
        turn = self.number
        while not self.stop.wait(self.wanted["pause"]):
            turn += 1
            began = time.time()
            try:
                problem = self.ask(reviews[turn % len(reviews)])
            except Exception as error:
                problem = "fault of the client", repr(error)
            seconds = time.time() - began
            self.slowest = max(self.slowest, seconds)
            if problem is None:
                self.answered += 1
            else:
                self.failures.append({"kind": problem[0], "text": problem[1], "began": began, "seconds": seconds})

    def ask(self, review):
        """Send a review; the problem, if there is one, as its kind and its text."""
        kind = "refused"
        try:
            # As Go's client: a kept connection that was closed meanwhile is noticed before it is used.
            if self.connection and (not self.connection.sock or select.select([self.connection.sock], [], [], 0)[0]):
                self.connection.close()
                self.connection = None
            if self.connection and self.wanted["fresh"]:
                self.connection.close()
                self.connection = None
            if self.connection is None:
                host, port = self.wanted["address"]
                made = http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=self.context)
                try:
                    made.connect()
                except OSError as error:
                    return ("refused" if isinstance(error, ConnectionRefusedError) else "lost"), repr(error)
                self.connection = made
            kind = "lost"
            self.connection.request("POST", "/webhook", review["body"], {"Content-Type": "application/json"})
            answer = self.connection.getresponse()
            body = answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            if self.connection:
                self.connection.close()
                self.connection = None
            return ("late" if isinstance(error, TimeoutError) else kind), repr(error)
        if answer.status != 200 or review["right"] not in body:
            return "wrong", f"{answer.status} {body[:300]}"
        return None


def main():
    """Run the clients until standard input ends."""
    wanted = json.loads(sys.stdin.readline())
    stop = threading.Event()
    clients = [Client(number, wanted, stop) for number in range(wanted["clients"])]
    for client in clients:
        client.start()
    sys.stdin.read()
    stop.set()
    for client in clients:
        client.join()
    told = {
        "answered": sum(client.answered for client in clients),
        "slowest": max(client.slowest for client in clients),
        "failures": [failure for client in clients for failure in client.failures],
    }
    print(json.dumps(told))


main()
