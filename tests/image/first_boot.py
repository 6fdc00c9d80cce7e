"""Runs in a Debian that was launched without the guard and told by its user-data to install it: the example for
cloud-init in docs/image.md.

usage: first_boot.py RESULTS

Writes RESULTS/verdict.json, as guest.py does.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

UNIT = "imds-guard.service"


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main():
    checks = []

    def check(name, is_so, detail=""):
        checks.append({"check": f"cloud-init: {name}", "pass": bool(is_so), "detail": str(detail)[-1500:]})

    end = time.monotonic() + 120
    while "status: done" not in run("cloud-init", "status").stdout and time.monotonic() < end:
        time.sleep(0.2)
    said = run("cloud-init", "status", "--long").stdout
    check("its user-data ran to its end", "status: done" in said, said)
    check("the guard is enabled and active", run("systemctl", "is-enabled", UNIT).stdout == "enabled\n"
          and run("systemctl", "is-active", UNIT).stdout == "active\n", run("journalctl", "-u", UNIT, "-n", "30").stdout)
    checked = run("imds-guard", "check", "--json")
    check("the policy has no error", checked.returncode == 0, checked.stdout + checked.stderr)
    team = Path("/etc/imds-guard/policy.d/50-team.toml")
    check("the team's policy is root's alone", team.exists() and team.stat().st_uid == 0 and team.stat().st_mode & 0o022 == 0)
    verified = run("imds-guard", "verify")
    check("connections reach the guard", verified.returncode == 0, verified.stdout + verified.stderr)
    verdict = {"boot": checks, "matrix": [], "pass": all(item["pass"] for item in checks)}
    (Path(sys.argv[1]) / "verdict.json").write_text(json.dumps(verdict, indent=1))


main()
