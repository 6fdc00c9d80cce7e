"""What google-auth does with the metadata server, by the standard library alone.

usage: mtls_fallback.py DIRECTORY PATH

Asks by mutual TLS with DIRECTORY/root.crt and DIRECTORY/client.key, and by plain HTTP if that fails with a TLS error.
A refused or reset connection is no TLS error: that ends the attempt. One line of JSON tells how it went.
"""

import http.client
import json
import socket
import ssl
import sys

ADDRESS = "169.254.169.254"
NAME = "metadata.google.internal"
TIMEOUT = 8


def ask(sock, path):
    connection = http.client.HTTPConnection(NAME)
    connection.sock = sock
    connection.request("GET", path, headers={"Metadata-Flavor": "Google"})
    response = connection.getresponse()
    return {"status": response.status, "body": response.read().decode(errors="replace")}


def by_tls(directory, path):
    context = ssl.create_default_context()
    context.load_verify_locations(cafile=f"{directory}/root.crt")
    context.load_cert_chain(certfile=f"{directory}/client.key")
    sock = socket.create_connection((ADDRESS, 443), TIMEOUT)
    return {"scheme": "https"} | ask(context.wrap_socket(sock, server_hostname=NAME), path)


def main(directory, path):
    try:
        return by_tls(directory, path)
    except ssl.SSLError as error:
        plain = {"scheme": "http", "tls": error.reason}
        return plain | ask(socket.create_connection((ADDRESS, 80), TIMEOUT), path)
    except OSError as error:
        return {"scheme": "none", "error": type(error).__name__}


print(json.dumps(main(*sys.argv[1:])))
