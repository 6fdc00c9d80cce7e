#!/usr/bin/env python3
"""How fast `imds-guard learn` reads, and in how much memory.

usage: run.py --binary target/release/imds-guard [--events 10000000] [--json FILE]

Events as a guard records them, of 200 units on 50 hosts over 20 days, go through a pipe into `learn`, which is held to one
processor. Nothing is written to a disk. Rate and memory are the kernel's figures for that process: events for each second of
its own processor time, and its largest resident set.
"""

import argparse
import datetime
import json
import os
import platform
import random
import subprocess
import sys
import time

# So many different events are made, and sent again and again with another day.
BLOCK = 20_000
DAYS = 20

PATHS = [
    ("/latest/api/token", "PUT", "session", "v2"),
    ("/latest/meta-data/iam/security-credentials", "GET", "credentials", "v2"),
    ("/latest/meta-data/iam/security-credentials/role-{unit}", "GET", "credentials", "v2"),
    ("/latest/meta-data/placement/availability-zone", "GET", "config", "v2"),
    ("/latest/meta-data/instance-id", "GET", "config", "v1"),
    ("/latest/dynamic/instance-identity/document", "GET", "identity", "v2"),
]


def event(number, chance):
    unit, host = chance.randrange(200), chance.randrange(50)
    path, method, kind, session = chance.choice(PATHS)
    path = path.format(unit=unit)
    moment = f"{chance.randrange(24):02}:{chance.randrange(60):02}:{chance.randrange(60):02}.{chance.randrange(10**6):06}"
    denied = kind in ("credentials", "identity")
    one = {
        "@timestamp": f"2026-11-01T{moment}Z",
        "ecs.version": "8.17.0",
        "event.dataset": "imds-guard.audit",
        "imds_guard.schema": 1,
        "event.id": f"{host:08x}-1-{number:x}",
        "event.action": "request",
        "event.outcome": "success",
        "event.severity": 4 if denied else 6,
        "event.duration": chance.randrange(10**6, 10**7),
        "imds_guard.mode": "audit",
        "imds_guard.verdict": "deny" if denied else "allow",
        "imds_guard.would_deny": denied,
        "imds_guard.result": "forwarded",
        "imds_guard.reason": "no-agent" if denied else "everyone-allows",
        "imds_guard.classes": [kind],
        "cloud.provider": "aws-ec2",
        "http.request.method": method,
        "url.path": path,
        "user_agent.original": "aws-sdk-go/1.44.0 (go1.20; linux; amd64)",
        "imds_guard.session": session,
        "http.response.status_code": 200,
        "http.request.body.bytes": 0,
        "http.response.body.bytes": 217,
        "source.ip": "10.0.12.7",
        "source.port": chance.randrange(1024, 65536),
        "destination.ip": "169.254.169.254",
        "destination.port": 80,
        "host.name": f"ip-10-0-12-{host}",
        "imds_guard.attribution": "stamped",
        "user.id": str(900 + unit),
        "imds_guard.cgroup": f"/system.slice/service-{unit}.service",
        "service.name": f"service-{unit}.service",
        "imds_guard.process.source": "fresh",
        "imds_guard.process.holders": 1,
        "process.pid": chance.randrange(2, 1 << 22),
        "process.parent.pid": 1,
        "process.name": f"service-{unit}",
        "process.executable": f"/usr/lib/service-{unit}/bin/service",
        "process.command_line": f"/usr/lib/service-{unit}/bin/service --config /etc/service-{unit}/config.yaml",
        "imds_guard.duration.attribution_us": chance.randrange(5, 500),
        "imds_guard.duration.decision_us": chance.randrange(5, 200),
        "imds_guard.duration.upstream_us": chance.randrange(200, 9000),
    }
    return json.dumps(one, separators=(",", ":"))


def generate(events):
    """Writes so many events to standard output."""
    chance = random.Random(1)
    lines = [event(number, chance) for number in range(BLOCK)]
    blocks = []
    for day in range(1, DAYS + 1):
        date = f"2026-11-{day:02}T"
        blocks.append(("\n".join(lines) + "\n").replace("2026-11-01T", date).encode())
    out = sys.stdout.buffer
    for number in range(events // BLOCK):
        out.write(blocks[number % DAYS])
    rest = events % BLOCK
    if rest:
        out.write(("\n".join(lines[:rest]) + "\n").encode())


def measure(binary, events):
    processors = sorted(os.sched_getaffinity(0))
    source = subprocess.Popen(
        [sys.executable, __file__, "--generate", str(events)],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, processors[1:] or processors),
    )
    start = time.monotonic()
    reader = subprocess.Popen(
        [binary, "learn", "-"],
        stdin=source.stdout,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, processors[:1]),
    )
    source.stdout.close()
    said = reader.stderr.read().decode()
    _, status, used = os.wait4(reader.pid, 0)
    elapsed = time.monotonic() - start
    source.wait()
    if status != 0:
        sys.exit(f"learn failed: {said}")
    return {
        "events": events,
        "seconds": round(elapsed, 1),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 1),
        "events_per_processor_second": round(events / (used.ru_utime + used.ru_stime)),
        "memory_mib": round(used.ru_maxrss / 1024, 1),
        "said": said.strip(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", default="target/release/imds-guard")
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--generate", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.generate is not None:
        try:
            generate(args.generate)
        except BrokenPipeError:
            os._exit(1)
        return
    result = measure(args.binary, args.events)
    kernel = platform.release()
    print(f"{datetime.date.today()}, Linux {kernel}, {os.cpu_count()} cores, learn on one of them\n")
    print("| events | seconds | of processor time | events/s of it | largest memory |")
    print("|---|---|---|---|---|")
    print(
        f"| {result['events']:,} | {result['seconds']} | {result['processor_seconds']} "
        f"| {result['events_per_processor_second']:,} | {result['memory_mib']} MiB |"
    )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)


main()
