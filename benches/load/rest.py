"""A guard at rest: how often it wakes, how fast it starts, how large it is."""

import os
import statistics
import subprocess
import time
from pathlib import Path

from place import ADDRESS, VM, cpu_seconds, sh, switches, within
from section import Section
from ways import CREDENTIALS, Manager

# What the shipped unit says.
WATCHDOG_SECONDS = 10


def idle(bench):
    """Wake-ups while nobody asks: voluntary context switches of all threads of both processes."""
    seconds = bench.arguments.idle_seconds
    watchdog = {"WATCHDOG_USEC": str(WATCHDOG_SECONDS * 1_000_000)}
    cases = [
        ("no watchdog", {}, {}),
        ("no watchdog, after load", {}, {}),
        ("rotated by size", {}, {"guard": ['audit-log-max = "10 MiB"']}),
        ("TLS to the service", {}, {"cloud": "gcp", "guard": ['upstream-tls = "prefer"']}),
        (f"watchdog of {WATCHDOG_SECONDS} s", watchdog, {}),
    ]
    figures = {}
    lines = [
        f"In {seconds} s, of both processes, two seconds after the start or twelve after load. The watchdog's beat comes "
        "four times within its limit.",
        "",
        "| guard | wake-ups | of the keeper | of the proxy | beats | CPU ms |",
        "|---|---|---|---|---|---|",
    ]
    for name, environment, policy in cases:
        bench.say(f"idle: {name}")
        with bench.ways.guard(environment=environment, **policy) as child:
            if "load" in name:
                sh(*bench.as_agent("wrk", "-t1", "-c8", "-d1s", f"http://{ADDRESS}{CREDENTIALS}"))
                time.sleep(12)
            else:
                time.sleep(2)
            spent, before = cpu_seconds(child.pid), switches(child.pid)
            time.sleep(seconds)
            after, spent = switches(child.pid), cpu_seconds(child.pid) - spent
        woken = {who: after[who] - before.get(who, 0) for who in after}
        keeper = sum(count for (pid, _, _), count in woken.items() if pid == child.pid)
        beats = seconds * 4 // WATCHDOG_SECONDS if environment else 0
        figures[name] = sum(woken.values())
        lines.append(
            f"| {name} | {sum(woken.values())} | {keeper} | {sum(woken.values()) - keeper} | {beats} | {spent * 1e3:.1f} |"
        )
    return Section("idle", lines, figures)


def start(bench):
    """From the start of the program to READY, with the shipped policy."""
    figures = {}
    lines = [
        f"Medians of {bench.arguments.starts} starts; milliseconds from the start of the program to its READY.",
        "",
        "| mode | median | slowest |",
        "|---|---|---|",
    ]
    for mode in ("audit", "enforce"):
        took = [once(bench, mode) for _ in range(bench.arguments.starts)]
        figures[mode] = statistics.median(took) * 1e3
        lines.append(f"| {mode} | {figures[mode]:.1f} | {max(took) * 1e3:.1f} |")
    return Section("start", lines, figures)


def once(bench, mode):
    bench.say(f"start in {mode} mode")
    config = bench.ways.write("policy.toml", bench.ways.policy(mode=mode, cloud="auto"))
    os.chmod(config, 0o644)
    with Manager(bench.ways.work) as manager, open(bench.work / "guard.log", "ab") as log:
        words = within(VM, str(bench.ways.binary), "run", "--config", config)
        environment = {**os.environ, "NOTIFY_SOCKET": manager.path}
        started = time.perf_counter()
        child = subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            manager.wait(10)
            return time.perf_counter() - started
        finally:
            child.terminate()
            child.wait()
            subprocess.run(within(VM, "nft", "delete", "table", "inet", "imds_guard"), capture_output=True, check=False)


def size(bench):
    megabytes = bench.ways.binary.stat().st_size / 1e6
    lines = [f"The stripped program has {megabytes:.2f} MB."]
    return Section("size", lines, {"megabytes": megabytes})
