"""The keeper or the proxy is killed (SIGKILL) at a random moment under load, again and again.

Enforce: nothing but the guard's own connections may leave for the service, and nobody gets an answer that is not his.
Audit: whoever asks is answered, but for those whose connection the guard held when it died.
"""

import os
import signal
import subprocess
import time

from bed import (AGENT_UNIT, CONSTANT, CREDENTIAL, CREDENTIALS, NAME, STRANGER_UID, STRANGER_UNIT, VM, is_running, percentile, say,
                 within)

HEAD = ["mode", "kills", "of the keeper", "requests", "answered as the policy says", "refused or reset while it was down",
        "lost after a kill was over", "wrong answers", "packets past the guard", "without a guard, ms (p50)", "(p99)",
        "slowest answer, ms", "passes"]
TITLE = "Kills"

# How long after a kill a request still counts as one that it met: until the kernel has taken the table or the
# listeners away there is nobody to answer.
SHADOW = 0.25


def run(bed, _):
    return [kill(bed, mode, bed.rounds) for mode in ("enforce", "audit")]


def kill(bed, mode, rounds):
    bed.flush_connection_tracking()
    kills, of_keeper, gaps = [], 0, []
    policy = bed.policy(mode)
    with bed.witness():
        guard = bed.guard(policy)
        agent = bed.asker(AGENT_UNIT, 0, "--path", CREDENTIALS, "--path", CONSTANT, "--every", "0.01", "--askers", "4",
                          "--timeout", "3")
        stranger = bed.asker(STRANGER_UNIT, STRANGER_UID, "--path", CREDENTIALS, "--path", CONSTANT, "--every", "0.01",
                             "--askers", "4", "--timeout", "3")
        time.sleep(0.5)
        for number in range(rounds):
            time.sleep(bed.random.uniform(0, 0.06))
            victim = bed.random.choice(guard.pids())
            of_keeper += victim == guard.keeper.pid
            begun = time.monotonic()
            os.kill(victim, signal.SIGKILL)
            guard.keeper.wait(20)
            while is_running(guard.proxy):
                time.sleep(0.001)
            guard.notices.close()
            guard = bed.guard(policy, keep_log=True)
            kills.append((begun, time.monotonic()))
            gaps.append(kills[-1][1] - begun)
            if number % 100 == 99:
                say(f"kills: {mode}, {number + 1} of {rounds}")
        time.sleep(0.5)
        told = [("agent", *ask) for ask in agent.stop()] + [("stranger", *ask) for ask in stranger.stop()]
        passed = bed.passed_the_guard()
        guard.__exit__()
    subprocess.run(within(VM, "nft", "delete", "table", "inet", "imds_guard"), check=False, capture_output=True)
    return row(mode, kills, of_keeper, gaps, told, passed)


def row(mode, kills, of_keeper, gaps, told, passed):
    right = wrong = met = lost = 0
    for who, begun, took, path, outcome, body in told:
        if is_right(mode, who, path, outcome, body):
            right += 1
        elif outcome.startswith(("200", "404 by", "403 by")) or outcome[0].isdigit():
            wrong += 1
        elif overlaps(kills, begun, begun + took, mode):
            met += 1
        else:
            lost += 1
    # In audit what goes past a dead guard is what shall.
    passes = wrong == 0 and lost == 0 and (mode == "audit" or passed == 0)
    cells = [mode, len(kills), of_keeper, len(told), right, met, lost, wrong, passed if mode == "enforce" else "meant to",
             f"{percentile(gaps, 0.5) * 1e3:.0f}", f"{percentile(gaps, 0.99) * 1e3:.0f}",
             f"{max(took for _, _, took, *_ in told) * 1e3:.0f}", passes]
    return {"passes": passes, "cells": cells}


def is_right(mode, who, path, outcome, body):
    """What the policy gives each of them; without a guard audit lets everybody have everything."""
    if path == CONSTANT:
        return outcome == "200" and body == NAME
    if who == "agent" or mode == "audit":
        return outcome == "200" and body == CREDENTIAL
    return outcome in ("404 by the guard", "403 by the guard")


def overlaps(kills, begun, ended, mode):
    """Whether a kill met the request: in enforce until the next guard is ready, in audit for as long as the end takes."""
    return any(begun <= (ready if mode == "enforce" else killed + SHADOW) and ended >= killed for killed, ready in kills)
