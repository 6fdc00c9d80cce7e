"""Runs in a booted Debian without the guard: installs, upgrades under load, removes and purges the package.

usage: packages.py RESULTS OLD.deb NEW.deb

The new package is the old one with a higher version and another shipped policy. Writes RESULTS/verdict.json.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

UNIT = "imds-guard.service"
POLICY = Path("/etc/imds-guard/policy.toml")
OURS = "# changed by the administrator\n"
checks = []


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


def check(name, is_so, detail=""):
    checks.append({"check": name, "pass": bool(is_so), "detail": str(detail)[-1500:]})


def show(what):
    return run("systemctl", "show", UNIT, "-p", what, "--value").stdout.strip()


def table():
    return run("nft", "list", "table", "inet", "imds_guard").stdout


def dpkg(*arguments):
    result = run("dpkg", "--force-confold", *arguments)
    check(f"dpkg {arguments[0]} succeeds", result.returncode == 0, result.stdout + result.stderr)
    return result


def set_mode(mode):
    text = POLICY.read_text()
    for old in ("audit", "enforce"):
        text = text.replace(f'\nmode = "{old}"\n', f'\nmode = "{mode}"\n')
    # A container shows the host's firmware strings, so that the cloud is named.
    POLICY.write_text(text.replace('\ncloud = "auto"\n', '\ncloud = "aws"\n'))


class Load:
    """An unprivileged caller who asks for the credentials all the time."""

    def __init__(self, name):
        self.unit, self.output = f"load-{name}.service", Path(f"/run/load-{name}")
        self.output.touch(mode=0o666)
        self.output.chmod(0o666)
        run("systemd-run", f"--unit={self.unit}", "--uid=nobody", "python3", "/opt/image-test/probe.py", str(self.output))
        time.sleep(0.5)

    def stop(self):
        time.sleep(1)
        run("systemctl", "stop", self.unit)
        counts = {}
        for line in self.output.read_text().splitlines():
            result = json.loads(line)["result"]
            counts[result] = counts.get(result, 0) + 1
        return counts


def installed(old):
    dpkg("-i", old)
    check("install: enabled and active", run("systemctl", "is-enabled", UNIT).stdout.strip() == "enabled"
          and show("ActiveState") == "active", run("journalctl", "-u", UNIT, "-n", "30", "-o", "cat").stdout)
    check("install: the redirect of audit mode is in place", "flags owner" in table(), table())
    check("install: the guard's user exists", run("id", "imds-guard").returncode == 0)
    check("install: the policy is root's alone", POLICY.stat().st_uid == 0 and POLICY.stat().st_mode & 0o022 == 0)
    for path in ("/usr/share/man/man1/imds-guard.1.gz", "/usr/share/bash-completion/completions/imds-guard",
                 "/usr/share/doc/imds-guard/copyright", "/etc/logrotate.d/imds-guard"):
        check(f"install: {path}", Path(path).exists())
    check("install: logrotate takes its file", run("logrotate", "-d", "/etc/logrotate.d/imds-guard").returncode == 0)


def upgraded(mode, package):
    set_mode(mode)
    POLICY.write_text(POLICY.read_text() + OURS)
    run("systemctl", "reload", UNIT)
    time.sleep(1)
    before, load = show("InvocationID"), Load(mode)
    dpkg("-i", package)
    got = load.stop()
    check(f"upgrade in {mode}: restarted and active", show("ActiveState") == "active" and show("InvocationID") != before)
    check(f"upgrade in {mode}: the changed policy is kept", OURS in POLICY.read_text())
    others = {what: count for what, count in got.items() if what != ("refused" if mode == "enforce" else "credentials")}
    if mode == "enforce":
        check("upgrade in enforce: never an unguarded answer", "credentials" not in got, got)
        check("upgrade in enforce: nobody's connection was refused", not others, got)
    else:
        check("upgrade in audit: nothing lost beyond a request in flight", sum(others.values()) <= 1, got)


def removed():
    dpkg("--remove", "imds-guard")
    check("remove: no table is left", not table(), table())
    check("remove: no process is left", run("pgrep", "-x", "imds-guard").returncode != 0)
    check("remove: the policy stays", OURS in POLICY.read_text())


def purged():
    dpkg("--purge", "imds-guard")
    left = run("sh", "-c", "find / -xdev -iname '*imds-guard*' -not -path '/proc/*' -not -path '/sys/*' "
               "-not -path '/var/lib/dpkg/*' -not -path '/results/*' -not -path '/run/systemd/*'").stdout
    check("purge: no file is left", not left.strip(), left)
    check("purge: no user is left", run("id", "imds-guard").returncode != 0)
    check("purge: no table is left", not table())


def main():
    results, old, new = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    error = None
    try:
        for _ in range(600):
            if run("systemctl", "list-jobs", "--no-legend").stdout.strip() in ("", "No jobs running."):
                break
            time.sleep(0.1)
        installed(old)
        upgraded("audit", new)
        upgraded("enforce", old)
        removed()
        dpkg("-i", new)
        check("install again: active", show("ActiveState") == "active")
        removed()
        purged()
    except Exception as problem:  # a verdict there must be, whatever happened
        error = repr(problem)
    verdict = {"boot": checks, "matrix": [], "pass": error is None and all(item["pass"] for item in checks)}
    if error:
        verdict["error"] = error
    (results / "verdict.json").write_text(json.dumps(verdict, indent=1))


main()
