#!/usr/bin/env python3
"""Load side by side: direct, through nginx, through HAProxy, through imds-guard. Called by `make bench`.

Two network namespaces of its own, "vm" and "cloud", joined by a veth pair: nothing touches the machine's network.
In the cloud nginx answers a fixed credential; in the vm wrk asks, as a listed agent, directly or through a proxy
behind the same nftables redirect. Rounds are interleaved and medians reported, because the machine is never quiet.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ADDRESS = "169.254.169.254"
CREDENTIALS = "/latest/meta-data/iam/security-credentials/role"
# The catalogue calls it constant; the decoy cloud gives the same answer for it.
CONSTANT = "/latest/meta-data/instance-id"
TAG = f"imdsgb{os.getpid()}"
VM, CLOUD = f"{TAG}-vm", f"{TAG}-cloud"
PROXY_UID, GUARD_UID, AGENT_UID = 64100, 64101, 64102
UNIT = f"imds-bench-{os.getpid()}.service"
CASES = [("1 kept", 1, True), ("1 per request", 1, False), ("32 kept", 32, True), ("32 per request", 32, False)]


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
        for name, link, address in ((VM, "up0", "10.99.0.2/24"), (CLOUD, "down0", "10.99.0.1/24")):
            sh("ip", "-n", name, "addr", "add", address, "dev", link)
            sh("ip", "-n", name, "link", "set", link, "up")
        sh("ip", "-n", CLOUD, "addr", "add", f"{ADDRESS}/32", "dev", "lo")
        sh("ip", "-n", VM, "route", "add", ADDRESS, "via", "10.99.0.1")
        # One client, one server, one port: without these the ephemeral ports run out, whoever is measured.
        for name in (VM, CLOUD):
            for setting in ("ip_local_port_range=1024 65535", "tcp_max_tw_buckets=2000", "tcp_tw_reuse=1"):
                sh(*within(name, "sysctl", "-q", "-w", f"net.ipv4.{setting}"))
        yield
    finally:
        for name in (VM, CLOUD):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@contextlib.contextmanager
def unit():
    """A cgroup that looks like a systemd unit."""
    slice_ = cgroup_mount() / "system.slice"
    made_slice = not slice_.exists()
    path = slice_ / UNIT
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        for directory in [path] + ([slice_] if made_slice else []):
            with contextlib.suppress(OSError):
                directory.rmdir()


@contextlib.contextmanager
def process(words, ready, log):
    with open(log, "ab") as output:
        child = subprocess.Popen(words, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if child.poll() is not None:
                sys.exit(f"bench: {words} ended at once:\n{Path(log).read_text()[-2000:]}")
            if ready():
                break
            time.sleep(0.02)
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


NGINX_COMMON = """
daemon off; pid {work}/{name}.pid; error_log {work}/{name}.err; worker_processes 1; user {user};
events {{ worker_connections 8192; }}
"""

CLOUD_NGINX = NGINX_COMMON + """
http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 300s;
  server {{ listen {address}:80 backlog=4096;
    location / {{ default_type application/json; return 200 '{{"Code":"Success","AccessKeyId":"ASIAEXAMPLE","SecretAccessKey":"example","Token":"{token}","Expiration":"2030-01-01T00:00:00Z"}}'; }} }} }}
"""

PROXY_NGINX = NGINX_COMMON + """
http {{ access_log {work}/nginx.access.log; keepalive_requests 100000000;
  upstream imds {{ server {address}:80; keepalive 64; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:8181 backlog=4096;
    location / {{ proxy_pass http://imds; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host; }} }} }}
"""

HAPROXY = """
global
  maxconn 8192
  nbthread 1
  uid {uid}
  log stdout format raw local0
defaults
  mode http
  log global
  option httplog
  http-reuse always
  timeout connect 5s
  timeout client 300s
  timeout server 300s
frontend in
  bind 127.0.0.1:8182 backlog 4096
  default_backend imds
backend imds
  server imds {address}:80
"""


def redirect(port, uid):
    """The guard's own redirect rule, for a proxy that is not the guard."""
    return f"""
table ip bench {{
    chain redirect_output {{
        type nat hook output priority -110; policy accept;
        meta skuid {uid} accept
        ip daddr {ADDRESS} tcp dport 80 redirect to :{port}
    }}
}}
"""


@contextlib.contextmanager
def rules(text):
    sh(*within(VM, "nft", "-f", "-"), input=text)
    try:
        yield
    finally:
        sh(*within(VM, "nft", "delete", "table", "ip", "bench"))


class Bench:
    def __init__(self, arguments, work):
        self.arguments, self.work = arguments, Path(work)
        self.binary = Path(arguments.binary).resolve()

    def write(self, name, text):
        path = self.work / name
        path.write_text(text)
        return str(path)

    def cloud(self):
        text = CLOUD_NGINX.format(work=self.work, name="cloud", user="root", address=ADDRESS, token="T" * 800)
        words = within(CLOUD, "nginx", "-c", self.write("cloud.conf", text))
        return process(words, listens(CLOUD, 80), self.work / "cloud.log")

    @contextlib.contextmanager
    def direct(self):
        yield None

    @contextlib.contextmanager
    def nginx(self):
        text = PROXY_NGINX.format(work=self.work, name="nginx", user="bench-proxy", address=ADDRESS)
        text = text.replace("user bench-proxy;", "")
        words = within(VM, "setpriv", f"--reuid={PROXY_UID}", "--clear-groups", "nginx", "-c", self.write("nginx.conf", text))
        with process(words, listens(VM, 8181), self.work / "nginx.log") as child, rules(redirect(8181, PROXY_UID)):
            yield child

    @contextlib.contextmanager
    def haproxy(self):
        config = self.write("haproxy.conf", HAPROXY.format(address=ADDRESS, uid=PROXY_UID))
        words = within(VM, "haproxy", "-db", "-f", config)
        with process(words, listens(VM, 8182), self.work / "haproxy.log") as child, rules(redirect(8182, PROXY_UID)):
            yield child

    @contextlib.contextmanager
    def guard(self, exe=False, memory=False):
        wrk = shutil.which("wrk")
        shipped = Path(__file__).resolve().parents[2] / "policy.toml"
        policy = re.sub(r'(?m)^mode *=.*$', 'mode = "enforce"', shipped.read_text(), count=1)
        policy = re.sub(r'(?m)^cloud *=.*$', 'cloud = "aws"', policy, count=1)
        policy = re.sub(r'(?m)^user *= *"imds-guard".*$', f'user = "{GUARD_UID}"', policy, count=1)
        policy = re.sub(r'(?m)^status-socket *=.*\n', '', policy, count=1)
        log = self.work / "guard.audit.log"
        policy = re.sub(r'(?m)^audit-log *=.*$', f'audit-log = "{log}"', policy, count=1)
        policy += f'\n[[agent]]\nname = "bench"\nunit = "{UNIT}"\nuser = "{AGENT_UID}"\nallow = ["credentials", "config", "session"]\n'
        if memory:
            policy = re.sub(r'(?m)^\[guard\]$', '[guard]\ncache = "constants"', policy, count=1)
        if exe:
            policy += f'exe = ["{wrk}"]\n'
        config = self.write("policy.toml", policy)
        os.chmod(config, 0o644)
        words = within(VM, str(self.binary), "run", "--config", config)

        def ready():
            tables = subprocess.run(within(VM, "nft", "list", "tables"), capture_output=True, text=True)
            return "imds_guard" in tables.stdout

        with process(words, ready, self.work / "guard.log") as child:
            yield child
        subprocess.run(within(VM, "nft", "delete", "table", "inet", "imds_guard"), capture_output=True, check=False)

    def wrk(self, cgroup, connections, kept, path):
        header = [] if kept else ["-H", "Connection: close"]
        load = ["wrk", "-t1", f"-c{connections}", f"-d{self.arguments.seconds}s", "--latency", *header, f"http://{ADDRESS}{path}"]
        enter = f"echo $$ > {cgroup}/cgroup.procs && exec setpriv --reuid={AGENT_UID} --clear-groups \"$@\""
        output = sh(*within(VM, "sh", "-c", enter, "sh", *load)).stdout
        return parse(output)


UNITS = {"us": 1, "ms": 1e3, "s": 1e6}


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


def cpu_seconds(pid):
    """CPU time of a process and its children, in seconds."""
    total = 0
    pids = [pid]
    while pids:
        current = pids.pop()
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{current}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
            for task in Path(f"/proc/{current}/task").iterdir():
                pids += [int(child) for child in (task / "children").read_text().split()]
    return total / os.sysconf("SC_CLK_TCK")


def median(samples, key):
    return statistics.median(sample[key] for sample in samples)


@contextlib.contextmanager
def workplace(keep):
    if keep:
        Path(keep).mkdir(parents=True, exist_ok=True)
        yield keep
    else:
        with tempfile.TemporaryDirectory(prefix="imds-bench-") as work:
            yield work


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default="target/release/imds-guard")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement")
    parser.add_argument("--ways", default="direct,nginx,haproxy,guard,guard+exe,guard+memory")
    parser.add_argument("--cases", default=",".join(case for case, _, _ in CASES))
    parser.add_argument("--json", help="also write the medians to this file")
    parser.add_argument("--keep", help="keep configurations and logs in this directory")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench: must run as root (it makes network namespaces)")
    results = {}
    ways = arguments.ways.split(",")
    cases = [case for case in CASES if case[0] in arguments.cases.split(",")]
    with workplace(arguments.keep) as work, namespaces(), unit() as cgroup:
        os.chmod(work, 0o777)
        bench = Bench(arguments, work)
        starters = {"direct": bench.direct, "nginx": bench.nginx, "haproxy": bench.haproxy, "guard": bench.guard,
                    "guard+exe": lambda: bench.guard(exe=True), "guard+memory": lambda: bench.guard(memory=True)}
        with bench.cloud():
            for number in range(arguments.rounds):
                for way in ways:
                    # What the redirect of the one before left in connection tracking would lead to its closed port.
                    sh(*within(VM, "conntrack", "-F"))
                    with starters[way]() as child:
                        for case, connections, kept in cases:
                            print(f"\rround {number + 1}/{arguments.rounds} {way:9} {case:15}", end="", file=sys.stderr, flush=True)
                            before = cpu_seconds(child.pid) if child else 0
                            sample = bench.wrk(cgroup, connections, kept, CONSTANT if way == "guard+memory" else CREDENTIALS)
                            spent = (cpu_seconds(child.pid) - before) if child else 0
                            sample["cpu"] = spent / max(1, sample["rate"] * arguments.seconds) * 1e6
                            results.setdefault((case, way), []).append(sample)
    print("\r" + " " * 60 + "\r", end="", file=sys.stderr)
    report(results, ways, cases, arguments)


def report(results, ways, cases, arguments):
    kernel, cores = platform.release(), os.cpu_count()
    print(f"{datetime.date.today()}, Linux {kernel}, {cores} cores; medians of {arguments.rounds} interleaved rounds "
          f"of {arguments.seconds} s; times in microseconds, and as a ratio to going direct\n")
    print("| case | way | p50 | × direct | p99 | requests/s | CPU µs/request | failed |")
    print("|---|---|---|---|---|---|---|---|")
    table = {}
    for case, _, _ in cases:
        base = median(results[case, ways[0]], "p50")
        for way in ways:
            samples = results[case, way]
            p50, p99, rate, cpu = (median(samples, key) for key in ("p50", "p99", "rate", "cpu"))
            failed = sum(sample["failed"] for sample in samples)
            table[f"{case}/{way}"] = {"p50": p50, "p99": p99, "rate": rate, "cpu": cpu, "failed": failed}
            print(f"| {case} | {way} | {p50:.0f} | {p50 / base:.2f} | {p99:.0f} | {rate:.0f} | {cpu:.1f} | {failed} |")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
