"""google-auth, as a program on a Compute Engine instance with a service account uses it."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import google.auth.transport.requests  # noqa: E402
from google.auth import compute_engine  # noqa: E402
from report import report  # noqa: E402


def attempt():
    credentials = compute_engine.Credentials()
    credentials.refresh(google.auth.transport.requests.Request())
    return credentials.token


report(attempt)
