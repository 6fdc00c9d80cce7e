//! The guard under test: the real binary, started as root inside the vm's network namespace.

use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::event::{self, Event};
use super::netns::{Namespace, unique};
use super::policy::Policy;
use super::wait;

/// The header, in lower case, by which the guard marks its own answers.
pub const MARK: &str = "x-imds-guard";

/// How long the guard may take for anything that it does by itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// The binary that cargo built beside this program.
pub fn binary() -> PathBuf {
    option_env!("CARGO_BIN_EXE_imds-guard").map_or_else(
        || {
            let own = std::env::current_exe().expect("a program knows its file");
            own.ancestors().nth(2).expect("examples lie below the binaries").join("imds-guard")
        },
        PathBuf::from,
    )
}

/// A running guard. Killed when dropped, both processes.
pub struct Guard {
    keeper: Child,
    notify: UnixDatagram,
    dir: TempDir,
}

impl Guard {
    /// Starts it and waits until it says READY.
    pub fn start(vm: &Namespace, policy: &Policy) -> Self {
        Self::start_over(vm, policy, &[])
    }

    /// The same, and the guard sees each of these files or directories at another path: the machine's own stay out of
    /// the test.
    pub fn start_over(vm: &Namespace, policy: &Policy, mounts: &[(&Path, &str)]) -> Self {
        Self::start_by(vm, policy, |command| {
            for (file, path) in mounts {
                let mount = r#"mount --bind "$0" "$1" && shift && exec "$@""#;
                command.args(["unshare", "--mount", "sh", "-c", mount]).arg(file).arg(path);
            }
        })
    }

    /// The same, by a command to which its own is added.
    pub fn start_by(vm: &Namespace, policy: &Policy, wrap: impl FnOnce(&mut Command)) -> Self {
        let mut guard = Self::spawn_in(vm, Self::prepare(policy), wrap, &[]);
        if let Err(what) = guard.wait_for_ready() {
            panic!("the guard is not ready: {what}\n{}", guard.output());
        }
        guard
    }

    /// The same for a guard that keeps its state in this directory.
    pub fn start_with_state(vm: &Namespace, text: impl FnOnce(&Path) -> String, state: &Path) -> Self {
        let dir = Self::prepare_text(text);
        let mut guard =
            Self::spawn_in(vm, dir, |_| {}, &["--state", state.to_str().expect("a path of text")]);
        if let Err(what) = guard.wait_for_ready() {
            panic!("the guard is not ready: {what}\n{}", guard.output());
        }
        guard
    }

    /// Runs a guard that must end by itself, and gives how it ended and what it said.
    pub fn run_to_end(command: &mut Command, policy: &Policy) -> Output {
        let dir = Self::prepare(policy);
        let output = command.arg("run").arg("--config").arg(Self::config_in(&dir)).output();
        output.expect("the guard's binary runs")
    }

    fn spawn_in(vm: &Namespace, dir: TempDir, wrap: impl FnOnce(&mut Command), more: &[&str]) -> Self {
        let notify = UnixDatagram::bind(dir.path().join("notify")).expect("a socket in a new directory");
        let output = File::create(dir.path().join("output")).expect("a file in a new directory");
        // A test that is killed must not leave a guard behind.
        let mut command = vm.command("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        wrap(&mut command);
        command.arg(binary()).arg("run").arg("--config");
        command.arg(Self::config_in(&dir)).args(more).env("NOTIFY_SOCKET", dir.path().join("notify"));
        command.stderr(output.try_clone().expect("a second descriptor")).stdout(output);
        let keeper = command.spawn().expect("the guard's binary runs");
        Self { keeper, notify, dir }
    }

    /// A directory of its own with the policy in it, as the guard demands: root's, writable by nobody else.
    pub fn prepare(policy: &Policy) -> TempDir {
        Self::prepare_text(|dir| policy.text(dir))
    }

    fn prepare_text(text: impl FnOnce(&Path) -> String) -> TempDir {
        let dir = tempfile::Builder::new().prefix(&unique()).tempdir().expect("a directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("its own directory");
        Self::write_policy(dir.path(), &text(dir.path()));
        dir
    }

    /// The policy's file in such a directory.
    pub fn config_in(dir: &TempDir) -> PathBuf {
        dir.path().join("policy.toml")
    }

    fn write_policy(dir: &Path, text: &str) {
        let path = dir.join("policy.toml");
        fs::write(&path, text).expect("its own file");
        fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("its own file");
    }

    fn wait_for_ready(&mut self) -> Result<(), String> {
        self.notify.set_read_timeout(Some(Duration::from_millis(100))).expect("a time");
        for _ in 0..100 {
            if self.next_notice().is_some_and(|notice| notice.lines().any(|line| line == "READY=1")) {
                return Ok(());
            }
            if let Ok(Some(status)) = self.keeper.try_wait() {
                return Err(format!("it ended with {status}"));
            }
        }
        Err(format!("nothing for {PATIENCE:?}"))
    }

    /// The next message to the service manager, if one comes in time.
    fn next_notice(&self) -> Option<String> {
        let mut buffer = [0_u8; 4096];
        match self.notify.recv(&mut buffer) {
            Ok(length) => Some(String::from_utf8_lossy(&buffer[..length]).into_owned()),
            Err(error) => {
                let is_nothing = matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                );
                assert!(is_nothing, "notify socket: {error}");
                None
            }
        }
    }

    /// Everything that both processes wrote to stdout and stderr.
    pub fn output(&self) -> String {
        fs::read_to_string(self.dir.path().join("output")).unwrap_or_default()
    }

    /// The policy's file.
    pub fn config(&self) -> PathBuf {
        Self::config_in(&self.dir)
    }

    /// The audit log's file.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("audit.jsonl")
    }

    /// The audit events so far.
    pub fn events(&self) -> Vec<Event> {
        event::read(&self.log())
    }

    /// Waits for an event that matches.
    pub fn event(&self, what: &str, matches: impl Fn(&Event) -> bool) -> Event {
        let start = std::time::Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(event) = self.events().into_iter().find(|event| matches(event)) {
                return event;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("no event: {what}\nthere are: {:#?}\n{}", self.events(), self.output());
    }

    /// Waits for the event of a request for this path.
    pub fn event_for(&self, path: &str) -> Event {
        self.event(path, |event| event.text("url.path") == path)
    }

    /// Replaces the policy, asks for a reload by SIGHUP, and waits until the guard is done with it.
    pub fn reload(&self, policy: &Policy) {
        self.reload_text(&policy.text(self.dir.path()));
    }

    /// The same with any text.
    pub fn reload_text(&self, text: &str) {
        Self::write_policy(self.dir.path(), text);
        while self.next_notice().is_some() {}
        self.signal(Signal::SIGHUP);
        wait::until("the guard is READY again", PATIENCE, || {
            self.next_notice().filter(|notice| notice.lines().any(|line| line == "READY=1"))
        });
    }

    /// Sends a signal to the keeper.
    pub fn signal(&self, signal: Signal) {
        send(self.keeper.id(), signal);
    }

    /// The keeper's process id.
    pub fn keeper(&self) -> u32 {
        self.keeper.id()
    }

    /// The proxy's process id: the keeper's child that runs as the guard's user.
    pub fn proxy(&self) -> u32 {
        let is_proxy = |pid: &u32| {
            status_field(*pid, "PPid") == Some(self.keeper.id().to_string())
                && status_field(*pid, "Uid").is_some_and(|uids| !uids.starts_with('0'))
        };
        processes().into_iter().find(is_proxy).expect("the keeper has a child without root")
    }

    /// Waits for the keeper's end.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        wait::until("the keeper ends", PATIENCE, || self.keeper.try_wait().ok().flatten())
    }

    /// The ports at which the proxy listens.
    pub fn listening_ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = ["tcp", "tcp6"]
            .iter()
            .filter_map(|table| fs::read_to_string(format!("/proc/{}/net/{table}", self.keeper.id())).ok())
            .flat_map(|table| table.lines().filter_map(listening_port).collect::<Vec<_>>())
            .collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let below: Vec<u32> = processes()
            .into_iter()
            .filter(|pid| status_field(*pid, "PPid") == Some(self.keeper.id().to_string()))
            .collect();
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        for pid in below {
            // The proxy ends with its keeper; a failing test may be about just that.
            let _ = kill(pid_of(pid), Signal::SIGKILL);
        }
        if std::thread::panicking() {
            eprintln!("the guard said:\n{}", self.output());
        }
    }
}

/// The local port of a LISTEN line of /proc/net/tcp.
fn listening_port(line: &str) -> Option<u16> {
    let mut fields = line.split_whitespace().skip(1);
    let local = fields.next()?;
    let state = fields.nth(1)?;
    let port = local.rsplit(':').next()?;
    (state == "0A").then(|| u16::from_str_radix(port, 16).ok())?
}

fn pid_of(pid: u32) -> Pid {
    Pid::from_raw(i32::try_from(pid).expect("a process id"))
}

/// Sends a signal to a process that this test started.
pub fn send(pid: u32, signal: Signal) {
    kill(pid_of(pid), signal).expect("the process is there");
}

fn processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("procfs is mounted");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// A field of /proc/PID/status, such as `CapEff`.
pub fn status_field(pid: u32, field: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(value.trim().to_owned())
}
