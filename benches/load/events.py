"""Events to a file: how many a second the audit log takes, and that whatever it does not take is counted."""

import json

from place import sh
from section import Section


def measure(bench):
    bench.say("events to a file")
    log = bench.work / "events.jsonl"
    found = json.loads(sh(bench.arguments.events, str(log), str(bench.arguments.event_seconds)).stdout)
    log.unlink()
    lines = [
        f"Events of {found[0]['bytes']} bytes each, from as many threads as there are processors, into a file, for "
        f"{bench.arguments.event_seconds} s each; written and told are counted in the file.",
        "",
        "| pace | sent | a second | written | dropped | told as dropped |",
        "|---|---|---|---|---|---|",
    ]
    for one in found:
        pace = f"{one['pace']} a second" if one["pace"] else "as fast as it goes"
        rate = one["sent"] / one["seconds"]
        lines.append(f"| {pace} | {one['sent']} | {rate:.0f} | {one['written']} | {one['dropped']} | {one['told']} |")
    figures = {one["pace"]: one for one in found}
    return Section("events", lines, figures)
