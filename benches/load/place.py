"""Where a measurement happens: two network namespaces, cgroups that look like units, processes and what they cost.

Nothing here touches the machine's own network, and nothing stays behind.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ADDRESS = "169.254.169.254"
TAG = f"imdsgb{os.getpid()}"
VM, CLOUD = f"{TAG}-vm", f"{TAG}-cloud"
CLOUD_ADDRESS = "10.99.0.1"


def sh(*words, **options):
    return subprocess.run(words, check=True, text=True, capture_output=True, **options)


def within(namespace, *words):
    return ["nsenter", f"--net=/run/netns/{namespace}", *words]


def cgroup_mount():
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return Path(before.split()[4])
    sys.exit("bench: no cgroup2 file system is mounted")


@contextlib.contextmanager
def namespaces():
    for name in (VM, CLOUD):
        sh("ip", "netns", "add", name)
        sh("ip", "-n", name, "link", "set", "lo", "up")
    try:
        sh("ip", "-n", VM, "link", "add", "up0", "type", "veth", "peer", "name", "down0", "netns", CLOUD)
        for name, link, address in ((VM, "up0", "10.99.0.2/24"), (CLOUD, "down0", f"{CLOUD_ADDRESS}/24")):
            sh("ip", "-n", name, "addr", "add", address, "dev", link)
            sh("ip", "-n", name, "link", "set", link, "up")
        sh("ip", "-n", CLOUD, "addr", "add", f"{ADDRESS}/32", "dev", "lo")
        sh("ip", "-n", VM, "route", "add", ADDRESS, "via", CLOUD_ADDRESS)
        # One client, one server, one port: without these the ephemeral ports run out, whoever is measured.
        for name in (VM, CLOUD):
            for setting in ("ip_local_port_range=1024 65535", "tcp_max_tw_buckets=2000", "tcp_tw_reuse=1"):
                sh(*within(name, "sysctl", "-q", "-w", f"net.ipv4.{setting}"))
        yield
    finally:
        for name in (VM, CLOUD):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextlib.contextmanager
def units(names):
    """Cgroups that look like systemd units, by name."""
    slice_ = cgroup_mount() / "system.slice"
    made = [] if slice_.exists() else [slice_]
    try:
        for name in names:
            (slice_ / name).mkdir(parents=True)
            made.append(slice_ / name)
        yield {name: slice_ / name for name in names}
    finally:
        for directory in reversed(made):
            with contextlib.suppress(OSError):
                directory.rmdir()


@contextlib.contextmanager
def process(words, ready, log, **options):
    with open(log, "ab") as output:
        child = subprocess.Popen(words, stdout=output, stderr=output, stdin=subprocess.DEVNULL, **options)
    try:
        for _ in range(500):
            if child.poll() is not None:
                sys.exit(f"bench: {words} ended at once:\n{Path(log).read_text()[-2000:]}")
            if ready():
                break
            time.sleep(0.01)
        else:
            sys.exit(f"bench: {words} did not become ready")
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def listens(namespace, port):
    def ready():
        shown = subprocess.run(within(namespace, "ss", "-Hltn", f"sport = :{port}"), capture_output=True, text=True)
        return bool(shown.stdout.strip())

    return ready


def family(pid):
    """A process and its descendants."""
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        with contextlib.suppress(OSError):
            tasks = list(Path(f"/proc/{current}/task").iterdir())
            found.append(current)
            for task in tasks:
                waiting += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu_seconds(pid):
    """CPU time of a process and its descendants, in seconds, as precisely as the scheduler knows it."""
    nanoseconds = 0
    for member in family(pid):
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{member}/task").iterdir():
                nanoseconds += int((task / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def pss_bytes(pid):
    """Memory of a process and its descendants: what is shared counts for each of those who share it in part."""
    kibibytes = 0
    for member in family(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    kibibytes += int(line.split()[1])
    return kibibytes * 1024


def switches(pid):
    """How often each thread of a process and its descendants was given a processor, by process and thread."""
    counts = {}
    for member in family(pid):
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{member}/task").iterdir():
                status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
                name = status["Name"].strip()
                counts[member, int(task.name), name] = int(status["voluntary_ctxt_switches"])
    return counts


@contextlib.contextmanager
def workplace(keep):
    if keep:
        Path(keep).mkdir(parents=True, exist_ok=True)
        os.chmod(keep, 0o777)  # nginx writes there, too
        yield Path(keep)
    else:
        with tempfile.TemporaryDirectory(prefix="imds-bench-") as work:
            os.chmod(work, 0o777)
            yield Path(work)
