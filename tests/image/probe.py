"""Asks for the machine's credentials again and again, and writes what came of it, one JSON line for each attempt.

usage: probe.py OUTPUT [PATH [THREADS [SECONDS]]]

Ends on SIGTERM. Each attempt is a new connection; what is over within SECONDS (1) is judged, like an SDK's. One thread
pauses between its attempts; several do not.
"""

import json
import signal
import socket
import sys
import threading
import time

ADDRESS = ("169.254.169.254", 80)
PATIENCE = float(sys.argv[4]) if len(sys.argv) > 4 else 1.0
PAUSE = 0.02


def ask(path):
    """credentials: the real thing. refused: the guard's own answer. Else how the connection ended."""
    head = f"GET {path} HTTP/1.1\r\nHost: {ADDRESS[0]}\r\nX-aws-ec2-metadata-token: decoy-token\r\nConnection: close\r\n\r\n"
    try:
        with socket.create_connection(ADDRESS, PATIENCE) as connection:
            connection.settimeout(PATIENCE)
            connection.sendall(head.encode())
            answer = b""
            while piece := connection.recv(4096):
                answer += piece
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return "reset" if isinstance(error, ConnectionError) else f"error {error.errno}"
    if b"decoy-secret" in answer:
        return "credentials"
    if b"\r\nx-imds-guard" in answer.lower():
        return "refused"
    return "empty" if not answer else "other"


def main():
    path = sys.argv[2] if len(sys.argv) > 2 else "/latest/meta-data/iam/security-credentials/decoy-role"
    threads = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    over = threading.Event()

    def probe(output):
        while not over.is_set():
            begin = time.monotonic()
            result = ask(path)
            output.write(json.dumps({"at": begin, "took": time.monotonic() - begin, "result": result}) + "\n")
            if threads == 1:
                time.sleep(PAUSE)

    with open(sys.argv[1], "w", encoding="utf-8", buffering=1) as output:
        signal.signal(signal.SIGTERM, lambda *_: over.set())
        probers = [threading.Thread(target=probe, args=[output]) for _ in range(threads)]
        for prober in probers:
            prober.start()
        over.wait()
        for prober in probers:
            prober.join()


main()
