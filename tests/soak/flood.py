"""Floods the metadata service in one of several ways until it is told to stop, and tells what became of that.

Run inside the vm as the user that it plays. It is as quick as one process can be, and no quicker.
"""

import json
import os
import resource
import select
import signal
import socket
import sys
import time

ADDRESS = ("169.254.169.254", 80)
PATH = "/latest/meta-data/instance-id"
REQUEST = f"GET {PATH} HTTP/1.1\r\nHost: {ADDRESS[0]}\r\n\r\n".encode()
HUGE = f"GET {PATH} HTTP/1.1\r\nHost: {ADDRESS[0]}\r\nX-Huge: ".encode() + b"a" * 60_000 + b"\r\n\r\n"

# How many connections it tries to have at a time, what it says first, what it repeats, and whether it reads answers.
KINDS = {
    "new connections": dict(width=1024, first=b"", then=b"", reads=True, stays=False),
    "slow heads": dict(width=4000, first=b"GET / HTTP/1.1\r\nX", then=b"a", reads=True, stays=True),
    "slow reads": dict(width=600, first=REQUEST * 64, then=REQUEST * 64, reads=False, stays=True),
    "10,000 idle connections": dict(width=10_000, first=b"", then=b"", reads=True, stays=True),
    "huge heads": dict(width=600, first=HUGE, then=HUGE, reads=True, stays=True, eager=True),
    "pipelining": dict(width=600, first=REQUEST * 32, then=REQUEST * 32, reads=True, stays=True, eager=True),
}


class Flood:
    def __init__(self, width, first, then, reads, stays, eager=False):
        self.width, self.first, self.then, self.reads, self.stays, self.eager = width, first, then, reads, stays, eager
        self.poll = select.epoll()
        self.open = {}
        self.unsent = {}
        self.count = dict(connections=0, closed=0, requests=0, answered=0, statuses={})
        self.stop = False

    def connect(self):
        connection = socket.socket()
        connection.setblocking(False)
        if not self.reads:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
        try:
            connection.connect(ADDRESS)
        except BlockingIOError:
            pass
        except OSError:
            connection.close()
            self.count["closed"] += 1
            return False
        self.count["connections"] += 1
        self.open[connection.fileno()] = connection
        self.unsent[connection.fileno()] = self.first
        self.poll.register(connection, select.EPOLLIN | select.EPOLLOUT if self.reads else select.EPOLLOUT)
        return True

    def close(self, number, by_peer):
        self.count["closed"] += by_peer
        self.open.pop(number).close()
        self.unsent.pop(number, None)

    def handle(self, number, events):
        connection = self.open.get(number)
        if connection is None:
            return
        try:
            if events & (select.EPOLLERR | select.EPOLLHUP) and not events & select.EPOLLIN:
                return self.close(number, True)
            if events & select.EPOLLIN and not self.receive(connection):
                return self.close(number, True)
            if events & select.EPOLLOUT:
                self.send(number, connection)
        except BlockingIOError:
            pass
        except OSError:
            self.close(number, True)

    def receive(self, connection):
        data = connection.recv(65536)
        for part in data.split(b"HTTP/1.1 ")[1:]:
            status = part[:3].decode("latin-1")
            self.count["statuses"][status] = self.count["statuses"].get(status, 0) + 1
            self.count["answered"] += 1
        return bool(data)

    def send(self, number, connection):
        if not self.stays:
            # A connection, a reset, and on to the next.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            return self.close(number, False)
        left = self.unsent[number]
        if left:
            sent = connection.send(left)
            self.count["requests"] += left[:sent].count(b"\r\n\r\n")
            self.unsent[number] = left[sent:]
        if not self.unsent[number]:
            if self.eager or not self.reads:
                self.unsent[number] = self.then
            else:
                self.poll.modify(connection, select.EPOLLIN)

    def once_a_second(self):
        if self.then and not self.eager:
            for number, connection in list(self.open.items()):
                try:
                    connection.send(self.then)
                except BlockingIOError:
                    pass
                except OSError:
                    self.close(number, True)

    def run(self):
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stop", True))
        tick = time.monotonic() + 1
        while not self.stop:
            for _ in range(min(64, self.width - len(self.open))):
                if not self.connect():
                    break
            try:
                ready = self.poll.poll(0.02, 256)
            except InterruptedError:
                continue
            for number, events in ready:
                self.handle(number, events)
            if time.monotonic() >= tick:
                self.once_a_second()
                tick = time.monotonic() + 1
        print(json.dumps(self.count))


def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # What the flooder takes of the processor is the scheduler's affair; what it takes of the guard is measured.
    os.nice(19)
    Flood(**KINDS[sys.argv[1]]).run()


if __name__ == "__main__":
    main()
