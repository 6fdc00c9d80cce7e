"""Many callers at once: a thousand parked long polls, and 64 units that ask in the same moment."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from place import ADDRESS, CLOUD, VM, pss_bytes, units, within
from section import Section
from ways import CONSTANT

HERE = Path(__file__).resolve().parent
POLLS = 1000
# The shipped policy lets one user have 512 connections.
POLLERS = 4
UNITS = 64
FIRST_UID = 64200


def orders(callers):
    return json.dumps({"to": [ADDRESS, 80], "path": CONSTANT, "callers": callers})


@contextlib.contextmanager
def asker(callers):
    words = within(VM, sys.executable, str(HERE / "asker.py"))
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        child.stdin.write(orders(callers))
        child.stdin.close()
        json.loads(child.stdout.readline())
        yield child
    finally:
        child.kill()
        child.wait()


@contextlib.contextmanager
def holder():
    words = within(CLOUD, sys.executable, str(HERE / "holder.py"), ADDRESS, "80")
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(word):
        child.stdin.write(word + "\n")
        child.stdin.flush()
        return int(child.stdout.readline())

    try:
        tell("how many")  # it answers once it listens
        yield tell
    finally:
        child.kill()
        child.wait()


def polls(bench):
    """Memory while a thousand requests wait for their answers."""
    figures = {}
    ways = [way for way in ("nginx", "haproxy", "guard") if way in bench.arguments.ways.split(",")]
    callers = [[FIRST_UID + number, None, POLLS // POLLERS] for number in range(POLLERS)]
    for way in ways:
        bench.say(f"{POLLS} parked long polls, {way}")
        with holder() as tell, bench.ways.by(way) as child:
            time.sleep(1)
            figures[way, "idle"] = pss_bytes(child.pid)
            with asker(callers) as asked:
                for _ in range(1000):
                    if tell("how many") >= POLLS:
                        break
                    time.sleep(0.02)
                figures[way, "parked"] = pss_bytes(child.pid)
                tell("go")
                figures[way, "good"] = json.loads(asked.stdout.readline())["good"]
            time.sleep(1)
            figures[way, "after"] = pss_bytes(child.pid)
    lines = [
        "Memory in MB (PSS of all its processes) when nobody asks, while the polls wait, and a second after their answers.",
        "",
        f"| way | idle | {POLLS} parked | after | answered |",
        "|---|---|---|---|---|",
    ]
    for way in ways:
        idle, parked, after = (figures[way, key] / 1e6 for key in ("idle", "parked", "after"))
        lines.append(f"| {way} | {idle:.1f} | {parked:.1f} | {after:.1f} | {figures[way, 'good']} |")
    return Section("polls", lines, figures)


def herd(bench):
    """64 units, each with a user and a connection of its own, ask for one constant at once."""
    ways = bench.arguments.ways.split(",")
    samples = {way: [] for way in ways if way != "guard+exe"}
    with units([f"imds-bench-{os.getpid()}-{number}.service" for number in range(UNITS)]) as cgroups:
        callers = [[FIRST_UID + number, str(path), 1] for number, path in enumerate(cgroups.values())]
        for number in range(bench.arguments.rounds):
            for way in samples:
                bench.say(f"round {number + 1}/{bench.arguments.rounds} {UNITS} units at once, {way}")
                with bench.ways.by(way):
                    before = bench.ways.reached()
                    with asker(callers) as asked:
                        answered = json.loads(asked.stdout.readline())
                    asked_upstream = bench.ways.reached() - before - 1  # the question itself counts
                    samples[way].append((answered["took"], answered["good"], asked_upstream))
    figures = {}
    lines = [
        f"Medians of {bench.arguments.rounds} interleaved rounds, each with programs and callers that have just started; "
        "milliseconds from the first question.",
        "",
        "| way | half are answered | all are answered | good answers | requests upstream |",
        "|---|---|---|---|---|",
    ]
    for way, rounds in samples.items():
        half = statistics.median(statistics.median(took) for took, _, _ in rounds) * 1e3
        last = statistics.median(max(took) for took, _, _ in rounds) * 1e3
        good, upstream = (max(rounds, key=lambda one: one[at])[at] for at in (1, 2))
        good = min(one[1] for one in rounds)
        figures.update({(way, "half"): half, (way, "last"): last, (way, "good"): good, (way, "upstream"): upstream})
        lines.append(f"| {way} | {half:.1f} | {last:.1f} | {good} | {upstream} |")
    return Section("herd", lines, figures)
