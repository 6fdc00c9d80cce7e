"""What every scenario stands on: a vm and a cloud in network namespaces of their own, callers in units, the guard.

Nothing touches the machine's own network, and everything that was made is removed again.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ADDRESS = "169.254.169.254"
CREDENTIALS = "/latest/meta-data/iam/security-credentials/role"
CONSTANT = "/latest/meta-data/instance-id"
CREDENTIAL = '{"Code":"Success","AccessKeyId":"ASIAEXAMPLE","SecretAccessKey":"soak-secret","Token":"t"}'
NAME = "i-0soak"
TAG = f"imdss{os.getpid()}"
VM, CLOUD = f"{TAG}-vm", f"{TAG}-cloud"
GUARD_UID, FLOOD_UID, STRANGER_UID = 64101, 64103, 64104
AGENT_UNIT, FLOOD_UNIT, STRANGER_UNIT = (f"{TAG}-{name}.service" for name in ("agent", "flood", "stranger"))


def say(text):
    """Progress, for whoever watches; what is measured goes to standard output."""
    print(f"soak: {text}", file=sys.stderr, flush=True)


def sh(*words, **options):
    return subprocess.run(words, check=True, text=True, capture_output=True, **options).stdout


def within(namespace, *words):
    return ["nsenter", f"--net=/run/netns/{namespace}", *words]


def cgroup_mount():
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return Path(before.split()[4])
    sys.exit("soak: no cgroup2 file system is mounted")


def python():
    """An interpreter that starts no other program on its way."""
    return os.path.realpath(sys.executable)


def wait_until(what, condition, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise Failed(f"not within {seconds} s: {what}")


class Failed(Exception):
    """A scenario could not be carried out, or showed what must not be."""


NGINX = """
daemon off; pid {work}/cloud.pid; error_log {work}/cloud.err; worker_processes 1; user root;
events {{ worker_connections 16384; }}
http {{ log_format soak '$uri $http_x_caller'; access_log {log}; keepalive_requests 100000000; keepalive_timeout 300s;
  server {{ listen {address}:80 backlog=16384;
    location = {constant} {{ return 200 '{name}'; }}
    location = /latest/meta-data/instance-type {{ return 200 't3.soak'; }}
    location / {{ default_type application/json; return 200 '{credential}'; }} }} }}
"""

# Sees what leaves the vm for the metadata service, after every rule of the guard's.
WITNESS = f"""
table inet soak_witness {{
    counter strangers {{ }}
    chain leaving {{
        type filter hook postrouting priority 300; policy accept;
        oifname "up0" ip daddr {ADDRESS} tcp dport 80 meta skuid != {GUARD_UID} counter name strangers
    }}
}}
"""

POLICY = """
mode = "{mode}"
cloud = "aws"

[guard]
user = "{uid}"
audit-log = "{log}"
{guard}
[everyone]
allow = ["config", "session"]

[[agent]]
name = "soak agent"
unit = "{unit}"
user = "root"
allow = ["config", "session", "credentials", "identity"]
{more}
"""


class Bed:
    """Two namespaces, three units, a cloud. Use as a context."""

    def __init__(self, binary, work):
        self.binary, self.work = Path(binary).resolve(), Path(work)
        self.stack = contextlib.ExitStack()
        self.random = random.Random(20)
        self.number = 0

    def __enter__(self):
        (self.work / "guard.out").write_text("")
        with contextlib.ExitStack() as stack:
            self.talk = stack.enter_context(open(self.work / "callers.err", "ab"))
            stack.enter_context(self._namespaces())
            stack.enter_context(self._units())
            stack.enter_context(self._cloud())
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self.stack.close()

    @contextlib.contextmanager
    def _namespaces(self):
        for name in (VM, CLOUD):
            sh("ip", "netns", "add", name)
            sh("ip", "-n", name, "link", "set", "lo", "up")
        try:
            sh("ip", "-n", VM, "link", "add", "up0", "type", "veth", "peer", "name", "down0", "netns", CLOUD)
            for name, link, address in ((VM, "up0", "10.99.0.2/24"), (CLOUD, "down0", "10.99.0.1/24")):
                sh("ip", "-n", name, "addr", "add", address, "dev", link)
                sh("ip", "-n", name, "link", "set", link, "up")
            sh("ip", "-n", CLOUD, "addr", "add", f"{ADDRESS}/32", "dev", "lo")
            sh("ip", "-n", VM, "route", "add", ADDRESS, "via", "10.99.0.1")
            # One client, one server, one port: without these the ephemeral ports run out.
            for name in (VM, CLOUD):
                for setting in ("ip_local_port_range=1024 65535", "tcp_max_tw_buckets=2000", "tcp_tw_reuse=1"):
                    sh(*within(name, "sysctl", "-q", "-w", f"net.ipv4.{setting}"))
            yield
        finally:
            for name in (VM, CLOUD):
                subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    @contextlib.contextmanager
    def _units(self):
        slice_ = cgroup_mount() / "system.slice"
        made_slice = not slice_.exists()
        self.units = {}
        for unit in (AGENT_UNIT, FLOOD_UNIT, STRANGER_UNIT):
            self.units[unit] = slice_ / unit
            self.units[unit].mkdir(parents=True)
        try:
            yield
        finally:
            for directory in [*self.units.values()] + ([slice_] if made_slice else []):
                with contextlib.suppress(OSError):
                    directory.rmdir()

    @contextlib.contextmanager
    def _cloud(self):
        self.cloud_log = self.work / "cloud.log"
        text = NGINX.format(work=self.work, log=f"{self.cloud_log} soak", address=ADDRESS, constant=CONSTANT,
                            name=NAME, credential=CREDENTIAL)
        (self.work / "cloud.conf").write_text(text)
        with process(within(CLOUD, "nginx", "-c", str(self.work / "cloud.conf")), self.work / "cloud.out"):
            wait_until("the cloud listens", lambda: sh(*within(CLOUD, "ss", "-Hltn", "sport = :80")).strip())
            yield

    def policy(self, mode="enforce", guard="", more="", log=None):
        log = log or self.work / "audit.jsonl"
        return POLICY.format(mode=mode, uid=GUARD_UID, log=log, unit=AGENT_UNIT, guard=guard, more=more)

    def write_policy(self, text):
        """The guard takes a policy of root's alone, and sees an old one or a new one, never half of one."""
        path, new = self.work / "policy.toml", self.work / "policy.new"
        new.write_text(text)
        new.chmod(0o644)
        new.rename(path)
        return path

    def guard(self, text, prefix=(), keep_log=False):
        self.number += 1
        self.write_policy(text)
        if not keep_log:
            (self.work / "audit.jsonl").write_text("")
        return Guard(self, prefix)

    def events(self, log=None):
        """What the audit log tells, whole lines only."""
        with open(log or self.work / "audit.jsonl", encoding="utf-8") as lines:
            for line in lines:
                if line.endswith("\n"):
                    yield json.loads(line)

    def caller(self, unit, uid, *words, **options):
        """Starts a program as this user in this unit, inside the vm."""
        enter = f'echo $$ > {self.units[unit]}/cgroup.procs && exec setpriv --reuid={uid} --clear-groups --pdeathsig KILL "$@"'
        child = subprocess.Popen(within(VM, "setpriv", "--pdeathsig", "KILL", "sh", "-c", enter, "sh", *words), text=True,
                                 stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, stderr=self.talk, **options)
        self.stack.callback(put_down, child)
        return child

    def asker(self, unit, uid, *options):
        return Asker(self.caller(unit, uid, python(), "-S", "-E", str(HERE / "ask.py"), *options))

    def nft(self, text):
        sh(*within(VM, "nft", "-f", "-"), input=text)

    def flush_connection_tracking(self):
        # What a redirect left in connection tracking would lead to its closed port.
        subprocess.run(within(VM, "conntrack", "-F"), check=True, capture_output=True)

    @contextlib.contextmanager
    def witness(self):
        """Counts packets that anybody but the guard gets through to the service."""
        self.nft(WITNESS)
        try:
            yield
        finally:
            sh(*within(VM, "nft", "delete", "table", "inet", "soak_witness"))

    def passed_the_guard(self):
        shown = json.loads(sh(*within(VM, "nft", "-j", "list", "counter", "inet", "soak_witness", "strangers")))
        return next(item["counter"]["packets"] for item in shown["nftables"] if "counter" in item)


@contextlib.contextmanager
def process(words, log, **options):
    with open(log, "ab") as output:
        child = subprocess.Popen(words, stdout=output, stderr=output, stdin=subprocess.DEVNULL, **options)
    try:
        yield child
    finally:
        end(child)


def put_down(child):
    """Whatever happened: nobody that a scenario started outlives it."""
    if child.poll() is None:
        child.kill()
        child.wait()


def end(child, patience=10):
    child.send_signal(signal.SIGTERM)
    try:
        child.wait(patience)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


class Asker:
    """Somebody who asks again and again; what became of each ask is known at the end."""

    def __init__(self, child):
        self.child = child

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        return self.results()

    def results(self):
        out, _ = self.child.communicate(timeout=60)
        return [json.loads(line) for line in out.splitlines()]


class Guard:
    """A running guard. Ready when made; use as a context."""

    def __init__(self, bed, prefix=()):
        self.bed = bed
        path = bed.work / "notify"
        path.unlink(missing_ok=True)
        self.notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notices.bind(str(path))
        self.notices.settimeout(0.2)
        self.output = bed.work / "guard.out"
        words = within(VM, *prefix, "setpriv", "--pdeathsig", "KILL", str(bed.binary), "run", "--config", str(bed.work / "policy.toml"))
        with open(self.output, "ab") as output:
            environment = {**os.environ, "NOTIFY_SOCKET": str(path)}
            self.keeper = subprocess.Popen(words, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                                           env=environment)
        bed.stack.callback(put_down, self.keeper)
        self.wait_for_ready()
        self.proxy = self._proxy()

    def wait_for_ready(self, seconds=20):
        end_ = time.monotonic() + seconds
        while time.monotonic() < end_:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in self.notices.recv(4096).split(b"\n"):
                    return
            if self.keeper.poll() is not None:
                raise Failed(f"the guard ended with {self.keeper.returncode}: {self.said()[-1500:]}")
        raise Failed(f"the guard is not ready: {self.said()[-1500:]}")

    def _proxy(self):
        """The keeper's child that runs as the guard's user."""
        for task in Path(f"/proc/{self.keeper.pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                status = Path(f"/proc/{child}/status").read_text()
                if re.search(rf"^Uid:\s+{GUARD_UID}\s", status, re.M):
                    return int(child)
        raise Failed("the keeper has no child without root")

    def pids(self):
        return (self.keeper.pid, self.proxy)

    def said(self):
        return self.output.read_text(errors="replace")

    def reload(self):
        self.notices.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while self.notices.recv(4096):
                pass
        self.notices.settimeout(0.2)
        self.keeper.send_signal(signal.SIGHUP)
        self.wait_for_ready()

    def stop(self):
        end(self.keeper)
        self.notices.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        # An enforce table outlives its guard: that is what it is for.
        subprocess.run(within(VM, "nft", "delete", "table", "inet", "imds_guard"), check=False, capture_output=True)


def is_running(pid):
    """Not gone, nor waiting for somebody to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def memory(pids):
    """Proportional set size of processes together, in KiB."""
    total = 0
    for pid in pids:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(re.search(r"^Pss:\s+(\d+) kB", rollup, re.M)[1])
    return total


def descriptors(pids):
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


def threads(pids):
    return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids)


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else float("nan")


def wrk():
    return shutil.which("wrk")
