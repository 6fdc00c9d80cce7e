"""A body of 100 MB: how fast it comes through, and what that costs."""

import statistics

from place import ADDRESS, cpu_seconds, sh
from section import Section
from ways import LARGE, LARGE_BYTES


def measure(bench):
    ways = [way for way in bench.arguments.ways.split(",") if way in ("direct", "nginx", "haproxy", "guard")]
    samples = {way: [] for way in ways}
    for number in range(bench.arguments.rounds):
        for way in ways:
            bench.say(f"round {number + 1}/{bench.arguments.rounds} a body of 100 MB, {way}")
            with bench.ways.by(way) as child:
                before = cpu_seconds(child.pid) if child else 0
                words = ["curl", "-sS", "-o", "/dev/null", "-w", "%{time_total} %{size_download} %{http_code}"]
                seconds, size, status = sh(*bench.as_agent(*words, f"http://{ADDRESS}{LARGE}")).stdout.split()
                spent = (cpu_seconds(child.pid) - before) if child else 0
                if (int(size), status) != (LARGE_BYTES, "200"):
                    raise SystemExit(f"bench: {way} gave {size} bytes with status {status}")
                samples[way].append((LARGE_BYTES / 1e6 / float(seconds), spent))
    figures = {}
    lines = [
        f"Medians of {bench.arguments.rounds} interleaved rounds; the last column is the proxy's processor time for one body.",
        "",
        f"| way | MB/s | × {ways[0]} | CPU ms |",
        "|---|---|---|---|",
    ]
    for way in ways:
        rate, spent = (statistics.median(sample[at] for sample in samples[way]) for at in (0, 1))
        figures[way, "rate"], figures[way, "cpu"] = rate, spent
        lines.append(f"| {way} | {rate:.0f} | {rate / figures[ways[0], 'rate']:.2f} | {spent * 1e3:.0f} |")
    return Section("body", lines, figures)
