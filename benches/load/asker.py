#!/usr/bin/env python3
"""Asks from many units at once. Runs inside the vm's network namespace, as root, and takes its orders as JSON.

The kernel stamps a socket with the uid and the cgroup of whoever makes it. So one process that goes from cgroup to cgroup
and makes its sockets there is as many callers, and none of them competes with the measured program for a processor.

Orders: {"to": [address, port], "path": ..., "callers": [[uid, cgroup directory or null, connections], ...]}.
Prints a line of JSON when all has been asked, and one when all is answered: seconds from the first question to each answer.
"""

import json
import os
import resource
import selectors
import socket
import sys
import time


def connections(orders):
    """Opens them all, each as its caller."""
    made = []
    for uid, cgroup, count in orders["callers"]:
        if cgroup:
            with open(f"{cgroup}/cgroup.procs", "w") as procs:
                procs.write(str(os.getpid()))
        os.seteuid(uid)
        for _ in range(count):
            made.append(socket.socket())
            made[-1].settimeout(10)
            made[-1].connect(tuple(orders["to"]))
        os.seteuid(0)
    return made


def main():
    orders = json.load(sys.stdin)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    made = connections(orders)
    request = f"GET {orders['path']} HTTP/1.1\r\nHost: {orders['to'][0]}\r\nConnection: close\r\n\r\n".encode()
    waiting = selectors.DefaultSelector()
    for connection in made:
        waiting.register(connection, selectors.EVENT_READ, bytearray())
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    started = time.perf_counter()
    for connection in made:
        connection.sendall(request)
    print(json.dumps({"asked": len(made)}), flush=True)
    took, good = [], 0
    deadline = time.perf_counter() + 120
    while waiting.get_map() and time.perf_counter() < deadline:
        for key, _ in waiting.select(5):
            try:
                piece = key.fileobj.recv(65536)
            except OSError:
                piece = b""
            if not key.data and piece:
                took.append(time.perf_counter() - started)
            key.data.extend(piece)
            if not piece:
                good += key.data.startswith(b"HTTP/1.1 200 ")
                waiting.unregister(key.fileobj)
                key.fileobj.close()
    print(json.dumps({"took": took, "good": good}), flush=True)


if __name__ == "__main__":
    main()
