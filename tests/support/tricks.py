"""Ways of passing for somebody else, each a function. What the metadata service answered is written to stdout.

usage: tricks.py TRICK SCRATCH [ARGUMENT...]

SCRATCH is a directory of the caller's own. A trick that this machine has not the means for says why on stderr and
ends with status 77; one that the kernel refuses, as it must, writes "refused by the kernel".
"""

import ctypes
import mmap
import os
import resource
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
CLONE_FILES = 0x400


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


def request(path=ROLE, *headers):
    lines = ["GET {} HTTP/1.1".format(path), "Host: 169.254.169.254", *headers, "", ""]
    return "\r\n".join(lines).encode()


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
    shows_as(child.pid, AGENT)
    return child


def shows_as(pid, path):
    """Waits until a process runs this file."""
    wait_for(lambda: os.readlink("/proc/{}/exe".format(pid)) == os.path.realpath(path))


def wait_for(condition):
    limit = time.monotonic() + 9
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError("in vain")
        time.sleep(0.005)


def is_answered(port):
    """Whether bytes (or the end) have arrived at the socket with this port, which may be held by nobody."""
    for line in open("/proc/net/tcp").read().splitlines()[1:]:
        fields = line.split()
        local, state, waiting = fields[1], fields[3], fields[4].split(":")[1]
        if int(local.split(":")[1], 16) == port and fields[2].endswith(":0050"):
            return int(waiting, 16) > 0 or state != "01"
    return True


def copy(source, scratch, name="curl"):
    target = os.path.join(scratch, name)
    shutil.copyfile(source, target)
    os.chmod(target, 0o755)
    return target


# What the program is.


def plain(scratch):
    ask(connect())


def agent_itself(scratch):
    """The genuine program with arguments of one's own."""
    os.execv(AGENT, [AGENT, "-q", "-s", "--max-time", "8", URL])


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


def agents_number_in_a_user_namespace(scratch, uid):
    """A user namespace in which one's own user has the agent's number."""
    command = ["unshare", "--user", "--map-user=" + uid, AGENT, "-q", "-s", "--max-time", "8", URL]
    if subprocess.run(command[:3] + ["true"], stderr=subprocess.DEVNULL).returncode != 0:
        skip("this kernel gives no user namespaces to users")
    subprocess.run(command)


def socket_given_to_the_agents_user(scratch, uid):
    """The owner of a socket's file is not its creator, and only root can change even that."""
    sock = socket.socket()
    try:
        os.fchown(sock.fileno(), int(uid), -1)
    except PermissionError:
        refused_by_the_kernel()
    sock.settimeout(5)
    sock.connect(SERVICE)
    ask(sock)


def moved_into_the_agents_cgroup(scratch, procs):
    try:
        with open(procs, "w") as file:
            file.write("0")
    except PermissionError:
        refused_by_the_kernel()
    ask(connect())


def changed_exe_link(scratch):
    agent = os.open(AGENT, os.O_RDONLY)
    if LIBC.prctl(PR_SET_MM, PR_SET_MM_EXE_FILE, agent, 0, 0) == 0:
        tell(b"the kernel changed the link")
    else:
        refused_by_the_kernel()
    ask(connect())


# Who holds the socket.


def becomes_a_waiting_agent(sock, scratch):
    """Becomes the agent's genuine program, which goes on holding the socket and waits for a pipe that nobody fills."""
    pipe = os.path.join(scratch, "never")
    if not os.path.exists(pipe):
        os.mkfifo(pipe)
    sock.set_inheritable(True)
    os.execv(AGENT, [AGENT, "-q", "-s", "--max-time", "9", "file://" + pipe])


def connect_then_exec(scratch):
    """The socket's creator becomes the agent's program; a child that was forked before asks and reads the answer."""
    sock = connect()
    creator = os.getpid()
    if os.fork() != 0:
        becomes_a_waiting_agent(sock, scratch)
    shows_as(creator, AGENT)
    ask(sock)
    os.kill(creator, signal.SIGKILL)


def send_then_exec(scratch):
    """Nobody but the agent's program shows when the request is judged: the other reference lies in a socket's queue,
    and the kernel holds the request back for a moment."""
    sock = connect()
    # By the answer to this the guard has seen the connection.
    sock.sendall(request(HARMLESS))
    read_answer(sock)
    keep, passed = socket.socketpair(socket.AF_UNIX)
    socket.send_fds(passed, [b"x"], [sock.fileno()])
    port = sock.getsockname()[1]
    if os.fork() == 0:
        sock.close()
        wait_for(lambda: is_answered(port))
        _, fds, _, _ = socket.recv_fds(keep, 1, 1)
        tell(read_answer(socket.socket(fileno=fds[0])))
        os.kill(os.getppid(), signal.SIGKILL)
        os._exit(0)
    os.mkfifo(os.path.join(scratch, "never"))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    sock.sendall(request())
    becomes_a_waiting_agent(sock, scratch)


def in_flight(scratch):
    """While the request is judged no process holds the socket: it lies in the queue of another one."""
    sock = connect()
    keep, passed = socket.socketpair(socket.AF_UNIX)
    port = sock.getsockname()[1]
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    sock.sendall(request())
    socket.send_fds(passed, [b"x"], [sock.fileno()])
    sock.close()
    wait_for(lambda: is_answered(port))
    _, fds, _, _ = socket.recv_fds(keep, 1, 1)
    tell(read_answer(socket.socket(fileno=fds[0])))


def shared_with_the_agent(scratch):
    sock = connect()
    child = holding_agent(sock, scratch)
    ask(sock)
    child.kill()


def holder_whose_name_is_no_text(scratch):
    LIBC.prctl(PR_SET_NAME, b"\xff\xfe) \n", 0, 0, 0)
    shared_with_the_agent(scratch)


def exit_before_the_look_up(scratch):
    for _ in range(20):
        child = os.fork()
        if child == 0:
            sock = connect()
            sock.sendall(request())
            os._exit(0)
        os.waitpid(child, 0)


def left_to_a_child(scratch):
    """The creator exits; its child, in another session, asks."""
    sock = connect()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        os.close(writer)
        os.read(reader, 1)  # the creator is gone
        ask(sock)
        os._exit(0)
    sock.close()
    # stdout stays open in the child, so that the test waits for it.
    os._exit(0)


def dead_leader(scratch):
    """The first thread ends, and with it the process's own table of descriptors; another thread asks."""
    sock = connect()
    child = holding_agent(sock, scratch)

    def thread():
        state = "/proc/{}/stat".format(os.getpid())
        wait_for(lambda: open(state).read().rsplit(")", 1)[1].split()[0] == "Z")
        ask(sock)
        child.kill()
        os._exit(0)

    threading.Thread(target=thread).start()
    LIBC.syscall(60 if os.uname().machine == "x86_64" else 93, 0)


def private_table(scratch, others="0"):
    """One thread alone has the socket, in a table of its own, behind so many other threads; and the agent beside it."""
    sock = connect()
    child = holding_agent(sock, scratch)
    ends = threading.Event()
    apart = threading.Event()
    closed = threading.Event()

    def idle():
        ends.wait()

    def thread():
        if LIBC.unshare(CLONE_FILES) != 0:
            os._exit(1)
        apart.set()
        closed.wait()
        ask(sock)
        ends.set()

    threading.stack_size(65536)
    for _ in range(int(others)):
        threading.Thread(target=idle, daemon=True).start()
    asker = threading.Thread(target=thread)
    asker.start()
    apart.wait()
    os.close(os.dup(sock.fileno()))
    LIBC.close(sock.fileno())
    closed.set()
    asker.join()
    child.kill()


def too_much_to_search(scratch):
    """Many processes with many descriptors each: a search of them all takes too long, and a shorter one would not find
    who else holds the socket than the agent."""
    sock = connect()
    child = holding_agent(sock, scratch)
    null = os.open("/dev/null", os.O_RDONLY)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    spare = sock.fileno()
    for _ in range(min(limit, 15000) - 64):
        os.dup(null)
    ready, waiting = os.pipe()
    children = []
    for _ in range(60):
        pid = os.fork()
        if pid == 0:
            LIBC.close(spare)
            os.write(waiting, b"x")
            signal.pause()
        children.append(pid)
    for _ in children:
        os.read(ready, 1)
    # Who asks comes last of all.
    if os.fork() == 0:
        ask(sock)
        os._exit(0)
    LIBC.close(spare)
    os.wait()
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    child.kill()


def crowd_that_asks(scratch):
    """Asks again and again, while many processes with many descriptors and mappings hold every connection."""
    null = os.open("/dev/null", os.O_RDONLY)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
    for _ in range(5000):
        os.dup(null)
    keep = [mmap.mmap(null_file(scratch), mmap.PAGESIZE, prot=1 + 4 * (n % 2)) for n in range(20000)]
    sock = connect()
    for _ in range(40):
        if os.fork() == 0:
            signal.pause()
    sock.sendall(request(HARMLESS))
    read_answer(sock)
    os.write(2, b"asking\n")
    while keep:
        sock = connect()
        sock.sendall(request(HARMLESS))
        read_answer(sock)


def null_file(scratch, fds=[]):
    if not fds:
        path = os.path.join(scratch, "page")
        with open(path, "wb") as file:
            file.write(bytes(mmap.PAGESIZE))
        fds.append(os.open(path, os.O_RDONLY))
    return fds[0]


def keep_alive_across_exec(scratch, program):
    """The agent's genuine program asks for something harmless, and becomes another one on the same connection."""
    sock = connect()
    sock.sendall(request(HARMLESS))
    read_answer(sock)
    sock.set_inheritable(True)
    os.execv(program, [program, *again("ask_through", scratch, sock.fileno())])


def become_another_under_way(scratch, program, path=ROLE, *headers):
    """The same, while the service is still busy with the request for the secret."""
    sock = connect()
    sock.sendall(request(path, *headers))
    os.read(0, 1)  # the service has it
    sock.set_inheritable(True)
    os.execv(program, [program, *again("read_through", scratch, sock.fileno())])


def ask_through(scratch, number):
    sock = socket.socket(fileno=int(number))
    sock.settimeout(5)
    ask(sock)


def read_through(scratch, number):
    sock = socket.socket(fileno=int(number))
    sock.settimeout(5)
    tell(read_answer(sock))


def pidfd_getfd(pid, number):
    return LIBC.syscall(438, os.pidfd_open(pid), number, 0)


def taken_from(pid):
    """The connection to the service that another process holds, taken from it."""
    for number in range(3, 32):
        fd = pidfd_getfd(pid, number)
        if fd < 0:
            continue
        try:
            sock = socket.socket(fileno=fd)
            if sock.getpeername() == SERVICE:
                return sock
        except OSError:
            continue
    return None


def take_from_the_agent(scratch):
    """Takes the connection of the genuine agent, which has asked for something harmless and keeps it, and asks on."""
    pipe = os.path.join(scratch, "never")
    os.mkfifo(pipe)
    harmless = "http://169.254.169.254" + HARMLESS
    agent = subprocess.Popen([AGENT, "-q", "-s", harmless, "file://" + pipe], stdout=subprocess.PIPE)
    agent.stdout.read(1)  # it has its answer
    sock = taken_from(agent.pid)
    if sock is None:
        skip("pidfd_getfd is not to be had here")
    sock.settimeout(5)
    ask(sock)
    agent.kill()


def take_from_a_process(scratch, pid):
    """Takes the connection of somebody else's process, which the kernel must not allow."""
    sock = taken_from(int(pid))
    if sock is None:
        refused_by_the_kernel()
        return
    ask(sock)


def give_a_socket(scratch, address):
    """Connects, hands the socket to whoever listens there, and reads the answer to what that one asks."""
    sock = connect()
    with socket.socket(socket.AF_UNIX) as line:
        line.connect("\0" + address)
        socket.send_fds(line, [b"x"], [sock.fileno()])
        line.recv(1)  # it has asked
    tell(read_answer(sock))


def take_a_socket(scratch, address):
    """Asks by the first socket that somebody hands over."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + address)
        listener.listen()
        os.write(2, b"listening\n")
        line, _ = listener.accept()
        _, fds, _, _ = socket.recv_fds(line, 1, 1)
        given = socket.socket(fileno=fds[0])
        given.sendall(request())
        port = given.getsockname()[1]
        wait_for(lambda: is_answered(port))
        given.close()
        line.send(b"x")


def memory_that_never_answers(scratch, uid):
    """Started as root: a process of that user whose memory nobody can look into, because one of its threads holds the lock of
    its mappings (reading, by /proc/self/mem, a page whose file system never answers) and another waits for it. It holds
    sockets by which a child of its asks for something harmless."""
    silent = SilentFileSystem(scratch, int(uid))
    page = silent.mapped()
    own_memory = os.open("/proc/self/mem", os.O_RDONLY)
    os.setgroups([])
    os.setresgid(int(uid), int(uid), int(uid))
    os.setresuid(int(uid), int(uid), int(uid))
    LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG, which the change of user has cleared
    sockets = [socket.socket() for _ in range(4)]
    trapped = os.getpid()
    if os.fork() == 0:
        LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)
        tasks = "/proc/{}/task".format(trapped)
        state = lambda task: open("{}/{}/stat".format(tasks, task)).read().rsplit(")", 1)[1].split()[0]
        wait_for(lambda: any(state(task) == "D" for task in os.listdir(tasks)))
        for sock in sockets:
            sock.settimeout(5)
            sock.connect(SERVICE)
            sock.sendall(request(HARMLESS))
            read_answer(sock)
        os.write(2, b"asked\n")
        signal.pause()
    threading.Thread(target=os.pread, args=(own_memory, 1, page)).start()
    os.read(silent.asked, 1)
    LIBC.mmap(None, mmap.PAGESIZE, 1, 0x22, -1, 0)


class SilentFileSystem:
    """A FUSE file system of one file, which can be opened and mapped and is never read (linux/fuse.h). That somebody wanted
    to read it can be read from `asked`."""

    INIT, LOOKUP, GETATTR, OPEN, READ, FORGET = 26, 1, 3, 14, 15, 2

    def __init__(self, scratch, uid):
        self.place = os.path.join(scratch, "silent")
        os.mkdir(self.place)
        try:
            self.device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            skip("FUSE: " + str(error))
        options = "fd={},rootmode=40000,user_id=0,group_id=0".format(self.device)
        # In a mount namespace of its own, so that nobody else meets it.
        private = 0x44000
        if (LIBC.unshare(0x20000) or LIBC.mount(None, b"/", None, ctypes.c_ulong(private), None) or
                LIBC.mount(b"silent", self.place.encode(), b"fuse", ctypes.c_ulong(0), options.encode())):
            skip("FUSE: " + os.strerror(ctypes.get_errno()))
        self.asked, self.tell_asked = os.pipe()
        server = os.fork()
        if server == 0:
            # Of the same user as its parent, or the parent's death could not end it (PR_SET_PDEATHSIG), and with it all
            # requests that nobody answers.
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)
            self.serve()
        os.close(self.device)

    def mapped(self):
        LIBC.mmap.restype = ctypes.c_void_p
        LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        file = os.open(os.path.join(self.place, "file"), os.O_RDONLY)
        start = LIBC.mmap(None, mmap.PAGESIZE, 1, 2, file, 0)
        os.close(file)
        return start

    def serve(self):
        while True:
            try:
                message = os.read(self.device, 1 << 20)
            except OSError:
                os._exit(0)  # unmounted
            _, operation, unique, node = struct.unpack_from("IIQQ", message)
            if operation == self.READ:
                os.write(self.tell_asked, b"x")
            if operation in (self.READ, self.FORGET):
                continue
            answer = self.answer(operation, node)
            error = 0 if answer is not None else -38
            answer = answer or b""
            os.write(self.device, struct.pack("IiQ", 16 + len(answer), error, unique) + answer)

    def answer(self, operation, node):
        if operation == self.INIT:
            return struct.pack("IIIIHHIIHHI7I", 7, 31, 0, 0, 0, 0, 4096, 0, 0, 0, 0, *[0] * 7)
        if operation == self.LOOKUP:
            return struct.pack("QQQQII", 2, 0, 60, 60, 0, 0) + self.attributes(2)
        if operation == self.GETATTR:
            return struct.pack("QII", 60, 0, 0) + self.attributes(node)
        if operation == self.OPEN:
            return struct.pack("QII", 0, 0, 0)
        return None

    def attributes(self, node):
        mode = 0o40755 if node == 1 else 0o100644
        return struct.pack("6Q10I", node, mmap.PAGESIZE, 8, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def twin(port=0, reuse=socket.SO_REUSEPORT, device=None):
    """A socket that lets others have its port, too."""
    sock = socket.socket()
    sock.settimeout(5)
    sock.setsockopt(socket.SOL_SOCKET, reuse, 1)
    if device:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
    sock.bind(("10.99.0.2", port))
    return sock


def twin_elsewhere(scratch):
    """The agent's program holds a connection to another endpoint from the same port."""
    first = twin()
    second = twin(first.getsockname()[1])
    first.connect(("169.254.42.42", 80))
    agent = holding_agent(first, scratch)
    first.close()
    second.connect(SERVICE)
    ask(second)
    agent.kill()


def twin_that_listens(scratch):
    """The agent's program holds sockets that listen on the same port."""
    asking = twin()
    listeners = [twin(asking.getsockname()[1]) for _ in range(3)]
    asking.connect(SERVICE)
    agents = []
    for listener in listeners:
        listener.listen()
        agents.append(holding_agent(listener, scratch))
        listener.close()
    ask(asking)
    for agent in agents:
        agent.kill()


def twin_bound_to_the_interface(scratch, port):
    """Asks by a socket that is bound to the interface; one that is not may connect from the same port to the same place."""
    sock = twin(int(port), socket.SO_REUSEADDR, b"eth0")
    sock.connect(SERVICE)
    sock.sendall(request())
    os.write(2, b"asked\n")
    tell(read_answer(sock))


def twin_that_connects(scratch, port):
    """Begins to connect from this port, and stays so."""
    sock = twin(int(port), socket.SO_REUSEADDR)
    sock.setblocking(False)
    sock.connect_ex(SERVICE)
    os.write(2, b"connecting\n")
    signal.pause()


def held_in_two_places(scratch, procs):
    """Started as root: a child that holds the socket, too, moves into another control group. Then it asks."""
    sock = socket.socket()
    sock.settimeout(5)
    moved, tell_moved = os.pipe()
    child = os.fork()
    if child == 0:
        LIBC.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if procs:
            open(procs, "w").write("0")
        os.write(tell_moved, b"x")
        signal.pause()
    os.read(moved, 1)
    sock.connect(SERVICE)
    ask(sock)


def passage_across_exec(scratch, program):
    """Through an opaque door; then this process becomes the program, which goes on."""
    sock = socket.socket()
    sock.settimeout(5)
    sock.connect(("169.254.169.254", 8080))
    sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    tell(b"in" if sock.recv(9) else b"shut out")
    os.set_inheritable(sock.fileno(), True)
    os.execv(program, [program, *again("echo_through", scratch, sock.fileno())])


def echo_through(scratch, number):
    """Sends and reads until the connection is cut, or for two seconds."""
    sock = socket.socket(fileno=int(number))
    sock.settimeout(5)
    limit = time.monotonic() + 2
    while time.monotonic() < limit:
        try:
            sock.sendall(b"ping")
            if not sock.recv(4):
                raise ConnectionResetError
        except OSError:
            tell(b"cut")
            return
        time.sleep(0.02)
    tell(b"whole")


def source_port_of_a_listener(scratch, port):
    try:
        sock = connect(int(port))
    except OSError as error:
        tell(repr(error).encode())
        refused_by_the_kernel()
        return
    ask(sock)


def ask_and_reset(scratch, port):
    sock = connect(int(port))
    sock.sendall(request())
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


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
