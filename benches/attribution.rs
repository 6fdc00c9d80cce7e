//! How long it takes to know a caller, beside 200, 2,000 and 10,000 other processes of 20 descriptors each, four to a unit.
//! `make bench-attribution`, as root.
//!
//! The client is this program, in a unit of four processes, with a connection over loopback: nothing is led anywhere, no
//! metadata address is met. *Stamps* is the question to the kernel for the exact connection, with the cgroup's path from
//! memory. *With processes* is the search for all holders in the unit as a verdict that depends on it makes it, executables
//! judged. Processes and control groups are made below a slice of its own and removed.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a benchmark stops where it cannot measure"
)]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use imds_guard::caller::CgroupPath;
use imds_guard::caller::cgroup::CgroupTree;
use imds_guard::caller::processes::{ProcessTable, Search};
use imds_guard::caller::stamps::{Flow, SockDiag};

const CROWDS: [usize; 3] = [200, 2_000, 10_000];
const ROUNDS: usize = 5;
const STAMPS_A_ROUND: usize = 2_000;
const SEARCHES_A_ROUND: usize = 200;
const CLIENT: &str = "client.service";

/// Forks processes with twenty descriptors each, four to a unit, and keeps them until its standard input ends.
const CROWD: &str = r#"
import ctypes, os, signal, sys
slice, count, unit = sys.argv[1], int(sys.argv[2]), sys.argv[3]
libc = ctypes.CDLL(None)
for _ in range(17):
    os.open("/dev/null", os.O_RDONLY)
for number in range(count):
    place = os.path.join(slice, unit or "unit-%d.service" % (number // 4))
    os.makedirs(place, exist_ok=True)
    if os.fork() == 0:
        libc.prctl(1, signal.SIGKILL)
        with open(os.path.join(place, "cgroup.procs"), "w") as procs:
            procs.write("0")
        signal.pause()
print("ready", flush=True)
sys.stdin.read()
"#;

/// A slice of control groups; its processes are killed and it is removed when dropped.
struct Slice(PathBuf);

impl Slice {
    fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount =
            mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
        let path = Path::new(mount.unwrap()).join(format!("imds_guard_bench_{}.slice", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        // This program is in one of them.
        let _ = fs::write(self.0.parent().unwrap().join("cgroup.procs"), "0");
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let deadline = Instant::now() + Duration::from_mins(1);
        while self.0.exists() && Instant::now() < deadline {
            for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(entry.path());
            }
            let _ = fs::remove_dir(&self.0);
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// So many processes, until it is dropped.
struct Crowd(Child);

impl Crowd {
    fn new(slice: &Path, count: usize, unit: &str) -> Self {
        let mut command = Command::new("python3");
        command.args(["-I", "-S", "-c", CROWD]).arg(slice).arg(count.to_string()).arg(unit);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// Median and 99th percentile in microseconds.
struct Times {
    p50: f64,
    p99: f64,
}

fn measure(rounds: usize, mut what: impl FnMut()) -> Times {
    let mut all: Vec<Duration> = Vec::new();
    for _ in 0..rounds {
        let start = Instant::now();
        what();
        all.push(start.elapsed());
    }
    all.sort_unstable();
    let at = |percent: usize| all[(all.len() * percent / 100).min(all.len() - 1)].as_secs_f64() * 1e6;
    Times { p50: at(50), p99: at(99) }
}

fn median(of: &mut [Times]) -> &Times {
    of.sort_by(|one, other| one.p50.total_cmp(&other.p50));
    &of[of.len() / 2]
}

fn main() {
    if !nix::unistd::getuid().is_root() {
        println!("SKIPPED: only root may make control groups");
        return;
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let cores = thread::available_parallelism().map_or(0, usize::from);
    println!(
        "{}, Linux {}, {cores} cores; medians of {ROUNDS} rounds, in microseconds\n",
        jiff::Timestamp::now().strftime("%Y-%m-%d"),
        release.trim()
    );
    println!(
        "| processes | stamps p50 | p99 | × 200 | with processes p50 | p99 | × 200 |\n|---|---|---|---|---|---|---|"
    );
    let mut first: Option<(f64, f64)> = None;
    for count in CROWDS {
        let slice = Slice::new();
        let _crowd = Crowd::new(&slice.0, count - 4, "");
        let _neighbours = Crowd::new(&slice.0, 3, CLIENT);
        fs::write(slice.0.join(CLIENT).join("cgroup.procs"), "0").unwrap();
        let (mut stamps, mut searches) = of_this_program();
        let (stamps, searches) = (median(&mut stamps), median(&mut searches));
        let (base, base_of_searches) = *first.get_or_insert((stamps.p50, searches.p50));
        println!(
            "| {count} | {:.1} | {:.1} | {:.2} | {:.0} | {:.0} | {:.2} |",
            stamps.p50,
            stamps.p99,
            stamps.p50 / base,
            searches.p50,
            searches.p99,
            searches.p50 / base_of_searches
        );
    }
}

/// Looks this program's own connection up, over and over.
fn of_this_program() -> (Vec<Times>, Vec<Times>) {
    let _files: Vec<fs::File> = (0..14).map(|_| fs::File::open("/dev/null").unwrap()).collect();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let flow = Flow::new(client.local_addr().unwrap(), listener.local_addr().unwrap());
    let mut diag = SockDiag::open().unwrap();
    let raw = diag.stamps(flow).unwrap();
    let id = raw.cgroup_id.unwrap();
    let tree = CgroupTree::find().unwrap();
    let mut paths: HashMap<u64, CgroupPath> = HashMap::new();
    let cgroup = tree.resolve(id, &mut paths).unwrap().unwrap();
    let known = HashMap::from([(id, cgroup.clone())]);
    let mut table = ProcessTable::new(Vec::new()).unwrap();
    let (mut stamps, mut searches) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        stamps.push(measure(STAMPS_A_ROUND, || {
            let raw = diag.stamps(flow).unwrap();
            assert!(known.contains_key(&raw.cgroup_id.unwrap()));
        }));
        searches.push(measure(SEARCHES_A_ROUND, || {
            let raw = diag.stamps(flow).unwrap();
            let until = Instant::now() + Duration::from_secs(5);
            let search = Search {
                cgroup: &cgroup,
                inode: raw.inode,
                uid: raw.uid,
                digest: false,
                decisive: true,
                until,
            };
            assert_eq!(table.holders(Some(&tree), &search).unwrap().len(), 1);
        }));
    }
    (stamps, searches)
}
