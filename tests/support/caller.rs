//! A caller: some program, run inside the vm's network namespace, in some control group, as some user.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::answer::{Answer, head_end};
use super::cgroup::Cgroup;
use super::connection::{Connection, Kind};
use super::netns::Namespace;

/// Joins the cgroup, then becomes the program. Joining comes first, while the process is still root and before it has
/// a socket: the kernel stamps a socket with the cgroup in which it was created.
const JOIN: &str = r#"echo 0 > "$0/cgroup.procs" && exec "$@""#;

/// The distribution's Python: one from a user's home could not be run by another user.
pub const PYTHON: &str = "/usr/bin/python3";

/// Who calls.
#[derive(Clone)]
pub struct Caller<'a> {
    vm: &'a Namespace,
    /// Its control group.
    pub cgroup: Cgroup,
    /// Its user.
    pub uid: u32,
    hosts: Option<PathBuf>,
}

/// What curl told.
#[derive(Debug, Clone)]
pub struct Curl {
    /// Its exit code: 0 if there was an answer, whatever its status.
    pub exit: i32,
    /// The answer, empty if there was none.
    pub answer: Answer,
    /// What it said about its failure.
    pub message: String,
    /// How long it took.
    pub took: Duration,
}

impl<'a> Caller<'a> {
    /// A caller in the given cgroup.
    pub fn new(vm: &'a Namespace, cgroup: Cgroup, uid: u32) -> Self {
        Self { vm, cgroup, uid, hosts: None }
    }

    /// The same caller, for whom this file is /etc/hosts (in a mount namespace of its own).
    pub fn with_hosts(self, hosts: PathBuf) -> Self {
        Self { hosts: Some(hosts), ..self }
    }

    /// A command that runs the program as this caller.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", JOIN]).arg(&self.cgroup.dir);
        command.arg("nsenter").arg(format!("--net={}", self.vm.path().display())).arg("--");
        if let Some(hosts) = &self.hosts {
            command.args(["unshare", "--mount", "sh", "-c", r#"mount --bind "$0" /etc/hosts && exec "$@""#]);
            command.arg(hosts);
        }
        let uid = self.uid.to_string();
        command.args(["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups", "--pdeathsig", "KILL"]);
        command.args(["--", program]);
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Runs curl with these arguments. Its own limit makes a hang an answer, not a hang of the tests.
    pub fn curl(&self, arguments: &[&str]) -> Curl {
        let mut command = self.command("curl");
        command.args(["-q", "-sS", "-i", "--http1.1", "--max-time", "8"]).args(arguments);
        let start = Instant::now();
        let output = command.output().expect("curl runs");
        Curl {
            exit: output.status.code().unwrap_or(-1),
            answer: last_answer(&output.stdout),
            message: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: start.elapsed(),
        }
    }

    /// GET by curl, which must get some answer.
    pub fn get(&self, url: &str) -> Answer {
        self.get_with(url, &[])
    }

    /// The same with headers.
    pub fn get_with(&self, url: &str, headers: &[&str]) -> Answer {
        let mut arguments = Vec::new();
        for header in headers {
            arguments.extend(["-H", header]);
        }
        arguments.push(url);
        let curl = self.curl(&arguments);
        assert_eq!(curl.exit, 0, "{url}: {}", curl.message);
        curl.answer
    }

    /// Opens a raw connection.
    pub fn connect(&self, to: &str) -> Connection {
        self.connect_as(to, Kind::Plain)
    }

    /// Opens a raw connection of the given kind.
    pub fn connect_as(&self, to: &str, kind: Kind) -> Connection {
        let to: SocketAddr = to.parse().expect("an address and a port");
        Connection::start(self.command(PYTHON), to, kind)
    }
}

/// The last answer that curl printed: an interim one, such as 100, may stand before it.
fn last_answer(mut output: &[u8]) -> Answer {
    let mut answer = Answer::default();
    while let Some(end) = head_end(output)
        && let Some(next) = Answer::from_head(&output[..end])
    {
        answer = next;
        output = &output[end..];
        if answer.status >= 200 {
            break;
        }
    }
    answer.body = output.to_vec();
    answer
}
