"""Connects to a first address, if one is given, and then to the metadata service, both from one source port.

usage: same_port.py PORT[-PORT] SECONDS [ADDRESS PORT]

Without a first address the service is asked from each port of the range; with one, both connections are open at the
same time. Ports are tried until the time is over. What the service answered is written to stdout, one answer after
the other; the errno's name where there was none.
"""

import errno
import socket
import struct
import sys
import time

SERVICE = ("169.254.169.254", 80)
REQUEST = (b"GET /latest/meta-data/iam/security-credentials/decoy-role HTTP/1.1\r\n"
           b"Host: 169.254.169.254\r\nConnection: close\r\n\r\n")
# A close is a reset, so that the port is free at once.
LINGER = struct.pack("ii", 1, 0)


def bound(port):
    sock = socket.socket()
    sock.settimeout(3)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
    sock.bind(("10.99.0.2", port))
    return sock


def ask(sock):
    sock.connect(SERVICE)
    sock.sendall(REQUEST)
    answer = b""
    while block := sock.recv(65536):
        answer += block
    return answer


def attempt(port, first):
    with bound(port) as before:
        if first:
            try:
                before.connect(first)
            except OSError as error:
                print("first:", errno.errorcode.get(error.errno, error))
        else:
            before.close()
        with bound(port) as sock:
            return ask(sock).decode()


def main():
    low, _, high = sys.argv[1].partition("-")
    limit = time.monotonic() + float(sys.argv[2])
    first = (sys.argv[3], int(sys.argv[4])) if len(sys.argv) > 3 else None
    for port in range(int(low), int(high or low) + 1):
        if time.monotonic() > limit:
            break
        try:
            print("answer:", attempt(port, first))
        except OSError as error:
            print("error:", errno.errorcode.get(error.errno, error))


main()
