"""A thousand reloads under load, between two policies that differ in two places, one in ten of them broken.

By the first policy the stranger may have the constant, as everybody may, and not the credential; by the second the
credential and not the constant; and the events name the rules. What is judged by half of one and half of the other shows as a pair that
neither gives.
"""

import collections
import time

from bed import AGENT_UNIT, CONSTANT, CREDENTIAL, CREDENTIALS, NAME, STRANGER_UID, STRANGER_UNIT, percentile, say

HEAD = ["reloads", "of them broken", "refused by the guard", "requests", "by the first policy", "by the second", "by neither",
        "lost", "events of two policies", "ms for a reload (p50)", "(p99)", "passes"]
TITLE = "Storm of reloads"

FIRST = """
[[rule]]
name = "the first denies"
user = "{uid}"
action = "deny"
path = "/*/meta-data/iam/security-credentials/role"
"""
SECOND = """
[[rule]]
name = "the second denies"
user = "{uid}"
action = "deny"
path = "/*/meta-data/instance-id"

[[rule]]
name = "the second"
user = "{uid}"
action = "allow"
path = "/*/meta-data/iam/security-credentials/role"
"""
# What either policy says of the stranger's requests, as rule and verdict.
SAYS = {(CONSTANT, None, "allow"), (CREDENTIALS, "the first denies", "deny"),
        (CONSTANT, "the second denies", "deny"), (CREDENTIALS, "the second", "allow")}


def run(bed, _):
    first, second = (bed.policy(more=more.format(uid=STRANGER_UID)) for more in (FIRST, SECOND))
    took, broken = [], 0
    with bed.guard(first) as guard:
        agent = bed.asker(AGENT_UNIT, 0, "--path", CREDENTIALS, "--every", "0.01", "--askers", "4")
        stranger = bed.asker(STRANGER_UNIT, STRANGER_UID, "--path", CREDENTIALS, "--path", CONSTANT, "--every", "0.005",
                             "--askers", "8", "--keep")
        time.sleep(0.5)
        for number in range(bed.rounds):
            text = second if number % 2 == 0 else first
            if number % 10 == 9:
                # Well-formed up to the last line, where it is not.
                text, broken = text + "\n[[rule]]\nname = 1\n", broken + 1
            bed.write_policy(text)
            begun = time.monotonic()
            guard.reload()
            took.append(time.monotonic() - begun)
            if number % 100 == 99:
                say(f"reloads: {number + 1} of {bed.rounds}")
        asked_by_agent, asked = agent.stop(), stranger.stop()
        refused = guard.said().count("the policy was not reloaded")
    outcomes = collections.Counter(judged(*ask[2:]) for ask in asked)
    lost = outcomes["lost"] + sum(outcome != "200" or body != CREDENTIAL for *_, outcome, body in asked_by_agent)
    mixed = sum((event["url.path"], event.get("rule.name"), event.get("imds_guard.verdict")) not in SAYS
                for event in bed.events() if event.get("user.id") == str(STRANGER_UID) and event["event.action"] == "request")
    passes = (refused == broken and lost == 0 and mixed == 0 and outcomes["neither"] == 0
              and outcomes["first"] > 0 and outcomes["second"] > 0)
    cells = [bed.rounds, broken, refused, len(asked) + len(asked_by_agent), outcomes["first"], outcomes["second"],
             outcomes["neither"], lost, mixed, f"{percentile(took, 0.5) * 1e3:.1f}", f"{percentile(took, 0.99) * 1e3:.1f}", passes]
    return [{"passes": passes, "cells": cells}]


def judged(path, outcome, body):
    """By which policy an answer is right."""
    has, right = outcome == "200", body == (NAME if path == CONSTANT else CREDENTIAL)
    if outcome.endswith("by the guard"):
        return "second" if path == CONSTANT else "first"
    if has:
        return "neither" if not right else "first" if path == CONSTANT else "second"
    return "lost"
