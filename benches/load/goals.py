"""The goals, and whether this run reached them."""

from section import Section


def better(figures, case, key, best=min):
    return best(figures[case, way, key] for way in ("nginx", "haproxy"))


def goals(found):
    """What is wanted, what was measured, and whether that is enough; of what was measured in this run."""
    requests = found.get("requests")
    if requests and {"nginx", "haproxy", "guard"} <= {way for _, way, _ in requests}:
        for case in dict.fromkeys(case for case, _, _ in requests):
            for key, factor in (("p50", 1.0), ("p99", 1.2)):
                ratio = requests[case, "guard", key] / better(requests, case, key)
                yield f"{key}, {case}", f"≤ {factor:.1f} × the better of the two", f"{ratio:.2f} ×", ratio <= factor
            if case.startswith("32"):
                ratio = requests[case, "guard", "rate"] / better(requests, case, "rate", max)
                yield f"requests/s, {case}", "≥ 1.0 × the better of the two", f"{ratio:.2f} ×", ratio >= 1
            ratio = requests[case, "guard", "cpu"] / requests[case, "haproxy", "cpu"]
            yield f"CPU for a request, {case}", "≤ 1.5 × HAProxy", f"{ratio:.2f} ×", ratio <= 1.5
            if {(case, "direct", "p50"), (case, "guard+memory", "p50")} <= requests.keys():
                ratio = requests[case, "guard+memory", "p50"] / requests[case, "direct", "p50"]
                yield f"constants from memory, p50, {case}", "≤ 1.0 × direct", f"{ratio:.2f} ×", ratio <= 1
    if polls := found.get("polls"):
        idle, parked = (polls["guard", key] / 1e6 for key in ("idle", "parked"))
        yield "memory idle", "< 12 MB", f"{idle:.1f} MB", idle < 12
        yield "memory with 1,000 parked long polls", "< 40 MB", f"{parked:.1f} MB", parked < 40
    if body := found.get("body"):
        ratio = body["guard", "rate"] / max(body["nginx", "rate"], body["haproxy", "rate"])
        yield "a body of 100 MB", "told, not promised", f"{ratio:.2f} × the better of the two", None
    if herd := found.get("herd"):
        if ("guard+memory", "upstream") in herd:
            asked = herd["guard+memory", "upstream"]
            yield "64 units ask for one constant", "1 request upstream", f"{asked}", asked == 1
    if idle := found.get("idle"):
        for name, woken in idle.items():
            if not name.startswith("watchdog"):
                yield f"wake-ups at rest: {name}", "0", f"{woken}", woken == 0
    if start := found.get("start"):
        for mode, milliseconds in start.items():
            yield f"start to READY, {mode}", "< 50 ms", f"{milliseconds:.1f} ms", milliseconds < 50
    if size := found.get("size"):
        yield "the stripped program", "< 6 MB", f"{size['megabytes']:.2f} MB", size["megabytes"] < 6
    if events := found.get("events"):
        for pace, one in events.items():
            if pace:
                rate = one["sent"] / one["seconds"]
                good = one["dropped"] == 0 and rate >= 0.99 * pace
                yield "events to a file", f"{pace} a second, none dropped", f"{rate:.0f}, {one['dropped']} dropped", good
            else:
                good = one["written"] + one["told"] == one["sent"] and one["told"] == one["dropped"]
                counted = f"{one['written']} + {one['told']} of {one['sent']}"
                yield "beyond that, written + told as dropped", "= sent", counted, good


def section(found):
    lines = ["| figure | goal | measured | reached |", "|---|---|---|---|"]
    for figure, goal, measured, reached in goals(found):
        lines.append(f"| {figure} | {goal} | {measured} | {'-' if reached is None else 'yes' if reached else '**no**'} |")
    return Section("goals", lines, {})
