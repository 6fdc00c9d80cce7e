"""azure-identity, as a program on an Azure virtual machine with a managed identity uses it."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from azure.identity import ManagedIdentityCredential  # noqa: E402
from report import report  # noqa: E402


def attempt():
    return ManagedIdentityCredential().get_token("https://management.azure.com/.default").token


report(attempt)
