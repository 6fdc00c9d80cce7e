"""One user floods in every way; what does a root agent notice that asks ten times a second?"""

import json
import signal
import time

import flood
from bed import AGENT_UNIT, CREDENTIALS, FLOOD_UID, FLOOD_UNIT, HERE, percentile, python, say

HEAD = ["flood", "agent's p99 calm, ms", "in the flood, ms", "ratio", "failed", "flooder's connections", "closed by the guard",
        "requests answered", "of them 429", "events of the flood", "passes"]
TITLE = "Fairness"
ASKERS = 10


def run(bed, seconds):
    """Calm and flood take turns, so that whatever else the machine does meets both."""
    rounds, span = 3, max(3.0, seconds / 6 / 6)
    rows = []
    for kind in flood.KINDS:
        say(f"fairness: {kind}")
        with bed.guard(bed.policy()):
            calm, flooded, told = [], [], []
            ask(bed, 1)  # the first ask of all pays for what the later ones find ready
            for _ in range(rounds):
                calm += ask(bed, span)
                flooder = bed.caller(FLOOD_UNIT, FLOOD_UID, python(), "-S", "-E", str(HERE / "flood.py"), kind)
                time.sleep(1)
                flooded += ask(bed, span)
                flooder.send_signal(signal.SIGTERM)
                told.append(json.loads(flooder.communicate(timeout=60)[0]))
                time.sleep(0.5)
        rows.append(row(bed, kind, calm, flooded, told))
    return rows


def ask(bed, seconds):
    return bed.asker(AGENT_UNIT, 0, "--path", CREDENTIALS, "--askers", str(ASKERS), "--seconds", str(seconds)).results()


def row(bed, kind, calm, flooded, told):
    before, during = (percentile([took for _, took, *_ in asks], 0.99) * 1e3 for asks in (calm, flooded))
    failed = sum(outcome != "200" for *_, outcome, _ in calm + flooded)
    connections, closed, answered = (sum(count[key] for count in told) for key in ("connections", "closed", "answered"))
    limited = sum(count["statuses"].get("429", 0) for count in told)
    events = sum(event.get("user.id") == str(FLOOD_UID) for event in bed.events())
    attempts = connections + answered
    passes = during < 3 * before and failed == 0 and (closed + limited > 0) and events < attempts
    return {"passes": passes, "cells": [kind, f"{before:.2f}", f"{during:.2f}", f"{during / before:.2f}", failed, connections,
                                        closed, answered, limited, events, passes]}
