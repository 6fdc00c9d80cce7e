"""The ways to the decoy cloud: directly, through nginx, through HAProxy, through imds-guard."""

import contextlib
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

from place import ADDRESS, CLOUD, CLOUD_ADDRESS, VM, process, sh, within

CREDENTIALS = "/latest/meta-data/iam/security-credentials/role"
# The catalogue calls it constant; the decoy cloud gives the same answer for it.
CONSTANT = "/latest/meta-data/instance-id"
LARGE = "/latest/user-data"
LARGE_BYTES = 100_000_000
PROXY_UID, GUARD_UID, AGENT_UID = 64100, 64101, 64102
UNIT = f"imds-bench-{os.getpid()}.service"
REPOSITORY = Path(__file__).resolve().parents[2]


def listens(namespace, port):
    def ready():
        shown = subprocess.run(within(namespace, "ss", "-Hltn", f"sport = :{port}"), capture_output=True, text=True)
        return bool(shown.stdout.strip())

    return ready


NGINX_COMMON = """
daemon off; pid {work}/{name}.pid; error_log {work}/{name}.err; worker_processes 1; worker_rlimit_nofile 16384; user {user};
events {{ worker_connections 8192; }}
"""

CLOUD_NGINX = NGINX_COMMON + """
http {{ access_log off; keepalive_requests 100000000; keepalive_timeout 300s;
  server {{ listen {address}:80 backlog=4096;
    location = {large} {{ alias {work}/large; sendfile on; }}
    location / {{ default_type application/json; return 200 '{{"Code":"Success","AccessKeyId":"ASIAEXAMPLE","SecretAccessKey":"example","Token":"{token}","Expiration":"2030-01-01T00:00:00Z"}}'; }} }}
  server {{ listen {counter}:81; location / {{ stub_status; }} }} }}
"""

PROXY_NGINX = NGINX_COMMON + """
http {{ access_log {work}/nginx.access.log; keepalive_requests 100000000;
  upstream imds {{ server {address}:80; keepalive 64; keepalive_requests 100000000; }}
  server {{ listen 127.0.0.1:8181 backlog=4096;
    location / {{ proxy_max_temp_file_size 0; proxy_pass http://imds; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host; }} }} }}
"""

HAPROXY = """
global
  maxconn 8192
  nbthread 1
  uid {uid}
  log stdout format raw local0
defaults
  mode http
  log global
  option httplog
  http-reuse always
  timeout connect 5s
  timeout client 300s
  timeout server 300s
frontend in
  bind 127.0.0.1:8182 backlog 4096
  default_backend imds
backend imds
  server imds {address}:80
"""


def redirect(port, uid):
    """The guard's own redirect rule, for a proxy that is not the guard."""
    return f"""
table ip bench {{
    chain redirect_output {{
        type nat hook output priority -110; policy accept;
        meta skuid {uid} accept
        ip daddr {ADDRESS} tcp dport 80 redirect to :{port}
    }}
}}
"""


@contextlib.contextmanager
def rules(text):
    sh(*within(VM, "nft", "-f", "-"), input=text)
    try:
        yield
    finally:
        sh(*within(VM, "nft", "delete", "table", "ip", "bench"))


class Ways:
    def __init__(self, binary, work):
        self.binary, self.work = Path(binary).resolve(), Path(work)
        self.all = {"direct": self.direct, "nginx": self.nginx, "haproxy": self.haproxy, "guard": self.guard,
                    "guard+exe": lambda: self.guard(exe=True), "guard+memory": lambda: self.guard(memory=True)}

    def write(self, name, text):
        path = self.work / name
        path.write_text(text)
        return str(path)

    @contextlib.contextmanager
    def by(self, way):
        """Gives the process of that way; none on the direct one."""
        # What the redirect of the one before left in connection tracking would lead to its closed port.
        sh(*within(VM, "conntrack", "-F"))
        with self.all[way]() as child:
            yield child

    def cloud(self):
        large = self.work / "large"
        if not large.exists():
            with large.open("wb") as file:
                file.truncate(LARGE_BYTES)
        text = CLOUD_NGINX.format(work=self.work, name="cloud", user="root", address=ADDRESS, token="T" * 800,
                                  counter=CLOUD_ADDRESS, large=LARGE)
        words = within(CLOUD, "nginx", "-c", self.write("cloud.conf", text))
        return process(words, listens(CLOUD, 80), self.work / "cloud.log")

    def reached(self):
        """How many requests the cloud has answered."""
        shown = sh(*within(CLOUD, "curl", "-s", f"http://{CLOUD_ADDRESS}:81/")).stdout
        return int(shown.splitlines()[2].split()[2])

    @contextlib.contextmanager
    def direct(self):
        yield None

    @contextlib.contextmanager
    def nginx(self):
        text = PROXY_NGINX.format(work=self.work, name="nginx", user="nobody", address=ADDRESS)
        text = text.replace("user nobody;", "")
        words = within(VM, "setpriv", f"--reuid={PROXY_UID}", "--clear-groups", "nginx", "-c", self.write("nginx.conf", text))
        with process(words, listens(VM, 8181), self.work / "nginx.log") as child, rules(redirect(8181, PROXY_UID)):
            yield child

    @contextlib.contextmanager
    def haproxy(self):
        config = self.write("haproxy.conf", HAPROXY.format(address=ADDRESS, uid=PROXY_UID))
        words = within(VM, "haproxy", "-db", "-f", config)
        with process(words, listens(VM, 8182), self.work / "haproxy.log") as child, rules(redirect(8182, PROXY_UID)):
            yield child

    def policy(self, exe=False, memory=False, mode="enforce", cloud="aws", guard=()):
        """The shipped policy with one agent more, and with what this machine cannot have taken out."""
        policy = (REPOSITORY / "policy.toml").read_text()
        log = self.work / "log" / "guard.audit.log"
        log.parent.mkdir(exist_ok=True)  # root's alone to write, so that it can be rotated there
        for key, value in (("mode", mode), ("cloud", cloud), ("user", GUARD_UID), ("audit-log", log)):
            policy = re.sub(rf'(?m)^{key} *=.*$', f'{key} = "{value}"', policy, count=1)
        policy = re.sub(r'(?m)^status-socket *=.*\n', '', policy, count=1)
        policy += f'\n[[agent]]\nname = "bench"\nunit = "{UNIT}"\nuser = "{AGENT_UID}"\n'
        policy += 'allow = ["credentials", "config", "session", "user-data"]\n'
        if exe:
            policy += f'exe = ["{shutil.which("wrk")}"]\n'
        keys = [*guard, *(['cache = "constants"'] if memory else [])]
        for key in keys:
            policy = re.sub(r'(?m)^\[guard\]$', f'[guard]\n{key}', policy, count=1)
        return policy

    @contextlib.contextmanager
    def guard(self, environment=None, **policy):
        config = self.write("policy.toml", self.policy(**policy))
        os.chmod(config, 0o644)
        with Manager(self.work) as manager:
            words = within(VM, str(self.binary), "run", "--config", config)
            environment = {**os.environ, "NOTIFY_SOCKET": manager.path, **(environment or {})}
            try:
                with process(words, manager.is_ready, self.work / "guard.log", env=environment) as child:
                    yield child
            finally:
                subprocess.run(within(VM, "nft", "delete", "table", "inet", "imds_guard"), capture_output=True, check=False)


class Manager:
    """A service manager's ear."""

    def __init__(self, work):
        self.path = str(work / "notify")

    def __enter__(self):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        return self

    def __exit__(self, *_):
        self.socket.close()
        os.unlink(self.path)

    def is_ready(self):
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                if b"READY=1" in self.socket.recv(4096).split(b"\n"):
                    return True
        return False

    def wait(self, seconds):
        """Waits for READY without looking again and again."""
        self.socket.settimeout(seconds)
        while b"READY=1" not in self.socket.recv(4096).split(b"\n"):
            pass
