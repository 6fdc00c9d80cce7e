"""What the guard stands on breaks: the log's disk is full, the journal is gone, descriptors or memory are used up, somebody
flushes the rules, connection tracking is full. The guard refuses cleanly, says so, and recovers."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

from bed import (AGENT_UNIT, CONSTANT, CREDENTIALS, FLOOD_UID, FLOOD_UNIT, HERE, STRANGER_UID, STRANGER_UNIT, VM,
                 python, say, sh, wait_until, within)

HEAD = ["what breaks", "meanwhile: config answered", "credentials given", "refused or closed", "after: answered", "events lost",
        "counted by the guard as lost", "told by", "passes"]
TITLE = "Broken surroundings"


def run(bed, seconds):
    rows = []
    for scene in (full_disk, journal_gone, no_descriptors, no_memory, flushed_enforce, flushed_audit, tracking_full):
        say(f"surroundings: {scene.__doc__}")
        row = scene(bed)
        rows.append({"passes": row[-1], "cells": [scene.__doc__, *row]})
    return rows


def ask(bed, path, count=20, unit=AGENT_UNIT, uid=0, timeout=3):
    """So many asks in turn; how many were answered with 200."""
    told = bed.asker(unit, uid, "--path", path, "--every", "0.02", "--seconds", str(count * 0.02), "--timeout", str(timeout)).results()
    return len(told), sum(outcome == "200" for *_, outcome, _ in told), told


def status(bed):
    """The guard's own account, by its socket."""
    out = subprocess.run(within(VM, str(bed.binary), "status", "--json", "--socket", str(bed.work / "status" / "sock")),
                         capture_output=True, text=True)
    return json.loads(out.stdout)


def with_status(bed):
    directory = bed.work / "status"
    directory.mkdir(exist_ok=True)
    (directory / "sock").unlink(missing_ok=True)
    return f'status-socket = "{directory}/sock"\n'


def ids(events):
    return {event["event.id"] for event in events if event["event.action"] == "request"}


def full_disk(bed):
    """the log's disk is full (enforce)"""
    disk = bed.work / "disk"
    disk.mkdir(exist_ok=True)
    sh("mount", "-t", "tmpfs", "-o", "size=256k", "soak", str(disk))
    try:
        log = disk / "audit.jsonl"
        with bed.guard(bed.policy(log=log, guard=with_status(bed))):
            ask(bed, CONSTANT)
            filler = disk / "filler"
            with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as full:
                while True:
                    full.write(b"x" * 512)
            ask(bed, CONSTANT)
            wait_until("the guard notices", lambda: status(bed)["log_failing"])
            asked, config, _ = ask(bed, CONSTANT)
            of_credentials, given, _ = ask(bed, CREDENTIALS)
            filler.unlink()
            wait_until("the log works again", lambda: not status(bed)["log_failing"])
            again, answered, _ = ask(bed, CREDENTIALS)
            lost = status(bed)["lost_events"]
            wait_until("the log holds what came meanwhile", lambda: account(log)[0] >= answered)
            wrote, told = account(log)
            total = 20 * 2
        failing = "the audit log cannot be written" in (bed.work / "guard.out").read_text()
        return [f"{config} of {asked}", f"{given} of {of_credentials}", of_credentials - given, f"{answered} of {again}", lost, told,
                "status, metric, operations log", config == asked and given == 0 and answered == again and lost == told and failing]
    finally:
        sh("umount", str(disk))


def account(log):
    """Credentials that the log says were given, and events that it says were lost."""
    given = lost = 0
    for line in log.read_text(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            event = json.loads(line)
            lost += event.get("imds_guard.count", 0) if event.get("imds_guard.reason") == "events-lost" else 0
            given += event.get("url.path") == CREDENTIALS and event.get("http.response.status_code") == 200
    return given, lost


def journal_gone(bed):
    """the journal is gone (enforce)"""
    place = bed.work / "journal"
    place.mkdir(exist_ok=True)
    journal = Journal(place / "socket")
    # The machine's own journal stays out of it.
    other_run = f'mount -t tmpfs none /run && mkdir /run/systemd && ln -s {place} /run/systemd/journal && exec "$@"'
    prefix = ("unshare", "--mount", "sh", "-c", other_run, "sh")
    with bed.guard(bed.policy(log="journald", guard=with_status(bed)), prefix=prefix):
        ask(bed, CONSTANT)
        journal.stop()
        ask(bed, CONSTANT, 5)
        wait_until("the guard notices", lambda: status(bed)["log_failing"])
        asked, config, _ = ask(bed, CONSTANT)
        of_credentials, given, _ = ask(bed, CREDENTIALS)
        journal = Journal(place / "socket", journal)
        wait_until("the journal takes events again", lambda: not status(bed)["log_failing"])
        again, answered, _ = ask(bed, CREDENTIALS)
        lost = status(bed)["lost_events"]
        wait_until("the journal has what came meanwhile", lambda: journal.count(CREDENTIALS, 200) >= answered)
    told = journal.count("events-lost")
    journal.stop()
    everything = journal.count(CONSTANT, 200) >= asked + 25 and journal.count(CREDENTIALS, 200) == answered + given
    return [f"{config} of {asked}", f"{given} of {of_credentials}", of_credentials - given, f"{answered} of {again}", lost, told,
            "status, metric, operations log", config == asked and given == 0 and answered == again and lost == told == 0 and everything]


class Journal:
    """Something that takes datagrams where the journal does."""

    def __init__(self, path, before=None):
        self.path, self.entries = path, before.entries if before else []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        os.chmod(path, 0o666)
        self.socket.settimeout(0.1)
        self.ends = False
        self.thread = threading.Thread(target=self.take)
        self.thread.start()

    def take(self):
        while not self.ends:
            with contextlib.suppress(TimeoutError):
                self.entries.append(self.socket.recv(1 << 20))

    def stop(self):
        self.ends = True
        self.thread.join()
        self.socket.close()
        self.path.unlink()

    def count(self, text, status=None):
        status = f'"http.response.status_code":{status}' if status else ""
        return sum(text.encode() in entry and status.encode() in entry for entry in list(self.entries))


def flood(bed, kind):
    return bed.caller(FLOOD_UNIT, FLOOD_UID, python(), "-S", "-E", str(HERE / "flood.py"), kind)


def stop(flooder):
    flooder.send_signal(signal.SIGTERM)
    return json.loads(flooder.communicate(timeout=60)[0])


def no_descriptors(bed):
    """descriptors are used up (256 for the guard, a flood of idle connections)"""
    with bed.guard(bed.policy(guard=with_status(bed)), prefix=("prlimit", "--nofile=256:256")) as guard:
        flooder = flood(bed, "10,000 idle connections")
        time.sleep(1)
        asked, config, _ = ask(bed, CONSTANT, 50)
        of_credentials, given, _ = ask(bed, CREDENTIALS, 50)
        told = stop(flooder)
        again, answered, _ = ask(bed, CREDENTIALS, unit=AGENT_UNIT)
        lost = status(bed)["lost_events"]
        starved = guard.said().count("a connection could not be accepted")
    return [f"{config} of {asked}", f"{given} of {of_credentials}", told["closed"], f"{answered} of {again}", lost, lost,
            "aggregate events; a warning at the start",
            config == asked and given == of_credentials and answered == again and told["closed"] > 0 and starved == 0]


def no_memory(bed):
    """memory is used up (a limit of 24 MiB, a flood of huge heads)"""
    group = Path("/sys/fs/cgroup/memory") / bed.units[AGENT_UNIT].name
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(24 << 20))
    except OSError as error:
        return ["-", "-", "-", "-", "-", "-", f"no memory cgroup to be had here: {error.strerror}", True]
    prefix = ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
    text = bed.policy(guard=with_status(bed))
    try:
        with bed.witness():
            guard = bed.guard(text, prefix=prefix)
            ended = 0
            for kind in ("slow reads", "huge heads"):
                flooder = flood(bed, kind)
                time.sleep(2)
                asked, config, _ = ask(bed, CONSTANT, 50)
                of_credentials, given, told = ask(bed, CREDENTIALS, 50)
                closed = stop(flooder)["closed"]
                if guard.keeper.poll() is not None:
                    # As the service manager does.
                    ended += 1
                    guard.notices.close()
                    guard = bed.guard(text, prefix=prefix, keep_log=True)
            again, answered, _ = ask(bed, CREDENTIALS)
            passed = bed.passed_the_guard()
            guard.__exit__()
        most = int((group / "memory.max_usage_in_bytes").read_text()) >> 10
        return [f"{config} of {asked}", f"{given} of {of_credentials}", closed, f"{answered} of {again}", 0, 0,
                f"{most:,} KiB at most; ended by the kernel {ended} times", answered == again and passed == 0]
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def flushed(bed, mode):
    bed.flush_connection_tracking()
    before = bed.cloud_log.stat().st_size
    flushes, gaps = 100, []
    with bed.guard(bed.policy(mode, guard=with_status(bed))):
        agent = bed.asker(AGENT_UNIT, 0, "--path", CREDENTIALS, "--every", "0.01", "--askers", "4", "--header", "X-Caller: agent")
        stranger = bed.asker(STRANGER_UNIT, STRANGER_UID, "--path", CREDENTIALS, "--every", "0.002", "--askers", "4", "--header",
                             "X-Caller: stranger")
        time.sleep(0.5)
        for _ in range(flushes):
            begun = time.monotonic()
            sh(*within(VM, "nft", "flush", "ruleset"))
            wait_until("the redirect is back", lambda: "imds_guard" in sh(*within(VM, "nft", "list", "tables")))
            gaps.append(time.monotonic() - begun)
            time.sleep(bed.random.uniform(0.02, 0.08))
        time.sleep(0.3)
        by_agent, by_stranger = agent.stop(), stranger.stop()
        lost_events = status(bed)["lost_events"]
        tampered = status(bed)["redirect"]["tampered"]
    with open(bed.cloud_log) as log:
        log.seek(before)
        leaked = sum(line.split() == [CREDENTIALS, "stranger"] for line in log)
    answered = sum(outcome == "200" for *_, outcome, _ in by_agent)
    lost = len(by_agent) - answered
    refused = sum("by the guard" in outcome for *_, outcome, _ in by_stranger)
    return flushes, gaps, leaked, answered, len(by_agent), lost, refused, len(by_stranger), lost_events, tampered


def flushed_enforce(bed):
    """another tool flushes all rules, 100 times under load (enforce)"""
    flushes, gaps, leaked, answered, asked, lost, refused, strange, events, tampered = flushed(bed, "enforce")
    worst = max(gaps) * 1e3
    return [f"{answered} of {asked}", f"{leaked} of {strange} to a stranger", refused, f"{answered} of {asked}", events, events,
            f"`redirect-tampered` {tampered} times; back after at most {worst:.0f} ms", tampered > 0 and worst < 1000]


def flushed_audit(bed):
    """another tool flushes all rules, 100 times under load (audit)"""
    flushes, gaps, leaked, answered, asked, lost, refused, strange, events, tampered = flushed(bed, "audit")
    return [f"{answered} of {asked}", "audit gives all", refused, f"{answered} of {asked}", events, events,
            "nothing to tell: the table belongs to its process" if tampered == 0 else f"`redirect-tampered` {tampered} times", lost == 0]


def tracking_full(bed):
    """connection tracking is full (enforce)"""
    limit = int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text())
    script = ("import socket,sys\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\nleft=int(sys.argv[1])\nhost=1\n"
              "while left>0:\n  for port in range(1,65536):\n    try: s.sendto(b'',('127.1.0.%d'%host,port))\n    except OSError: pass\n"
              "    left-=1\n    if left<=0: break\n  host+=1\n")
    bed.flush_connection_tracking()
    with bed.witness(), bed.guard(bed.policy(guard=with_status(bed))):
        filler = subprocess.Popen(within(VM, "setpriv", "--pdeathsig", "KILL", python(), "-S", "-E", "-c", script, str(limit + 50_000)))
        filler.wait(120)
        tracked = int(sh(*within(VM, "conntrack", "-C")))
        asked, config, _ = ask(bed, CONSTANT, 50)
        of_credentials, given, _ = ask(bed, CREDENTIALS, 50)
        strange, _, told = ask(bed, CREDENTIALS, 50, unit=STRANGER_UNIT, uid=STRANGER_UID)
        refused = strange - sum(outcome == "200" for *_, outcome, _ in told)
        bed.flush_connection_tracking()
        again, answered, _ = ask(bed, CREDENTIALS)
        lost = status(bed)["lost_events"]
        passed = bed.passed_the_guard()
    return [f"{config} of {asked}", f"{given} of {of_credentials}", refused, f"{answered} of {again}", lost, lost,
            f"{tracked:,} of {limit:,} entries; packets past the guard: {passed}",
            passed == 0 and refused == strange and answered == again and tracked > limit * 0.9]
