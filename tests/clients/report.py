"""Runs one attempt to get credentials and prints how it went, as one line of JSON."""

import json
import time


def report(attempt):
    """Calls `attempt`, which gives the secret or raises, and prints what came of it."""
    secret, error = None, ""
    start = time.monotonic()
    try:
        secret = attempt()
        if not secret:
            secret, error = None, "no credentials"
    except Exception as exception:  # each library has exceptions of its own; any of them is a clean failure
        error = f"{type(exception).__name__}: {exception}"
    seconds = time.monotonic() - start
    print(json.dumps({"secret": secret, "error": error, "seconds": seconds}))
