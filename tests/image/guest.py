"""Runs in the booted image: looks whether the guard was there in time, then breaks it in every way, in both modes.

usage: guest.py RESULTS [only=FAULT,...] [modes=MODE,...] [boot=no] [slow=FACTOR] [upgrade=NEXT.deb,LATER.deb]

Writes RESULTS/verdict.json: {"pass": bool, "boot": [check...], "matrix": [row...]}. A row is one mode and one fault:
what an unprivileged caller got while it lasted, and how long after it the guard was back. On a machine that emulates
its processor every patience is multiplied by FACTOR.
"""

import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

UNIT = "imds-guard.service"
POLICY = Path("/etc/imds-guard/policy.toml")
BINARY = Path("/usr/bin/imds-guard")
MARKER = Path("/var/lib/imds-guard/closed.nft")
LAST_GOOD = Path("/var/lib/imds-guard/last-good.json")
OPTIONS = dict(option.split("=", 1) for option in sys.argv[2:] if "=" in option)
SLOW = float(OPTIONS.get("slow", "1"))
CGROUP = Path("/sys/fs/cgroup/system.slice", UNIT)
# Where the kernel's memory controller is of version 1, the test's own part of it (scripts/image-test.sh).
OLD_MEMORY = Path("/opt/memory")
# Debian's cloud-init makes it, with the instance's keys.
LOGIN = "debian"
# As in tests/systemd.rs.
EXPOSURE = 2.9
ROLE = "/latest/meta-data/iam/security-credentials/decoy-role"


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def show(unit, *properties):
    """Properties of a unit, from systemctl."""
    text = run("systemctl", "show", unit, "-p", ",".join(properties)).stdout
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def wait_for(what, seconds, every=0.02):
    """Seconds until it is so, or None."""
    begin = time.monotonic()
    while time.monotonic() - begin < seconds * SLOW:
        if what():
            return time.monotonic() - begin
        time.sleep(every)
    return None


def table():
    """The kernel's table, or an empty text."""
    return run("nft", "list", "table", "inet", "imds_guard").stdout


def pids():
    """The keeper and the proxy."""
    keeper = int(show(UNIT, "MainPID")["MainPID"])
    for pid in CGROUP.joinpath("cgroup.procs").read_text().split():
        line = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
        if line[1:2] == [b"proxy"]:
            return keeper, int(pid)
    return keeper, None


def is_active():
    return show(UNIT, "ActiveState")["ActiveState"] == "active"


def set_policy(mode):
    text = POLICY.read_text()
    lines = [f'mode = "{mode}"' if line.startswith("mode = ") else line for line in text.splitlines()]
    POLICY.write_text("\n".join(lines) + "\n")


def start_clean(mode):
    """The guard in a mode, freshly started, with nothing left of the last fault."""
    run("systemctl", "stop", UNIT)
    run("systemctl", "reset-failed", UNIT)
    run("nft", "delete", "table", "inet", "imds_guard")
    for file in (MARKER, LAST_GOOD):
        file.unlink(missing_ok=True)
    set_policy(mode)
    started = run("systemctl", "start", UNIT)
    if started.returncode != 0:
        raise RuntimeError(f"the guard does not start in {mode} mode: {run('journalctl', '-u', UNIT, '-n', '20').stdout}")


class Prober:
    """A caller who asks for the credentials all the time; by default one without privilege."""

    def __init__(self, name, unit=None, uid="nobody", threads=1, slice="system.slice"):
        self.output = Path(f"/run/probe/{name}.jsonl")
        self.output.parent.mkdir(exist_ok=True)
        os.chmod(self.output.parent, 0o1777)
        self.unit = unit or f"probe-{name}.service"
        here = Path(__file__).parent
        run("systemd-run", f"--unit={self.unit}", f"--uid={uid}", f"--slice={slice}", "python3", str(here / "probe.py"), str(self.output),
            ROLE, str(threads), str(SLOW))
        wait_for(lambda: self.count() > 0, 5)

    def count(self):
        return len(self.output.read_bytes().splitlines()) if self.output.exists() else 0

    def asks_more(self, times, seconds):
        """Waits until it has asked so many times more."""
        before = self.count()
        wait_for(lambda: self.count() >= before + times, seconds)

    def stop(self):
        run("systemctl", "stop", self.unit)
        return [json.loads(line) for line in self.output.read_text().splitlines()]


# ---- The faults. Each breaks the guard, and says whether it comes back by itself. -----------------------------------


def kill_keeper():
    os.kill(pids()[0], 9)


def kill_proxy():
    os.kill(pids()[1], 9)


def stop_keeper():
    os.kill(pids()[0], 19)


def stop_proxy():
    os.kill(pids()[1], 19)


def kill_all():
    run("systemctl", "kill", "--signal=KILL", UNIT)


class NotHere(Exception):
    """A fault that this machine cannot bring about."""


def memory_runs_out(everybody):
    """The kernel's own killer, by a limit that the proxy, or everybody, is over."""
    keeper, proxy = pids()
    victims = CGROUP.joinpath("cgroup.procs").read_text().split() if everybody else [str(proxy)]
    if CGROUP.joinpath("memory.max").exists():
        limit_lowered(victims)
    elif OLD_MEMORY.exists():
        limit_of_old(victims)
    else:
        raise NotHere("no memory controller")


def limit_lowered(victims):
    """cgroup2: the unit's own limit, lowered until somebody dies of it."""
    limit, events = CGROUP / "memory.max", CGROUP / "memory.events"
    before = oom_kills(events)
    for pid in victims:
        Path("/proc", pid, "oom_score_adj").write_text("1000")
    size = int(CGROUP.joinpath("memory.current").read_text())
    while oom_kills(events) < before + len(victims) and size > 0:
        size -= 1 << 17
        limit.write_text(str(max(size, 0)))
    limit.write_text("max")


def limit_of_old(victims):
    """cgroup v1: another group whose limit is a page; what its members allocate next kills them."""
    group = OLD_MEMORY / "oom"
    group.mkdir(exist_ok=True)
    (group / "memory.limit_in_bytes").write_text("4096")
    before = oom_kills(group / "memory.oom_control")
    for pid in victims:
        (group / "cgroup.procs").write_text(pid)
    if wait_for(lambda: oom_kills(group / "memory.oom_control") > before, 10) is None:
        raise RuntimeError("nobody was killed for want of memory")


def oom_kills(file):
    return int(dict(line.split() for line in file.read_text().splitlines())["oom_kill"])


def restart():
    run("systemctl", "restart", UNIT)


def reload():
    run("systemctl", "reload", UNIT)


def broken_reload():
    POLICY.write_text(POLICY.read_text() + "\nnot toml\n")
    run("systemctl", "reload", UNIT)


def broken_policy():
    POLICY.write_text(POLICY.read_text() + "\nnot toml\n")
    run("systemctl", "restart", UNIT)


def failed_start():
    """Somebody else sits on the guard's port."""
    run("systemctl", "stop", UNIT)
    run("systemd-run", "--unit=squatter.service", "python3", "-c",
        "import socket,time; s=socket.create_server(('127.0.0.1',169)); time.sleep(60)")
    time.sleep(0.3)
    run("systemctl", "start", UNIT)


def removed_binary():
    BINARY.rename("/usr/bin/imds-guard.away")
    os.kill(pids()[0], 9)


def boot_without_binary():
    """As after a reboot: no table is left, and the program is gone."""
    run("systemctl", "stop", UNIT)
    run("nft", "delete", "table", "inet", "imds_guard")
    BINARY.rename("/usr/bin/imds-guard.away")
    run("systemctl", "start", UNIT)


def boot_with_broken_policy():
    run("systemctl", "stop", UNIT)
    run("nft", "delete", "table", "inet", "imds_guard")
    POLICY.write_text(POLICY.read_text() + "\nnot toml\n")
    run("systemctl", "start", UNIT)


def boot_without_any_policy():
    """The policy is broken, and nothing is left of the last good one."""
    LAST_GOOD.unlink()
    boot_with_broken_policy()


def other_mode_reloaded_then_gone(mode):
    """Reloaded into this mode from the other; then the program goes, and the new mode's direction is to hold."""
    def fault():
        start_clean("audit" if mode == "enforce" else "enforce")
        set_policy(mode)
        run("systemctl", "reload", UNIT)
        wait_for(lambda: MARKER.exists() == (mode == "enforce") and ("only_guard" in table()) == (mode == "enforce"), 10)
        removed_binary()
    return fault


def upgrade(package):
    run("dpkg", "--force-confold", "-i", package)


def flush():
    run("nft", "flush", "ruleset")


def close_listener():
    run("ss", "--kill", "--listening", "--tcp", "sport", "=", ":169")


def without_var():
    """As where /var is a file system that is not there yet."""
    run("systemctl", "stop", UNIT)
    run("nft", "delete", "table", "inet", "imds_guard")
    run("mount", "-t", "tmpfs", "-o", "ro,size=4k", "none", "/var")
    run("systemctl", "start", UNIT)


def delete_table():
    run("nft", "delete", "table", "inet", "imds_guard")


def nftables_restart():
    run("systemctl", "restart", "nftables.service")


def stop_service():
    run("systemctl", "stop", UNIT)


# name, what to do, whether the guard is to be there again afterwards, seconds that the caller may be without an answer
# in audit mode (the watchdog's time where it is what notices).
WATCHDOG = 16.0
FAULTS = [
    ("kill-9-keeper", kill_keeper, True, 1.5),
    ("kill-9-proxy", kill_proxy, True, 1.5),
    ("kill-9-all", kill_all, True, 1.5),
    ("oom-kills-proxy", lambda: memory_runs_out(False), True, 1.5),
    ("oom-kills-all", lambda: memory_runs_out(True), True, 1.5),
    ("watchdog-keeper-hangs", stop_keeper, True, WATCHDOG),
    ("watchdog-proxy-hangs", stop_proxy, True, WATCHDOG),
    ("failed-start", failed_start, False, 1.5),
    ("removed-binary", removed_binary, False, 1.5),
    ("broken-policy-restart", broken_policy, True, 1.5),
    ("broken-policy-reload", broken_reload, True, 0.5),
    ("boot-removed-binary", boot_without_binary, False, 1.5),
    ("boot-broken-policy", boot_with_broken_policy, True, 1.5),
    ("boot-no-policy-at-all", boot_without_any_policy, False, 1.5),
    ("reloaded-then-gone", None, False, 1.5),
    ("boot-without-var", without_var, True, 1.5),
    ("listener-closed", close_listener, True, 1.5),
    ("table-deleted", delete_table, True, 1.5),
    ("ruleset-flushed", flush, True, 1.5),
    ("nftables-restarted", nftables_restart, True, 1.5),
    ("restart", restart, True, 1.5),
    ("reload", reload, True, 0.5),
    ("stop", stop_service, False, 1.5),
]

# Somebody with CAP_NET_ADMIN took the table away: until the kernel has told the guard, nobody is held back. Trusted by
# the threat model; the gap is measured all the same. Or the fault begins with a start in the other mode.
BY_ROOT = {"table-deleted", "ruleset-flushed", "nftables-restarted", "boot-removed-binary", "boot-broken-policy",
           "boot-no-policy-at-all", "boot-without-var", "reloaded-then-gone"}
# The listeners outlive the guard, so that in enforce nobody's connection fails, the agent's included.
NOTHING_LOST = {"package-upgrade", "restart", "reload", "broken-policy-restart", "broken-policy-reload"}
# The guard cannot start: in enforce callers are told so at once, and do not wait for a guard that does not come.
NOBODY_WAITS = {"failed-start", "removed-binary", "boot-removed-binary", "boot-no-policy-at-all", "reloaded-then-gone", "stop"}
GAP = 1.0


def mend():
    """Takes a fault's causes away."""
    away = Path("/usr/bin/imds-guard.away")
    if away.exists():
        away.rename(BINARY)
    POLICY.write_text(POLICY.read_text().replace("\nnot toml\n", ""))
    run("systemctl", "stop", "squatter.service")
    run("umount", "/var")


def longest(samples, bad):
    """The longest time without a good answer."""
    worst, since = 0.0, None
    for sample in samples:
        if bad(sample["result"]):
            since = sample["at"] if since is None else since
            worst = max(worst, sample["at"] + sample["took"] - since)
        else:
            since = None
    return worst


def measure(mode, name, fault, returns, patience):
    start_clean(mode)
    crowd = name in NOTHING_LOST
    # An emulated processor has enough to do with one.
    threads = 4 if crowd and SLOW == 1 else 1
    prober = Prober(f"{mode}-{name}", threads=threads)
    agent = Prober(f"agent-{mode}-{name}", unit="amazon-ssm-agent.service", uid="root", threads=threads) if crowd else None
    prober.asks_more(5, 2)
    begin = time.monotonic()
    before = show(UNIT, "NRestarts", "InvocationID")
    (fault or other_mode_reloaded_then_gone(mode))()
    settled = time.monotonic()
    back = None
    if returns:
        # Hanging processes are noticed late; others at once.
        wanted = patience + 4
        needs_new = name.startswith(("kill", "oom", "watchdog", "listener", "restart", "package", "broken-policy-restart"))
        changed = lambda: not needs_new or show(UNIT, "NRestarts", "InvocationID") != before
        back = wait_for(lambda: changed() and is_active() and "redirect" in table(), wanted, 0.05)
    prober.asks_more(10, 4)
    if not returns:
        time.sleep(0.6)  # the service has tried to start again, and failed again
        prober.asks_more(5, 4)
    active = is_active()
    closed = "only_guard" in table()
    samples = prober.stop()
    lost = [sample["result"] for sample in agent.stop() if sample["result"] != "credentials"] if agent else []
    mend()
    after = sorted((sample for sample in samples if sample["at"] >= begin), key=lambda sample: sample["at"])
    counts = {}
    for sample in after:
        counts[sample["result"]] = counts.get(sample["result"], 0) + 1
    usual = "refused" if mode == "enforce" else "credentials"
    unusual = [[round(sample["at"] - begin, 3), sample["result"]] for sample in after if sample["result"] != usual]
    last = [sample["result"] for sample in after[-5:]]
    row = {"mode": mode, "fault": name, "results": counts, "last": last[-1] if last else "nothing",
           "back_s": None if back is None else round(back, 2), "active": active, "unusual": unusual[:20],
           "settled_s": round(settled - begin, 3)}
    problems = []
    if mode == "enforce":
        leaks = [sample for sample in after if sample["result"] == "credentials"]
        gap = longest(after, lambda result: result == "credentials")
        row["open_s"] = round(gap, 2)
        if name in BY_ROOT:
            late = [sample for sample in leaks if sample["at"] > settled + GAP * SLOW]
            if late:
                problems.append(f"{len(late)} unguarded answers")
        elif leaks:
            problems.append(f"{len(leaks)} unguarded answers")
        if last and "credentials" in last:
            problems.append("open in the end")
        if name in NOBODY_WAITS and set(last) != {"reset"}:
            problems.append(f"callers wait, or worse: {last}")
        if not closed:
            problems.append("the closing table is not there")
        if crowd and set(counts) - {"refused"}:
            problems.append("a caller's connection failed")
        if lost:
            problems.append(f"the agent lost {len(lost)} requests: {sorted(set(lost))}")
    else:
        outage = longest(after, lambda result: result != "credentials")
        row["outage_s"] = round(outage, 2)
        if outage > patience * SLOW:
            problems.append(f"no answer for {outage:.1f} s")
        if not last or set(last) != {"credentials"}:
            problems.append("not open in the end")
        # One that is under way while the kernel takes the new table may lose its first packet, and with it a second.
        if crowd and len(lost) + sum(counts.values()) - counts.get("credentials", 0) > 1:
            problems.append(f"requests were lost: {counts}, {sorted(set(lost))}")
    if active != returns:
        problems.append("the guard is not back" if returns else "the guard runs, which it could not")
    elif returns and back is None:
        problems.append("nothing noticed that the guard does not work")
    row["expected"] = "closed" if mode == "enforce" else "open"
    row["problems"] = problems
    row["pass"] = not problems
    return row


# ---- The boot ------------------------------------------------------------------------------------------------------


def monotonic(unit, what):
    value = show(unit, what).get(what, "")
    return int(value) if value.isdigit() else 0


def boot_checks():
    checks = []

    def check(name, is_so, detail=""):
        checks.append({"check": name, "pass": bool(is_so), "detail": str(detail)})

    ready = monotonic(UNIT, "ActiveEnterTimestampMonotonic")
    check("the guard is ready", ready and is_active(), show(UNIT, "ActiveState", "Result", "StatusText"))
    for unit in ("network-pre.target", "sysinit.target"):
        at = monotonic(unit, "ActiveEnterTimestampMonotonic")
        check(f"ready before {unit}", ready and at and ready <= at, f"{ready} us, {at} us")
    for unit in ("cloud-init-local.service", "cloud-init.service"):
        at = monotonic(unit, "ExecMainStartTimestampMonotonic")
        if at:
            check(f"ready before {unit} starts", ready <= at, f"{ready} us, {at} us")
    rules = table()
    check("the redirect is in place", "redirect to" in rules, rules)
    cycles = [line for line in run("journalctl", "-b", "--no-pager").stdout.splitlines() if "ordering cycle" in line]
    check("no ordering cycle", not cycles, cycles)
    if Path("/run/cloud-init/status.json").exists() or Path("/var/lib/cloud/data/status.json").exists():
        wait_for(lambda: "running" not in run("cloud-init", "status").stdout, 60)
        check("cloud-init found EC2", run("cloud-id").stdout.strip() in ("aws", "ec2"), run("cloud-id").stdout)
        check("cloud-init is done", "status: done" in run("cloud-init", "status").stdout, run("cloud-init", "status", "--long").stdout)
        instance = Path("/var/lib/cloud/data/instance-id")
        check("cloud-init got the instance id", instance.exists() and instance.read_text().strip() == "i-0decoy")
        keys = list(Path("/home").glob("*/.ssh/authorized_keys"))
        check("cloud-init got the keys", any("AAAAdecoy" in file.read_text() for file in keys), keys)
        check("cloud-init ran the user-data", Path("/run/user-data-ran").exists())
        log = run("journalctl", "-b", "-o", "cat", "-u", UNIT).stdout
        check("cloud-init asked through the guard", "cloud-init" in log.lower() and "user-data" in log)
    for arguments in ([], ["--image"]):
        verified = run("imds-guard", "verify", *arguments)
        check(" ".join(["imds-guard verify", *arguments]), verified.returncode == 0, verified.stdout + verified.stderr)
    check_processes(check)
    return checks


def status(pid, *keys):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: line.split(":")[1].split() for line in lines for key in keys if line.startswith(key + ":")}


def check_processes(check):
    if not is_active():
        return
    keeper, proxy = pids()
    facts = status(proxy, "Uid", "CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Groups")
    uid = run("id", "-u", "imds-guard").stdout.strip()
    none = all(int(facts[key][0], 16) == 0 for key in ("CapEff", "CapPrm", "CapAmb"))
    check("the proxy is the guard's user without a capability", facts["Uid"] == [uid] * 4 and none, facts)
    check("the proxy is filtered and gains nothing", facts["NoNewPrivs"] == ["1"] and facts["Seccomp"] == ["2"], facts)
    check("the keeper has its capabilities alone", status(keeper, "CapEff")["CapEff"], status(keeper, "CapEff", "CapBnd"))
    for name, options in (("the running service", [UNIT]), ("the file", ["--offline=true", UNIT])):
        figure = run("systemd-analyze", "security", *options).stdout.strip().splitlines()[-1:]
        figure = "".join(figure).rpartition(": ")[2].split(" ")[0]
        check(f"systemd-analyze security of {name}: {figure}", figure and float(figure) <= EXPOSURE)
    denied = run("journalctl", "-b", "-o", "cat", "-u", UNIT, "-p", "warning").stdout
    check("nothing of the guard failed", "EPERM" not in denied and "not permitted" not in denied, denied[-2000:])


def check_reloads():
    """Whatever loads rules anew, which may flush those of others, reloads the guard."""
    checks = []
    told = lambda: run("journalctl", "-b", "-o", "cat", "-u", UNIT).stdout.count("the policy was reloaded")
    # firewalld is not in the image: a service of its name, which is what counts here. Debian's ufw.service has no reload.
    run("systemd-run", "--unit=firewalld.service", "--property=ExecReload=/bin/true", "sleep", "infinity")
    for unit in ("nftables.service", "firewalld.service"):
        run("systemctl", "start", unit)
        before = told()
        run("systemctl", "reload", unit)
        checks.append({"check": f"reloaded with {unit}", "pass": wait_for(lambda: told() > before, 5) is not None,
                       "detail": show(unit, "ActiveState", "PropagatesReloadTo")})
    run("systemctl", "stop", "firewalld.service")
    return checks


def check_logs():
    """The journal by its own socket; a file that logrotate puts aside. After both, events arrive where they are to."""
    checks = []

    def check(name, is_so, detail=""):
        checks.append({"check": name, "pass": is_so is not None, "detail": str(detail)[-1500:]})

    def text(file):
        return file.read_text() if file.exists() else ""

    def log_to(where):
        POLICY.write_text(policy.replace('audit-log = "stdout"', f'audit-log = "{where}"'))
        start_clean("enforce")

    policy = POLICY.read_text()
    log_to("journald")
    Prober("journal-caller").stop()
    journal = lambda: run("journalctl", "-b", "-o", "cat", "_TRANSPORT=journal", f"_SYSTEMD_UNIT={UNIT}").stdout
    check("the audit log in the journal, by its own socket", wait_for(lambda: "probe-journal-caller" in journal(), 5), journal())
    log = Path("/var/log/imds-guard/audit.jsonl")
    old = log.with_name(log.name + ".1")
    log_to(log)
    Prober("first-caller").stop()
    rotated = run("logrotate", "--force", "/etc/logrotate.d/imds-guard")
    check("logrotate puts the log aside", True if rotated.returncode == 0 else None, rotated.stderr)
    check("what was before is in the old log", wait_for(lambda: "probe-first-caller" in text(old), 5), text(old))
    # logrotate has told the guard, which opens the new one in its own time.
    later = Prober("second-caller")
    check("what comes after is in the new one", wait_for(lambda: "probe-second-caller" in text(log), 5), text(log))
    later.stop()
    POLICY.write_text(policy)
    return checks


def check_agent():
    """An agent of the shipped policy gets the credentials in enforce mode; a user of the machine does not."""
    start_clean("enforce")
    checks = []
    for unit, uid, wanted in (("amazon-ssm-agent.service", "root", "credentials"), ("login.service", LOGIN, "refused")):
        prober = Prober(unit, unit=unit, uid=uid, slice="system.slice" if uid == "root" else "user-1000.slice")
        got = {sample["result"] for sample in prober.stop()}
        checks.append({"check": f"enforce: {unit} as {uid} gets {wanted}", "pass": got == {wanted}, "detail": str(got)})
    return checks


def main():
    results = Path(sys.argv[1])
    only = OPTIONS["only"].split(",") if OPTIONS.get("only") else None
    verdict = {"boot": [], "matrix": [], "skipped": [], "pass": False}
    try:
        wait_for(lambda: run("systemctl", "list-jobs", "--no-legend").stdout.strip() in ("", "No jobs running."), 90)
        if OPTIONS.get("boot") != "no":
            verdict["boot"] = boot_checks() + check_reloads() + check_logs() + check_agent()
        upgrades = OPTIONS["upgrade"].split(",") if "upgrade" in OPTIONS else []
        for mode in OPTIONS.get("modes", "audit,enforce").split(","):
            for name, fault, returns, patience in FAULTS:
                if only is None or name in only:
                    try:
                        verdict["matrix"].append(measure(mode, name, fault, returns, patience))
                    except NotHere as error:
                        verdict["skipped"].append(f"{mode} {name}: {error}")
            if upgrades:
                package = upgrades.pop(0)
                verdict["matrix"].append(measure(mode, "package-upgrade", lambda: upgrade(package), True, 1.5))
        verdict["pass"] = all(item["pass"] for item in verdict["boot"] + verdict["matrix"])
    except Exception as error:  # a verdict there must be, whatever happened
        verdict["error"] = repr(error) + "\n" + traceback.format_exc()
    (results / "verdict.json").write_text(json.dumps(verdict, indent=1))
    (results / "journal.txt").write_text(run("journalctl", "-b", "--no-pager", "-o", "short-monotonic").stdout)


main()
