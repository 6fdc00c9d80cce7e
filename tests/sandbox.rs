//! The proxy's sandbox, tried from inside: this program runs itself, locks itself in as the proxy does, and reports what
//! it still can do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on must stop and say so"
)]

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::thread;

use imds_guard::proxy::sandbox;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use nix::unistd::{Pid, Uid};

/// The user that the process inside becomes, and where its means and ends are told.
const UID: u32 = 63_111;
const INSIDE: &str = "IMDS_GUARD_INSIDE";

/// Tells one attempt.
fn attempt<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) {
    match result {
        Ok(_) => println!("DONE {what}"),
        Err(error) => println!("refused {what}: {error}"),
    }
}

/// Runs inside, in a process of its own.
#[test]
#[ignore = "run by the other test of this file"]
fn inside() {
    let Ok(ports) = std::env::var(INSIDE) else { return };
    let mut ports = ports.split(',').map(|port| port.parse::<u16>().unwrap());
    let (open, shut) = (ports.next().unwrap(), ports.next().unwrap());
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    // What the proxy is given it may use.
    let mut log = File::options().append(true).open(std::env::var("IMDS_GUARD_LOG").unwrap()).unwrap();
    let (mut near, mut far) = UnixStream::pair().unwrap();
    let keeper = std::os::unix::process::parent_id();
    sandbox::drop_privileges(UID, UID).unwrap();
    let fence = sandbox::lock_in([open]).unwrap();
    println!("landlock: {}", fence.landlock);

    log.write_all(b"a line\n").expect("the log can be appended to");
    near.write_all(b"question").expect("the keeper can be asked");
    far.read_exact(&mut [0; 8]).expect("and answers");
    let mut served = TcpStream::connect(local(open)).expect("an endpoint can be connected to");
    served.write_all(b"GET").expect("and sent to");
    thread::Builder::new().spawn(|| {}).expect("threads can be started").join().unwrap();

    attempt("open /etc/passwd", File::open("/etc/passwd"));
    attempt("open its own program", File::open("/proc/self/exe"));
    attempt("create a file", File::create("/tmp/imds-guard-sandbox-test"));
    attempt("list the root", fs::read_dir("/"));
    attempt("remove a file", fs::remove_file("/tmp/imds-guard-sandbox-none"));
    attempt("rename the policy", fs::rename("/etc/imds-guard/policy.toml", "/tmp/imds-guard-sandbox-test"));
    attempt("make a directory", fs::create_dir("/tmp/imds-guard-sandbox-test"));
    attempt("make a link", std::os::unix::fs::symlink("/etc", "/tmp/imds-guard-sandbox-test"));
    attempt("cut the log", log.set_len(0));
    attempt("change the root", std::os::unix::fs::chroot("/tmp"));
    attempt("change the directory", std::env::set_current_dir("/etc"));
    for (family, kind) in [
        (AddressFamily::Unix, SockType::Stream),
        (AddressFamily::Unix, SockType::SeqPacket),
        (AddressFamily::Netlink, SockType::Raw),
        (AddressFamily::Packet, SockType::Raw),
        (AddressFamily::Inet, SockType::Raw),
        (AddressFamily::Inet, SockType::Datagram),
        (AddressFamily::Inet6, SockType::Datagram),
        (AddressFamily::Vsock, SockType::Stream),
        (AddressFamily::Alg, SockType::SeqPacket),
    ] {
        attempt(&format!("a socket {family:?} {kind:?}"), socket(family, kind, SockFlag::empty(), None));
    }
    let mptcp = SockProtocol::Tcp;
    attempt(
        "a TCP datagram socket",
        socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), mptcp),
    );
    attempt("ask a name server", UdpSocket::bind(local(0)));
    attempt("listen", TcpListener::bind(local(0)));
    attempt("listen on a path", UnixListener::bind("/tmp/imds-guard-sandbox-test"));
    attempt("connect to another port", TcpStream::connect(local(shut)));
    attempt("connect to another port by the first bytes", fast_open(local(shut)));
    attempt("run a program", Command::new("/bin/true").status());
    attempt("stop the keeper", kill(pid(keeper), Signal::SIGTERM));
    attempt("a pidfd of the keeper", pidfd(keeper));
    attempt("become root", nix::unistd::setuid(Uid::from_raw(0)));
    attempt("a user namespace", unshare(CloneFlags::CLONE_NEWUSER));
    attempt("a mount namespace", unshare(CloneFlags::CLONE_NEWNS));
    attempt("another network namespace", enter_another_namespace(near.as_fd()));
    let none = nix::mount::MsFlags::empty();
    attempt("mount", nix::mount::mount(Some("none"), "/tmp", Some("tmpfs"), none, None::<&str>));
    attempt("a memory file", rustix::fs::memfd_create("code", rustix::fs::MemfdFlags::CLOEXEC));
    attempt("outlive the keeper", rustix::process::set_parent_process_death_signal(None));
    attempt("read another log position", rustix::fs::fcntl_setfl(&log, rustix::fs::OFlags::empty()));
    println!("tried everything");
}

fn pid(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).unwrap())
}

fn pidfd(of: u32) -> io::Result<()> {
    let pid = rustix::process::Pid::from_raw(i32::try_from(of).unwrap()).unwrap();
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).map(drop)?)
}

fn enter_another_namespace(fd: std::os::fd::BorrowedFd<'_>) -> nix::Result<()> {
    nix::sched::setns(fd, CloneFlags::CLONE_NEWNET)
}

/// Connects by sending, which no rule about connecting sees.
fn fast_open(to: SocketAddr) -> io::Result<()> {
    use rustix::net::{AddressFamily, SendFlags, SocketType, sendto, socket};
    let sock = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    let fast_open = SendFlags::from_bits_retain(nix::libc::MSG_FASTOPEN.unsigned_abs());
    sendto(&sock, b"GET", fast_open, &to)?;
    Ok(())
}

#[test]
#[ignore = "needs root: make test runs it"]
fn from_inside_the_sandbox_neither_files_nor_sockets_nor_processes_can_be_reached() {
    let (endpoint, other) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    let log = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "inside", "--include-ignored", "--nocapture", "--test-threads", "1"])
        .env(INSIDE, format!("{},{}", port(&endpoint), port(&other)))
        .env("IMDS_GUARD_LOG", log.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let whole = format!("{told}{}", String::from_utf8_lossy(&output.stderr));
    assert!(told.contains("tried everything"), "{whole}");
    let done: Vec<&str> = told.lines().filter(|line| line.contains("DONE")).collect();
    assert!(done.is_empty(), "{done:?}");
    assert!(told.matches("refused ").count() > 35, "{whole}");
    assert_eq!(fs::read_to_string(log.path()).unwrap(), "a line\n");
    if told.contains("landlock: false") {
        println!("SKIPPED in part: this kernel has no Landlock");
    }
}
