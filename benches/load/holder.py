#!/usr/bin/env python3
"""A metadata service that answers nobody until it is told to: what long polls look like. Runs in the cloud's namespace.

usage: holder.py ADDRESS PORT. Prints how many requests it holds whenever a line comes in; `go` lets them all go.
"""

import asyncio
import resource
import sys

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


class Holder:
    def __init__(self):
        self.held = 0
        self.go = asyncio.Event()

    async def serve(self, reader, writer):
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                self.held += 1
                await self.go.wait()
                writer.write(ANSWER)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


async def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    holder = Holder()
    await asyncio.start_server(holder.serve, sys.argv[1], int(sys.argv[2]), backlog=4096)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line.strip() == "go":
            holder.go.set()
        print(holder.held, flush=True)


asyncio.run(main())
