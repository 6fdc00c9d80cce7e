//! The decoy cloud as a program: `cargo run --example imds_simulator -- --listen 127.0.0.1:8169`.
//!
//! It answers as AWS (IMDSv1 and v2), GCP, Azure and DigitalOcean do, with made-up values. It is an example so that it
//! never ships in the product's binary; the end-to-end tests and the demo use the same code in their own process.

#![allow(unreachable_pub, dead_code, reason = "the module is shared with the end-to-end tests")]
#![allow(clippy::print_stdout, reason = "a program for people")]

#[path = "../tests/support/simulator/mod.rs"]
mod simulator;

use std::fs::OpenOptions;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use clap::Parser;
use serde_json::json;
use simulator::{Fault, Options, Received, Simulator};

/// A metadata service with made-up answers, for tests and demonstrations.
#[derive(Parser)]
struct Arguments {
    /// Listen here; may be given several times
    #[arg(long, value_name = "ADDR:PORT", required = true)]
    listen: Vec<SocketAddr>,
    /// Append one JSON line for each request that arrives
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Refuse AWS reads that carry no session token
    #[arg(long)]
    v2_only: bool,
    /// Misbehave: hang, reset, close, close-after, reset-mid-body, big-body=BYTES, chunked, unframed, status=CODE,
    /// slow=MILLISECONDS, pause=MILLISECONDS
    #[arg(long, default_value = "none")]
    fault: Fault,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let watcher = recorder(arguments.record.as_deref())?;
    let options = Options { v2_only: arguments.v2_only, ..Options::default() };
    let simulator = Simulator::start_watched(&arguments.listen, options, watcher)?;
    simulator.set_fault(arguments.fault);
    println!("ready");
    loop {
        std::thread::park();
    }
}

fn recorder(path: Option<&Path>) -> anyhow::Result<impl Fn(&Received) + Send + Sync + 'static> {
    let file = path.map(|path| OpenOptions::new().create(true).append(true).open(path)).transpose()?;
    let file = Mutex::new(file);
    Ok(move |received: &Received| {
        let line = json!({
            "listener": received.listener.to_string(),
            "peer": received.peer.to_string(),
            "head": received.text(),
            "body": received.body,
        });
        if let Ok(mut guard) = file.lock()
            && let Some(file) = guard.as_mut()
        {
            // The disk may be full; the decoy cloud goes on answering.
            let _ = writeln!(file, "{line}");
        }
    })
}
