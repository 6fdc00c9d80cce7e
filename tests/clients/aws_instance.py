"""boto3, as a program on an EC2 instance with a role uses it."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import boto3  # noqa: E402
from report import report  # noqa: E402


def attempt():
    credentials = boto3.Session().get_credentials()
    return credentials and credentials.get_frozen_credentials().secret_key


report(attempt)
