"""Requests: latency, throughput and CPU time, each way side by side."""

import re
import statistics

from place import ADDRESS, VM, cpu_seconds, sh, within
from section import Section
from ways import AGENT_UID, CONSTANT, CREDENTIALS

CASES = [("1 kept", 1, True), ("1 per request", 1, False), ("32 kept", 32, True), ("32 per request", 32, False)]
UNITS = {"us": 1, "ms": 1e3, "s": 1e6}


def measure(bench):
    """Interleaved: each round goes through all ways, because no machine is ever quiet."""
    results = {}
    arguments = bench.arguments
    ways = arguments.ways.split(",")
    cases = [case for case in CASES if case[0] in arguments.cases.split(",")]
    for number in range(arguments.rounds):
        for way in ways:
            with bench.ways.by(way) as child:
                for case, connections, kept in cases:
                    bench.say(f"round {number + 1}/{arguments.rounds} {way:12} {case:15}")
                    before = cpu_seconds(child.pid) if child else 0
                    path = CONSTANT if way == "guard+memory" else CREDENTIALS
                    sample = wrk(bench, connections, kept, path)
                    spent = (cpu_seconds(child.pid) - before) if child else 0
                    sample["cpu"] = spent / max(1, sample["rate"] * arguments.seconds) * 1e6
                    results.setdefault((case, way), []).append(sample)
    return Section("requests", table(results, ways, cases, arguments), medians(results))


def wrk(bench, connections, kept, path):
    header = [] if kept else ["-H", "Connection: close"]
    load = ["wrk", "-t1", f"-c{connections}", f"-d{bench.arguments.seconds}s", "--latency", *header, f"http://{ADDRESS}{path}"]
    return parse(sh(*bench.as_agent(*load)).stdout)


def parse(output):
    def latency(percentile):
        found = re.search(rf"{percentile}%\s+([\d.]+)(us|ms|s)", output)
        return float(found[1]) * UNITS[found[2]]

    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    sockets = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    failed = int(errors[1]) if errors else 0
    # wrk counts a server's close after `Connection: close` as a read error; the other kinds are real.
    failed += sum(int(sockets[n]) for n in (1, 3, 4)) if sockets else 0
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])
    return {"p50": latency(50), "p99": latency(99), "rate": rate, "failed": failed}


def medians(results):
    figures = {}
    for (case, way), samples in results.items():
        for key in ("p50", "p99", "rate", "cpu"):
            figures[case, way, key] = statistics.median(sample[key] for sample in samples)
        figures[case, way, "failed"] = sum(sample["failed"] for sample in samples)
    return figures


def table(results, ways, cases, arguments):
    figures = medians(results)
    lines = [
        f"Medians of {arguments.rounds} interleaved rounds of {arguments.seconds} s; times in microseconds, and as a "
        "ratio to the first way.",
        "",
        f"| case | way | p50 | × {ways[0]} | p99 | requests/s | CPU µs/request | failed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case, _, _ in cases:
        for way in ways:
            p50, p99, rate, cpu, failed = (figures[case, way, key] for key in ("p50", "p99", "rate", "cpu", "failed"))
            ratio = p50 / figures[case, ways[0], "p50"]
            lines.append(f"| {case} | {way} | {p50:.0f} | {ratio:.2f} | {p99:.0f} | {rate:.0f} | {cpu:.1f} | {failed} |")
    return lines
