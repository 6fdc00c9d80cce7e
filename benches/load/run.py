#!/usr/bin/env python3
"""Measures the guard side by side with nginx and HAProxy, and alone. Called by `make bench`.

In two network namespaces of its own, "vm" and "cloud", joined by a veth pair. In the cloud nginx answers a fixed
credential; in the vm callers ask, directly or through a proxy behind the same nftables redirect. Rounds are interleaved
and medians reported, because no machine is ever quiet.

Prints Markdown. With --docs it also puts each table into that page, between the marks that bear its name.
"""

import argparse
import datetime
import json
import os
import platform
import re
import sys
from pathlib import Path

import body
import crowd
import events
import goals
import load
import place
import rest
from section import Section
from ways import AGENT_UID, UNIT, Ways

MEASURES = {
    "requests": load.measure,
    "polls": crowd.polls,
    "body": body.measure,
    "herd": crowd.herd,
    "idle": rest.idle,
    "start": rest.start,
    "size": rest.size,
    "events": events.measure,
}


class Bench:
    def __init__(self, arguments, work, cgroup):
        self.arguments, self.work, self.cgroup = arguments, work, cgroup
        self.ways = Ways(arguments.binary, work)

    def say(self, what):
        print(f"\r\033[K{what}" if sys.stderr.isatty() else what, end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)

    def as_agent(self, *words):
        """A command line that runs as the listed agent, in its unit."""
        enter = f"echo $$ > {self.cgroup}/cgroup.procs && exec setpriv --reuid={AGENT_UID} --clear-groups \"$@\""
        return place.within(place.VM, "sh", "-c", enter, "sh", *words)


def options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default="target/release/imds-guard")
    parser.add_argument("--events", default="target/release/examples/audit_events", help="the program that floods the log")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it works; no figures to keep")
    parser.add_argument("--only", help="of " + ",".join(MEASURES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each load")
    parser.add_argument("--idle-seconds", type=int, default=20)
    parser.add_argument("--event-seconds", type=int, default=3)
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--ways", default="direct,nginx,haproxy,guard,guard+exe,guard+memory")
    parser.add_argument("--cases", default=",".join(case for case, _, _ in load.CASES))
    parser.add_argument("--docs", help="put the tables into this page")
    parser.add_argument("--json", help="also write all figures to this file")
    parser.add_argument("--keep", help="keep configurations and logs in this directory")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds, arguments.starts = 1, 1, 3
        arguments.idle_seconds, arguments.event_seconds = 5, 1
        arguments.docs = None
    return arguments


def machine():
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    versions = [
        re.search(r"nginx/[\d.]+", run("nginx", "-v")),
        re.search(r"HAProxy version [\d.]+", run("haproxy", "-v")),
        re.search(r"wrk \S+", run("wrk", "-v")),
    ]
    named = ", ".join(version[0] for version in versions if version)
    busy = os.getloadavg()[0]
    text = f"{datetime.date.today()}, Linux {platform.release()}, {os.cpu_count()} × {model}; {named}; load when it began {busy:.1f}"
    return Section("machine", [text], {})


def run(*words):
    done = place.subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def put(page, section):
    """Replaces what stands between a section's marks."""
    text = page.read_text()
    marks = re.compile(rf"(<!-- make bench: {section.name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marks.search(text):
        sys.exit(f"bench: {page} has no place for {section.name}")
    page.write_text(marks.sub(lambda found: f"{found[1]}\n{section.text}\n\n{found[2]}", text))


def main():
    arguments = options()
    if os.geteuid() != 0:
        sys.exit("bench: must run as root (it makes network namespaces)")
    wanted = arguments.only.split(",") if arguments.only else list(MEASURES)
    sections = [machine()]
    print(sections[0].text, flush=True)
    with place.workplace(arguments.keep) as work, place.namespaces(), place.units([UNIT]) as cgroups:
        bench = Bench(arguments, work, cgroups[UNIT])
        for name in wanted:
            cloud = bench.ways.cloud() if name in ("requests", "body", "herd", "idle") else place.contextlib.nullcontext()
            with cloud:
                sections.append(MEASURES[name](bench))
            bench.say("")
            print(f"\n{sections[-1].text}", flush=True)
    sections.append(goals.section({section.name: section.figures for section in sections}))
    print(f"\n{sections[-1].text}")
    if arguments.docs:
        for section in sections:
            put(Path(arguments.docs), section)
    if arguments.json:
        figures = {section.name: {str(key): value for key, value in section.figures.items()} for section in sections}
        Path(arguments.json).write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
