"""A socket with its ends on stdin and stdout, so that a test can speak raw bytes as some caller.

usage: relay.py ADDRESS PORT OPTION...

The steps are told on stderr, one word a line: "socket" once it is created, "connected", and at the end "closed",
"reset", or "failed NAME" with the errno's name. Options: "mapped" connects an IPv6 socket to the v4-mapped address,
"mptcp" and "fastopen" choose the kind of TCP, "held" waits for one byte on stdin between creating the socket and
connecting it, "from=PORT" binds it to that port.
"""

import errno
import os
import select
import socket
import sys

TCP_FASTOPEN_CONNECT = 30


def tell(step):
    os.write(2, (step + "\n").encode())


def create(address, options):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    protocol = 262 if "mptcp" in options else 0
    sock = socket.socket(family, socket.SOCK_STREAM, protocol)
    for option in options:
        if option.startswith("from="):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("10.99.0.2", int(option[5:])))
    if "fastopen" in options:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    return sock


def pump(sock):
    sources = [0, sock]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if 0 in ready:
            data = os.read(0, 65536)
            if data:
                sock.sendall(data)
            else:
                sources.remove(0)
                sock.shutdown(socket.SHUT_WR)
        if sock in ready:
            data = sock.recv(65536)
            if not data:
                return
            while data:
                data = data[os.write(1, data):]


def main():
    address, port, options = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    if "mapped" in options:
        address = "::ffff:" + address
    try:
        sock = create(address, options)
        tell("socket")
        if "held" in options:
            os.read(0, 1)
        sock.connect((address, port))
        tell("connected")
        pump(sock)
        tell("closed")
    except (ConnectionResetError, BrokenPipeError):
        tell("reset")
    except OSError as error:
        tell("failed " + errno.errorcode.get(error.errno, str(error)))


main()
