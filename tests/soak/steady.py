"""Half of full load with callers that come and go: memory, descriptors and threads stay what they were."""

import subprocess
import time

from bed import (AGENT_UNIT, CONSTANT, CREDENTIALS, STRANGER_UID, STRANGER_UNIT, VM, descriptors, memory, python, say, sh,
                 threads, within, wrk, HERE, Failed)
import re

HEAD = ["seconds", "requests", "a second", "callers", "failed", "memory at first, KiB", "at the end", "grows by, KiB/h",
        "noise of that", "descriptors at first", "at the end", "threads at first", "at the end", "passes"]
TITLE = "Soak"


def run(bed, seconds):
    with bed.guard(bed.policy()) as guard:
        full = rate(load(bed, 3, 32))
        say(f"steady: full load is {full:.0f} requests a second")
        samples, failed, requests, callers = [], 0, 0, 0
        begun = time.monotonic()
        # At first buffers, caches, pools and the allocator's spare memory take on their size.
        warm = max(60.0, seconds / 4)
        while (now := time.monotonic() - begun) < warm + seconds:
            # A new process each time, as another user in the same unit or in another; busy for a second, idle for one.
            uid = 64200 + callers % 20
            listed = callers % 2 == 0
            told = load(bed, 1, 32, AGENT_UNIT if listed else STRANGER_UNIT, 0 if listed else uid)
            callers += 1
            requests += int(re.search(r"(\d+) requests in", told)[1])
            failed += failures(told)
            time.sleep(1)
            if now > warm:
                samples.append((now, memory(guard.pids()), descriptors(guard.pids()), threads(guard.pids())))
            if callers % 30 == 0:
                say(f"steady: {now:.0f} of {warm + seconds:.0f} s, {memory(guard.pids())} KiB")
        took = time.monotonic() - begun
    if len(samples) < 8:
        raise Failed("too short to see a slope")
    return [row(took, requests, callers, failed, samples)]


def load(bed, seconds, connections, unit=AGENT_UNIT, uid=0):
    path = CREDENTIALS if uid == 0 else CONSTANT
    child = bed.caller(unit, uid, wrk(), "-t1", f"-c{connections}", f"-d{seconds}s", f"http://169.254.169.254{path}")
    return child.communicate(timeout=seconds + 30)[0]


def rate(told):
    return float(re.search(r"Requests/sec:\s+([\d.]+)", told)[1])


def failures(told):
    answers = re.search(r"Non-2xx or 3xx responses: (\d+)", told)
    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", told)
    return (int(answers[1]) if answers else 0) + (sum(map(int, sockets.groups())) if sockets else 0)


def slope(points):
    """Least squares: what a second adds, and the standard error of that."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / n, sum(y for _, y in points) / n
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    by = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - by * (x - mean_x)) ** 2 for x, y in points)
    return by, (rest / max(1, n - 2) / spread) ** 0.5


def row(took, requests, callers, failed, samples):
    by, noise = slope([(when, kib) for when, kib, *_ in samples])
    ends = [[sum(sample[at] for sample in part) / len(part) for part in (samples[: len(samples) // 4], samples[-(len(samples) // 4):])]
            for at in (1, 2, 3)]
    # A slope within its noise, or a twentieth of the memory in all: the allocator's spare memory finds its size slowly.
    grows = (ends[0][1] - ends[0][0]) / ends[0][0]
    passes = failed == 0 and (by < 3 * noise or grows < 0.05) and ends[1][1] <= ends[1][0] * 1.1 + 8 and ends[2][1] <= ends[2][0]
    cells = [round(took), requests, round(requests / took), callers, failed, round(ends[0][0]), round(ends[0][1]), f"{by * 3600:.0f}",
             f"± {noise * 3600:.0f}", f"{ends[1][0]:.1f}", f"{ends[1][1]:.1f}", f"{ends[2][0]:.1f}", f"{ends[2][1]:.1f}", passes]
    return {"passes": passes, "cells": cells}
