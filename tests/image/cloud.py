"""A metadata service as EC2's, with made-up values, for the image tests.

usage: cloud.py ADDRESS PORT RECORD [--v2-only] [--user-data FILE]

Appends one line for each request to RECORD. Answers IMDSv1 and v2; with --v2-only reads without a token get 401. The
user-data is a small script, or FILE.
"""

import sys
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "decoy-token"
ROLE = '{"Code":"Success","AccessKeyId":"decoy-secret-key","SecretAccessKey":"decoy-secret","Token":"decoy-secret-token"}'
USER_DATA = """#!/bin/sh
touch /run/user-data-ran
"""
LEAVES = {
    "meta-data/ami-id": "ami-0decoy",
    "meta-data/hostname": "decoy.internal",
    "meta-data/local-hostname": "decoy.internal",
    "meta-data/iam/security-credentials/decoy-role": ROLE,
    "meta-data/instance-id": "i-0decoy",
    "meta-data/instance-type": "t3.small",
    "meta-data/local-ipv4": "10.99.0.2",
    "meta-data/placement/availability-zone": "eu-decoy-1a",
    "meta-data/public-keys/0/openssh-key": "ssh-ed25519 AAAAdecoy decoy",
    "user-data": USER_DATA,
    "dynamic/instance-identity/document": '{"instanceId":"i-0decoy","region":"eu-decoy-1"}',
}


class Metadata(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "EC2ws"

    def do_PUT(self):
        self.note()
        self.answer(200 if self.path.endswith("/api/token") else 405, TOKEN)

    def do_GET(self):
        self.note()
        token = self.headers.get("X-aws-ec2-metadata-token")
        if token != TOKEN and (token or V2_ONLY):
            return self.answer(401, "")
        # /VERSION/leaf; a version alone is a directory, too.
        inner = self.path.strip("/").partition("/")[2].rstrip("/")
        if inner in LEAVES:
            return self.answer(200, LEAVES[inner])
        names = sorted({self.child(leaf, inner) for leaf in LEAVES} - {None})
        return self.answer(200, "\n".join(names)) if names else self.answer(404, "")

    @staticmethod
    def child(leaf, directory):
        """The name that a leaf gives to a listing of a directory, as EC2 writes it."""
        prefix = directory + "/" if directory else ""
        if not leaf.startswith(prefix):
            return None
        name, more, below = leaf[len(prefix) :].partition("/")
        if directory == "meta-data/public-keys":
            return f"{name}=decoy"
        return name + ("/" if more and below else "")

    def answer(self, status, body):
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(data)))
        if self.command == "PUT":
            self.send_header("X-aws-ec2-metadata-token-ttl-seconds", "21600")
        self.end_headers()
        self.wfile.write(data)

    def note(self):
        now = datetime.now(timezone.utc).isoformat()
        agent = self.headers.get("User-Agent", "-")
        with open(RECORD, "a", encoding="utf-8") as record:
            record.write(f"{now} {self.client_address[0]} {self.command} {self.path} {agent}\n")

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    address, port, RECORD = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    V2_ONLY = "--v2-only" in sys.argv
    if "--user-data" in sys.argv:
        with open(sys.argv[sys.argv.index("--user-data") + 1], encoding="utf-8") as file:
            LEAVES["user-data"] = file.read()
    ThreadingHTTPServer.daemon_threads = True
    # Python's own five would drop connections that come at once, which a test would take for the guard's doing.
    ThreadingHTTPServer.request_queue_size = 256
    # Callers go away in the middle of things here: that is what the tests are about.
    ThreadingHTTPServer.handle_error = lambda *_: None
    server = ThreadingHTTPServer((address, port), Metadata)
    print("ready", flush=True)
    server.serve_forever()
