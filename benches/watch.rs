//! What `watch-commands` costs while programs start: the processor time of the thread that reads command lines, as a share of
//! a core, at a thousand programs a second. `make bench-watch`, as root, in the kernel's first network namespace.
//!
//! Only the watch runs: no rule is loaded, no metadata address is met.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark stops where it cannot measure")]

use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use imds_guard::keeper::commands::CommandWatch;

const WANTED: f64 = 1_000.0;
const SPAWNERS: u32 = 4;
const SECONDS: u64 = 10;

fn main() {
    let endpoints = vec!["169.254.169.254".parse().unwrap(), "fd00:ec2::254".parse().unwrap()];
    let mut watch = match CommandWatch::start(endpoints) {
        Ok(watch) => watch,
        Err(error) => {
            println!("SKIPPED: command lines cannot be watched here: {error}");
            return;
        }
    };
    let (started, end) = (AtomicU32::new(0), AtomicBool::new(false));
    let (spent, counted, elapsed, missed) = thread::scope(|scope| {
        for _ in 0..SPAWNERS {
            scope.spawn(|| start_programs(&started, &end));
        }
        thread::sleep(Duration::from_secs(1));
        let (before, from, begun) = (spent(), started.load(Ordering::Relaxed), Instant::now());
        let mut missed = 0;
        while begun.elapsed() < Duration::from_secs(SECONDS) {
            watch.look_after().unwrap();
            missed += watch.take(16).1;
            thread::sleep(Duration::from_millis(20));
        }
        let (spent, elapsed) = (spent().saturating_sub(before), begun.elapsed());
        started.fetch_sub(from, Ordering::Relaxed);
        let counted = started.load(Ordering::Relaxed);
        end.store(true, Ordering::Relaxed);
        (spent, counted, elapsed, missed)
    });
    let rate = f64::from(counted) / elapsed.as_secs_f64();
    let share = spent.as_secs_f64() / elapsed.as_secs_f64() * 100.0;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let cores = thread::available_parallelism().map_or(0, usize::from);
    println!(
        "{}, Linux {}, {cores} cores; {SECONDS} s\n",
        jiff::Timestamp::now().strftime("%Y-%m-%d"),
        release.trim()
    );
    println!("| programs/s | % of a core | % at {WANTED}/s | µs/program | missed |\n|---|---|---|---|---|");
    println!(
        "| {rate:.0} | {share:.1} | {:.1} | {:.0} | {missed} |",
        share / rate * WANTED,
        spent.as_secs_f64() * 1e6 / f64::from(counted)
    );
}

/// Starts its part of the programs, evenly, until told to stop.
fn start_programs(started: &AtomicU32, end: &AtomicBool) {
    let pause = Duration::from_secs_f64(f64::from(SPAWNERS) / WANTED);
    let mut due = Instant::now();
    while !end.load(Ordering::Relaxed) {
        let mut child = Command::new("/bin/true").stdin(Stdio::null()).spawn().unwrap();
        let _ = child.wait();
        started.fetch_add(1, Ordering::Relaxed);
        due += pause;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// The processor time of this process's readers: the scheduler's figure, in nanoseconds.
fn spent() -> Duration {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten().map(|entry| entry.path());
    let readers =
        tasks.filter(|task| fs::read_to_string(task.join("comm")).is_ok_and(|name| name == "commands\n"));
    let nanos = readers.filter_map(|task| {
        let text = fs::read_to_string(task.join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}
