"""Many raw requests of one caller, each on a connection of its own, some at once.

Reads lines `ADDRESS PORT LOW HEX`: where to, whether the source port is to be below 1024, and the bytes to send. Sends
them, closes its half, reads to the end, and writes one line of hex for each, in the same order: all that came back.
"""

import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Lock

PATIENCE = 10.0
low_ports = count(1023, -1)
low_lock = Lock()


def bind_low(connection, address):
    # Every connection has a port of its own: one that was just used may not be used again.
    for _ in range(200):
        with low_lock:
            port = next(low_ports)
        try:
            connection.bind(("::" if ":" in address else "0.0.0.0", port))
            return
        except OSError:
            continue


def ask(line):
    address, port, low, content = line.split()
    received = b""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENCE)
        try:
            if low == "1":
                bind_low(connection, address)
            connection.connect((address, int(port)))
            connection.sendall(bytes.fromhex(content))
            connection.shutdown(socket.SHUT_WR)
            while block := connection.recv(65536):
                received += block
        except OSError:
            # A reset is an answer, too: whatever came before it counts.
            pass
    return received.hex()


with ThreadPoolExecutor(24) as pool:
    for answer in pool.map(ask, sys.stdin.read().splitlines()):
        print(answer)
