#!/usr/bin/env python3
"""What the guard does under fire: floods, kills, broken surroundings, storms of reloads, hours. Called by `make soak`."""

import argparse
import contextlib
import datetime
import importlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import bed  # noqa: E402

# By name: the room, and how many seconds it takes at least. What is measured by rounds takes what the rounds take.
SCENARIOS = {"fairness": 120, "kills": 0, "reloads": 0, "surroundings": 0, "steady": 60}
PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


@contextlib.contextmanager
def workplace(keep):
    if keep:
        Path(keep).mkdir(parents=True, exist_ok=True)
        yield keep
    else:
        with tempfile.TemporaryDirectory(prefix="imds-soak-") as work:
            yield work


def machine():
    cores = os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return f"Linux {platform.release()}, {cores} cores, {memory} GiB"


def versions(binary):
    guard = subprocess.run([binary, "--version"], text=True, capture_output=True, check=True).stdout.strip()
    nft = subprocess.run(["nft", "--version"], text=True, capture_output=True, check=True).stdout.split(" (")[0].strip()
    return f"{guard}, {nft}"


def cell(value):
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    return f"{value:,}" if isinstance(value, int) else str(value)


def table(room, rows):
    lines = ["| " + " | ".join(room.HEAD) + " |", "|" + "---|" * len(room.HEAD)]
    lines += ["| " + " | ".join(cell(value) for value in row["cells"]) + " |" for row in rows]
    return "\n".join(lines)


def write_down(name, text):
    """Puts a scenario's table into its block of the page, where nobody types anything by hand."""
    page = PAGE.read_text()
    begin, end = f"<!-- soak {name}: written by the command -->", f"<!-- soak {name}: end -->"
    new, count = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda _: f"{begin}\n{text}\n{end}", page, flags=re.S)
    if count != 1:
        sys.exit(f"soak: {PAGE} has no block for {name}")
    PAGE.write_text(new)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; all if none is named")
    parser.add_argument("--binary", default="target/release/imds-guard")
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("SOAK_SECONDS") or 0),
                        help="for each scenario that is measured by time")
    parser.add_argument("--rounds", type=int, default=int(os.environ.get("SOAK_ROUNDS") or 1000), help="of kills and of reloads")
    parser.add_argument("--json", metavar="FILE", help="also write the verdict to this file")
    parser.add_argument("--docs", action="store_true", help="also put the tables into docs/reliability.md")
    parser.add_argument("--keep", metavar="DIRECTORY", help="keep logs there")
    options = parser.parse_args()
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"no such scenario: {', '.join(unknown)}")
    # Told to end, it cleans up as it does at any other end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if os.geteuid() != 0:
        sys.exit("soak: must run as root (it makes network namespaces)")
    names = options.scenarios or list(SCENARIOS)
    about = f"{machine()}; {versions(options.binary)}"
    print(f"{datetime.date.today()}, {about}\n")
    verdict = {"date": str(datetime.date.today()), "machine": machine(), "versions": versions(options.binary), "scenarios": {}}
    for name in names:
        verdict["scenarios"][name] = carry_out(name, options, about)
    passes = all(scenario["passes"] for scenario in verdict["scenarios"].values())
    verdict["passes"] = passes
    if options.json:
        Path(options.json).write_text(json.dumps(verdict, indent=1) + "\n")
    print("all passed" if passes else "FAILED: " + ", ".join(n for n, s in verdict["scenarios"].items() if not s["passes"]))
    sys.exit(0 if passes else 1)


def carry_out(name, options, about):
    room = importlib.import_module(name)
    begun = time.monotonic()
    bed.say(f"{name} begins")
    rows, why = [], None
    with workplace(options.keep and f"{options.keep}/{name}") as work:
        os.chmod(work, 0o755)
        with bed.Bed(options.binary, work) as place:
            place.rounds = options.rounds
            try:
                rows = room.run(place, options.seconds or SCENARIOS[name])
            except bed.Failed as failed:
                why = str(failed)
    took = time.monotonic() - begun
    passes = why is None and all(row["passes"] for row in rows)
    text = f"{datetime.date.today()}, {about}; {took:.0f} s\n\n{table(room, rows)}"
    print(f"## {room.TITLE}\n\n{text}\n{why or ''}\n", flush=True)
    if options.docs and why is None:
        write_down(name, text)
    return {"passes": passes, "seconds": round(took), "failed": why,
            "rows": [dict(zip(room.HEAD, row["cells"])) for row in rows]}


if __name__ == "__main__":
    main()
