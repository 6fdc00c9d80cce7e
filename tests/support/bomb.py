"""A process that is slow to search: many descriptors, many threads, and one socket that no table of them shows.

usage: bomb.py DESCRIPTORS THREADS

Tells "ready", and then asks the metadata service for credentials again and again, each time on another connection.
"""

import os
import resource
import socket
import sys
import threading
import time

SERVICE = ("169.254.169.254", 80)
REQUEST = (b"GET /latest/meta-data/iam/security-credentials/decoy-role HTTP/1.1\r\n"
           b"Host: 169.254.169.254\r\n\r\n")


def main():
    descriptors, threads = int(sys.argv[1]), int(sys.argv[2])
    limit = descriptors + 100
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    null = os.open("/dev/null", os.O_RDONLY)
    for _ in range(descriptors):
        os.dup(null)
    threading.stack_size(65536)
    for _ in range(threads):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    print("ready", flush=True)
    while True:
        sock = socket.create_connection(SERVICE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        sock.sendall(REQUEST)
        keep, away = socket.socketpair(socket.AF_UNIX)
        socket.send_fds(away, [b"x"], [sock.fileno()])
        sock.close()
        time.sleep(0.3)
        away.close()
        keep.close()


main()
