"""Ways of passing for somebody else, each a function. What the metadata service answered is written to stdout.

usage: tricks.py TRICK SCRATCH [ARGUMENT...]

SCRATCH is a directory of the caller's own. A trick that this machine has not the means for says why on stderr and
ends with status 77; one that the kernel refuses, as it must, writes "refused by the kernel".
"""

import ctypes
import mmap
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

SERVICE = ("169.254.169.254", 80)
ROLE = "/latest/meta-data/iam/security-credentials/decoy-role"
HARMLESS = "/latest/meta-data/instance-id"
URL = "http://169.254.169.254" + ROLE
AGENT = "/usr/bin/curl"
CODE = sys.orig_argv[sys.orig_argv.index("-c") + 1]
LIBC = ctypes.CDLL(None, use_errno=True)

PR_SET_NAME, PR_SET_MM, PR_SET_MM_EXE_FILE = 15, 35, 13
PTRACE_TRACEME, PTRACE_CONT = 0, 7


def python():
    return os.path.realpath("/usr/bin/python3")


def skip(why):
    print("skipped: " + why, file=sys.stderr)
    os._exit(77)


def refused_by_the_kernel():
    os.write(1, b"refused by the kernel\n")


def again(trick, *arguments):
    """The command line, behind the program, that runs another trick of this file."""
    return ["-I", "-S", "-c", CODE, trick, *map(str, arguments)]


def request(path=ROLE):
    return "GET {} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n".format(path).encode()


def connect(port=None):
    sock = socket.socket()
    sock.settimeout(5)
    if port is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("10.99.0.2", port))
    sock.connect(SERVICE)
    return sock


def read_answer(sock):
    """One whole answer, or what came of it."""
    data = b""
    try:
        while b"\r\n\r\n" not in data:
            block = sock.recv(65536)
            if not block:
                return data
            data += block
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        length = int(lengths[0].split(b":")[1]) if lengths else 0
        while len(body) < length:
            block = sock.recv(65536)
            if not block:
                break
            data, body = data + block, body + block
    except OSError as error:
        data += repr(error).encode()
    return data


def tell(answer):
    os.write(1, answer + b"\n")


def ask(sock, path=ROLE):
    sock.sendall(request(path))
    tell(read_answer(sock))


def holding_agent(sock, scratch):
    """The agent's genuine program, which holds the socket and waits for a pipe that nobody writes to."""
    pipe = os.path.join(scratch, "never")
    if not os.path.exists(pipe):
        os.mkfifo(pipe)
    command = [AGENT, "-q", "-s", "file://" + pipe]
    child = subprocess.Popen(command, pass_fds=[sock.fileno()], stdin=subprocess.DEVNULL)
    while os.readlink("/proc/{}/exe".format(child.pid)) != os.path.realpath(AGENT):
        time.sleep(0.01)
    return child


def copy(source, scratch, name="curl"):
    target = os.path.join(scratch, name)
    shutil.copyfile(source, target)
    os.chmod(target, 0o755)
    return target


# What the program is.


def plain(scratch):
    ask(connect())


def renamed_copy_of_the_agent(scratch):
    subprocess.run([copy(AGENT, scratch), "-q", "-s", "--max-time", "8", URL])


def another_program_of_that_name(scratch):
    subprocess.run([copy(python(), scratch), *again("plain", scratch)])


def forged_name_and_arguments(scratch):
    os.execv(python(), [AGENT, *again("forged_comm", scratch)])


def forged_comm(scratch):
    LIBC.prctl(PR_SET_NAME, b"curl", 0, 0, 0)
    ask(connect())


def symlink_of_that_name(scratch):
    link = os.path.join(scratch, "curl")
    os.symlink(python(), link)
    subprocess.run([link, *again("plain", scratch)])


def hardlink_of_that_name(scratch):
    link = os.path.join(scratch, "curl")
    try:
        os.link(python(), link)
    except OSError:
        os.link(copy(python(), scratch, "other"), link)
    subprocess.run([link, *again("plain", scratch)])


def hardlink_of_the_agent(scratch):
    link = os.path.join(scratch, "other")
    try:
        os.link(AGENT, link)
    except OSError:
        os.link(copy(AGENT, scratch), link)
    subprocess.run([link, "-q", "-s", "--max-time", "8", URL])


def deleted_program(scratch):
    program = copy(python(), scratch)
    os.execv(program, [program, *again("deleted_then_ask", scratch, program)])


def deleted_then_ask(scratch, program):
    os.unlink(program)
    ask(connect())


def replaced_program(scratch):
    """Runs a file of its own, and puts a link to the agent's genuine one in its place."""
    program = copy(python(), scratch)
    os.execv(program, [program, *again("replaced_then_ask", scratch, program)])


def replaced_then_ask(scratch, program):
    os.symlink(AGENT, program + ".new")
    os.rename(program + ".new", program)
    ask(connect())


def path_with_deleted_in_it(scratch):
    program = copy(python(), scratch, "curl (deleted)")
    subprocess.run([program, *again("plain", scratch)])


def memfd(scratch):
    fd = os.memfd_create("curl", 0)
    with open(AGENT, "rb") as file:
        os.write(fd, file.read())
    path = "/proc/self/fd/{}".format(fd)
    os.execv(path, [AGENT, "-q", "-s", "--max-time", "8", URL])


def started_by_ld_so(scratch):
    loader = next((path for path in ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")
                   if os.path.exists(path)), None)
    if loader is None:
        skip("no dynamic loader at a known place")
    os.execv(loader, [loader, AGENT, "-q", "-s", "--max-time", "8", URL])


def script_of_that_name(scratch):
    script = os.path.join(scratch, "curl")
    body = "import os, sys\nos.execv('{0}', ['{1}'] + sys.argv[1:])\n".format(python(), AGENT)
    with open(script, "w") as file:
        file.write("#!{}\n{}".format(python(), body))
    os.chmod(script, 0o755)
    subprocess.run([script, *again("plain", scratch)])


def preloaded_agent(scratch):
    os.execve(AGENT, [AGENT, "-q", "-s", "--max-time", "8", URL], {"LD_PRELOAD": "libm.so.6"})


def traced_agent(scratch):
    child = os.fork()
    if child == 0:
        if LIBC.ptrace(PTRACE_TRACEME, 0, None, None) != 0:
            os._exit(77)
        os.execv(AGENT, [AGENT, "-q", "-s", "--max-time", "8", URL])
    while True:
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            break
        passed = 0 if os.WSTOPSIG(status) == signal.SIGTRAP else os.WSTOPSIG(status)
        LIBC.ptrace(PTRACE_CONT, child, None, ctypes.c_void_p(passed))
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 77:
        skip("ptrace is not to be had here")


def in_own_namespaces(script, *arguments):
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, *arguments]
    if subprocess.run(command[:4] + ["true"], stderr=subprocess.DEVNULL).returncode != 0:
        skip("this kernel gives no user namespaces to users")
    subprocess.run(command)


def fake_mounted_over_the_agent(scratch):
    script = 'mount --bind "$0" {0} && exec {0} "$@"'.format(AGENT)
    in_own_namespaces(script, copy(python(), scratch), *again("plain", scratch))


def agent_in_own_namespaces(scratch):
    in_own_namespaces('exec "$0" "$@"', AGENT, "-q", "-s", "--max-time", "8", URL)


def changed_exe_link(scratch):
    agent = os.open(AGENT, os.O_RDONLY)
    if LIBC.prctl(PR_SET_MM, PR_SET_MM_EXE_FILE, agent, 0, 0) == 0:
        tell(b"the kernel changed the link")
    else:
        refused_by_the_kernel()
    ask(connect())


# Who holds the socket.


def connect_then_exec(scratch):
    """The socket's creator becomes the agent's program; a child that was forked before reads the answer."""
    sock = connect()
    os.mkfifo(os.path.join(scratch, "never"))
    if os.fork() != 0:
        sock.set_inheritable(True)
        os.execv(AGENT, [AGENT, "-q", "-s", "--max-time", "3", "file://" + scratch + "/never"])
    time.sleep(0.3)
    ask(sock)
    os.kill(os.getppid(), signal.SIGKILL)


def send_then_exec(scratch):
    """The request leaves while nobody but the agent's program shows: the kernel holds its bytes back for a moment."""
    sock = connect()
    keep, passed = socket.socketpair(socket.AF_UNIX)
    socket.send_fds(passed, [b"x"], [sock.fileno()])
    if os.fork() == 0:
        sock.close()
        time.sleep(1)
        _, fds, _, _ = socket.recv_fds(keep, 1, 1)
        tell(read_answer(socket.socket(fileno=fds[0])))
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(0)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    sock.sendall(request())
    sock.set_inheritable(True)
    os.mkfifo(os.path.join(scratch, "never"))
    os.execv(AGENT, [AGENT, "-q", "-s", "--max-time", "3", "file://" + scratch + "/never"])


def in_flight(scratch):
    """While the request is judged no process holds the socket: it lies in the queue of another one."""
    sock = connect()
    keep, passed = socket.socketpair(socket.AF_UNIX)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    sock.sendall(request())
    socket.send_fds(passed, [b"x"], [sock.fileno()])
    sock.close()
    time.sleep(1)
    _, fds, _, _ = socket.recv_fds(keep, 1, 1)
    tell(read_answer(socket.socket(fileno=fds[0])))


def shared_with_the_agent(scratch):
    sock = connect()
    child = holding_agent(sock, scratch)
    ask(sock)
    child.kill()


def exit_before_the_look_up(scratch):
    for _ in range(20):
        child = os.fork()
        if child == 0:
            sock = connect()
            sock.sendall(request())
            os._exit(0)
        os.waitpid(child, 0)
    time.sleep(0.3)


def dead_leader(scratch):
    """The first thread ends, and with it the process's own table of descriptors; another thread asks."""
    sock = connect()
    child = holding_agent(sock, scratch)

    def thread():
        state = "/proc/{}/stat".format(os.getpid())
        while open(state).read().rsplit(")", 1)[1].split()[0] != "Z":
            time.sleep(0.01)
        ask(sock)
        child.kill()
        os._exit(0)

    threading.Thread(target=thread).start()
    LIBC.syscall(60 if os.uname().machine == "x86_64" else 93, 0)


def pidfd_getfd(pid, number):
    pidfd = os.pidfd_open(pid)
    fd = LIBC.syscall(438, pidfd, number, 0)
    return fd


def take_from_the_agent(scratch):
    """Takes the socket of the genuine agent, which has just asked for something, and asks through it."""
    agent = subprocess.Popen([AGENT, "-q", "-s", "http://169.254.169.254" + HARMLESS], stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 1.5
    while time.monotonic() < limit:
        for number in range(3, 16):
            fd = pidfd_getfd(agent.pid, number)
            if fd < 0:
                continue
            try:
                sock = socket.socket(fileno=fd)
                if sock.getpeername() != SERVICE:
                    continue
            except OSError:
                continue
            os.kill(agent.pid, signal.SIGSTOP)
            sock.settimeout(5)
            tell(read_answer(sock))
            ask(sock)
            agent.kill()
            return
        time.sleep(0.01)
    skip("the agent was too quick")


def source_port_of_a_listener(scratch, port):
    try:
        sock = connect(int(port))
    except OSError as error:
        tell(repr(error).encode())
        refused_by_the_kernel()
        return
    ask(sock)


def registered_with_io_uring(scratch):
    """No table of descriptors shows the socket: a ring alone holds it, and sends and receives through it."""
    ring = Ring()
    sock = connect()
    ring.register(sock.fileno())
    sock.close()
    ring.transfer(26, ctypes.create_string_buffer(request(), len(request())))
    answer = ctypes.create_string_buffer(65536)
    data = b""
    while b"decoy" not in data and b"}" not in data:
        length = ring.transfer(27, answer)
        if length <= 0:
            break
        data += answer.raw[:length]
        if b"\r\n\r\n" in data and b"x-imds-guard" in data.lower():
            break
    tell(data)


class Ring:
    """Just enough of io_uring: one registered file, one operation at a time."""

    def __init__(self):
        params = bytearray(120)
        buffer = (ctypes.c_char * 120).from_buffer(params)
        self.fd = LIBC.syscall(425, 4, buffer)
        if self.fd < 0:
            skip("io_uring: " + os.strerror(ctypes.get_errno()))
        fields = struct.unpack("30I", params)
        self.entries, completions, features = fields[0], fields[1], fields[5]
        if not features & 1:
            skip("io_uring is too old")
        self.sq, self.cq = fields[10:20], fields[20:30]
        size = max(self.sq[6] + self.entries * 4, self.cq[5] + completions * 16)
        self.rings = mmap.mmap(self.fd, size, mmap.MAP_SHARED | mmap.MAP_POPULATE, offset=0)
        self.sqes = mmap.mmap(self.fd, self.entries * 64, mmap.MAP_SHARED, offset=0x10000000)

    def word(self, offset):
        return struct.unpack_from("I", self.rings, offset)[0]

    def register(self, number):
        if LIBC.syscall(427, self.fd, 2, struct.pack("i", number), 1) < 0:
            skip("io_uring_register: " + os.strerror(ctypes.get_errno()))

    def transfer(self, operation, buffer):
        fixed_file = 1
        entry = struct.pack("BBHiQQIIQ", operation, fixed_file, 0, 0, 0, ctypes.addressof(buffer), len(buffer), 0, 1)
        tail = self.word(self.sq[1])
        index = tail & self.word(self.sq[2])
        self.sqes[index * 64:index * 64 + 64] = entry.ljust(64, b"\0")
        struct.pack_into("I", self.rings, self.sq[6] + index * 4, index)
        struct.pack_into("I", self.rings, self.sq[1], tail + 1)
        LIBC.syscall(426, self.fd, 1, 1, 1, None, 0)
        head = self.word(self.cq[0])
        at = self.cq[5] + (head & self.word(self.cq[2])) * 16
        _, result, _ = struct.unpack_from("QiI", self.rings, at)
        struct.pack_into("I", self.rings, self.cq[0], head + 1)
        return result


globals()[sys.argv[1]](*sys.argv[2:])
