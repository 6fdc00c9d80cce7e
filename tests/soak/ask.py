"""Asks the metadata service again and again, and tells of each ask on a line of its own: when, how long, what came.

Run inside the vm as the caller that it plays. It knows the answers that it may get, so that a wrong one shows.
"""

import argparse
import json
import signal
import socket
import sys
import threading
import time

ADDRESS = ("169.254.169.254", 80)


def ask(path, timeout, kept=None, header=""):
    """One ask; the outcome in a word or two, and the connection if it may be kept."""
    try:
        connection = kept or socket.create_connection(ADDRESS, timeout)
    except ConnectionRefusedError:
        return "connection refused", "", None
    except TimeoutError:
        return "connection timed out", "", None
    except OSError as error:
        return f"no connection: {error.strerror}", "", None
    try:
        connection.settimeout(timeout)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {ADDRESS[0]}\r\n{header}\r\n".encode())
        head, body = read(connection)
    except TimeoutError:
        connection.close()
        return "timed out", "", None
    except (ConnectionError, EOFError) as error:
        connection.close()
        return "closed" if isinstance(error, EOFError) else "reset", "", None
    lines = head.lower().split("\r\n")
    status = lines[0].split(" ")[1] if " " in lines[0] else lines[0]
    if any(line.startswith("x-imds-guard") for line in lines):
        status += " by the guard"
    if "connection: close" in lines:
        connection.close()
        connection = None
    return status, body, connection


def read(connection):
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            raise EOFError
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    head = head.decode("latin-1")
    length = next((int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length:")), 0)
    while len(body) < length:
        more = connection.recv(65536)
        if not more:
            raise EOFError
        body += more
    return head, body.decode("latin-1")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", action="append", required=True, help="asked in turn")
    parser.add_argument("--every", type=float, default=0.1, help="seconds between two asks of one asker")
    parser.add_argument("--askers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--timeout", type=float, default=5)
    parser.add_argument("--keep", action="store_true", help="one connection for many asks")
    parser.add_argument("--header", default="")
    options = parser.parse_args()
    header = options.header and options.header + "\r\n"
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    lock, told = threading.Lock(), []

    def run(number):
        kept, turn = None, number
        due = time.monotonic() + options.every * number / options.askers
        while not stop.is_set():
            if stop.wait(max(0, due - time.monotonic())):
                return
            path = options.path[turn % len(options.path)]
            turn += 1
            begun = time.monotonic()
            outcome, body, kept = ask(path, options.timeout, kept, header)
            if not options.keep and kept:
                kept.close()
                kept = None
            took = time.monotonic() - begun
            with lock:
                told.append(json.dumps([begun, took, path, outcome, body]))
            due = max(due + options.every, time.monotonic() - 1)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(options.askers)]
    for thread in threads:
        thread.start()
    stop.wait(options.seconds)
    stop.set()
    for thread in threads:
        thread.join()
    sys.stdout.write("".join(line + "\n" for line in told))


if __name__ == "__main__":
    main()
