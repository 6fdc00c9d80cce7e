//! The keeper's side of the conversation with the proxy.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;

use crate::cloud::{Endpoint, Proof};
use crate::policy::Policy;
use crate::redirect::ruleset::MARK_BIT;

use super::answers::Oracle;
use super::protocol::{self, Answer, MESSAGE_BYTES, QUESTION_BYTES, Question, Reply};
use super::proxy::ProxyProcess;
use super::upstream;

/// How long the proxy may take to become ready.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// Answers the next question of one worker, if it has asked any; whether it has.
pub(super) fn answer_next(channel: &OwnedFd, policy: &Policy, oracle: &mut Oracle) -> bool {
    let mut message = [0; QUESTION_BYTES + 1];
    let Ok((length, _)) = protocol::receive(channel, &mut message, RecvFlags::DONTWAIT) else { return false };
    if length == 0 {
        return false;
    }
    let question = message.get(..length).and_then(Question::decode);
    let connection = question.and_then(|(_, question)| connect(policy, question));
    let reply = match question {
        Some((number, Question::Connect { .. })) => {
            Reply { number, answer: Answer::Connection(connection.is_some()) }
        }
        Some((number, question)) => Reply { number, answer: oracle.answer(question) },
        None => Reply { number: 0, answer: Answer::Refused },
    };
    let along: Vec<BorrowedFd<'_>> = connection.iter().map(AsFd::as_fd).collect();
    answer(channel, &reply, &along);
    true
}

/// Sends a reply, or at least that there is none. A proxy that does not read its answers waits for nothing.
fn answer(channel: &OwnedFd, reply: &Reply, along: &[BorrowedFd<'_>]) {
    let unknown = Reply { number: reply.number, answer: Answer::Refused };
    for reply in [reply, &unknown] {
        let message = serde_json::to_vec(reply).unwrap_or_default();
        if message.len() <= MESSAGE_BYTES && protocol::send(channel, &message, along).is_ok() {
            return;
        }
    }
}

/// A privileged connection, only to an endpoint whose service the policy knows to ask for it: the proxy could be in
/// an attacker's hands.
fn connect(policy: &Policy, question: Question) -> Option<OwnedFd> {
    let Question::Connect { addr, port, low_port } = question else { return None };
    let mark = policy.settings().upstream_mark;
    let proof = policy.catalogue().proof(Endpoint::new(addr, port));
    let may = match (proof, low_port) {
        (Proof::Root, false) | (Proof::PrivilegedPort, true) => true,
        // Where every connection needs the mark, each is the keeper's to open; to nowhere but the endpoints.
        (Proof::None | Proof::PrivilegedPort, false) => {
            mark.is_some() && policy.catalogue().serves(Endpoint::new(addr, port))
        }
        (Proof::None | Proof::Root, true) => false,
    };
    if !may {
        return None;
    }
    upstream::open(SocketAddr::new(addr, port), low_port, mark.unwrap_or(MARK_BIT))
        .inspect_err(|error| tracing::warn!(%error, "a privileged upstream connection could not be opened"))
        .ok()
}

/// Waits until the proxy says that it has dropped its privileges and serves.
pub(super) fn await_ready(proxy: &ProxyProcess) -> Result<(), &'static str> {
    let mut ready = [PollFd::from_borrowed_fd(proxy.orders(), PollFlags::IN)];
    let patience = Timespec { tv_sec: i64::try_from(START_PATIENCE.as_secs()).unwrap_or(0), tv_nsec: 0 };
    match poll(&mut ready, Some(&patience)) {
        Ok(0) | Err(_) => return Err("it took too long"),
        Ok(_) => {}
    }
    let mut message = [0; QUESTION_BYTES];
    match protocol::receive(proxy.orders(), &mut message, RecvFlags::DONTWAIT) {
        Ok((length, _)) if message.get(..length).and_then(Question::decode).is_some_and(is_ready) => Ok(()),
        _ => Err("it ended while it started; its message stands above"),
    }
}

fn is_ready((_, question): (u32, Question)) -> bool {
    question == Question::Ready
}
