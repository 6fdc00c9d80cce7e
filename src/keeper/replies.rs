//! The keeper's side of the conversation with the proxy.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::cloud::{Endpoint, Proof};
use crate::policy::Policy;
use crate::redirect::ruleset::MARK_BIT;

use super::answers::Oracle;
use super::protocol::{self, Answer, MESSAGE_BYTES, Peer, QUESTION_BYTES, Question, Reply};
use super::proxy::ProxyProcess;
use super::upstream;

/// How long the proxy may take to become ready.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// How many questions of one worker are answered before the next worker's turn.
const QUESTIONS_PER_TURN: usize = 16;

/// Answers what one worker asks, up to a bound; whether it has asked anything.
pub(super) fn answer_some(channel: &OwnedFd, proxy: Peer, policy: &Policy, oracle: &mut Oracle) -> bool {
    (0..QUESTIONS_PER_TURN).take_while(|_| answer_next(channel, proxy, policy, oracle)).count() > 0
}

/// Answers the next question of one worker, if it has asked any; whether it has.
///
/// Whatever comes is answered, if only with [`Answer::Refused`]: what is no question, and what somebody else than the proxy
/// has sent.
fn answer_next(channel: &OwnedFd, proxy: Peer, policy: &Policy, oracle: &mut Oracle) -> bool {
    let mut message = [0; QUESTION_BYTES + 1];
    let Ok((length, sender)) = protocol::receive_from(channel, &mut message) else { return false };
    if length == 0 {
        return false;
    }
    let question = message.get(..length).filter(|_| sender == Some(proxy)).and_then(Question::decode);
    let connection = question.and_then(|(_, question)| connect(policy, question));
    let reply = match question {
        Some((number, Question::Connect { .. })) => {
            Reply { number, answer: Answer::Connection(connection.is_some()) }
        }
        // The proxy could be in an attacker's hands: it learns nothing of connections that are none of its business.
        Some((number, Question::Foreign { original, .. }))
            if !policy.catalogue().serves(Endpoint::new(original.ip(), original.port())) =>
        {
            Reply { number, answer: Answer::Refused }
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
    let mut message = [0; QUESTION_BYTES + 1];
    match protocol::receive_from(proxy.orders(), &mut message) {
        Ok((length, sender))
            if sender == Some(proxy.peer())
                && message.get(..length).and_then(Question::decode).is_some_and(is_ready) =>
        {
            Ok(())
        }
        _ => Err("it ended while it started; its message stands above"),
    }
}

fn is_ready((_, question): (u32, Question)) -> bool {
    question == Question::Ready
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::{Config, TestRunner};
    use rustix::net::RecvFlags;

    use super::*;
    use crate::policy::{Accounts, Context, Source};

    /// How many messages are tried, and how many of them are sent before the keeper's turn.
    const MESSAGES: usize = 1_000_000;
    const AT_ONCE: usize = 50;

    /// One in so many is a question; searching the machine's cgroups takes a while.
    const QUESTIONS: usize = 10_000;

    struct Keeper {
        near: OwnedFd,
        far: OwnedFd,
        policy: Policy,
        oracle: Oracle,
    }

    impl Keeper {
        fn new() -> Self {
            let text = "mode = \"enforce\"\ncloud = \"aws\"\n[guard]\nuser = \"63111\"\n".to_owned();
            let source = Source { name: "policy.toml".into(), text };
            let context = Context { accounts: Accounts::parse("", ""), ..Context::default() };
            let (near, far) = protocol::channel().unwrap();
            protocol::tell_senders(&near).unwrap();
            let policy = Policy::compile(&[source], &context).unwrap().policy;
            Self { near, far, policy, oracle: Oracle::new(Vec::<PathBuf>::new(), false).unwrap() }
        }

        fn myself() -> Peer {
            Peer { pid: std::process::id(), uid: nix::unistd::getuid().as_raw() }
        }

        /// Sends a message, and gives what the keeper answers to it, if it takes it for the proxy's.
        fn answer(&mut self, message: &[u8], proxy: Peer) -> Reply {
            protocol::send(&self.far, message, &[]).unwrap();
            assert!(answer_next(&self.near, proxy, &self.policy, &mut self.oracle));
            self.reply()
        }

        fn reply(&self) -> Reply {
            let mut buffer = vec![0; MESSAGE_BYTES];
            let (length, along) = protocol::receive(&self.far, &mut buffer, RecvFlags::DONTWAIT).unwrap();
            assert!(along.is_empty());
            serde_json::from_slice(&buffer[..length]).unwrap()
        }
    }

    const REFUSED: Reply = Reply { number: 0, answer: Answer::Refused };

    #[test]
    fn a_million_random_messages_are_answered_and_survived() {
        let mut keeper = Keeper::new();
        let mut runner = TestRunner::new(Config::default());
        let random = proptest::collection::vec(any::<u8>(), 4096);
        let mut pool = Vec::new();
        for _ in 0..64 {
            pool.extend(random.new_tree(&mut runner).unwrap().current());
        }
        // A window that wanders over the pool, of lengths around a question's; every fifth begins as a question does.
        let mut at = 0;
        let mut sent = 0;
        while sent < MESSAGES {
            let mut expected = Vec::new();
            for _ in 0..AT_ONCE {
                sent += 1;
                at = (at + 7919) % (pool.len() - 2 * QUESTION_BYTES);
                let length = if sent % 2 == 0 { QUESTION_BYTES } else { 1 + at % (2 * QUESTION_BYTES - 1) };
                let mut message = pool[at..at + length].to_vec();
                if sent % 5 == 0 && length > 4 {
                    let kind = u32::from(message[4] % 9);
                    message[..4].copy_from_slice(&kind.to_le_bytes());
                }
                if sent % QUESTIONS == 0 {
                    let question = Question::CgroupPath { id: at as u64 };
                    message = question.encode(u32::try_from(sent).unwrap()).to_vec();
                }
                protocol::send(&keeper.far, &message, &[]).unwrap();
                expected.push(Question::decode(&message));
            }
            for question in expected {
                assert!(answer_next(&keeper.near, Keeper::myself(), &keeper.policy, &mut keeper.oracle));
                let reply = keeper.reply();
                match question {
                    Some((number, _)) => assert_eq!(reply.number, number),
                    None => assert_eq!(reply, REFUSED),
                }
            }
        }
        let question = Question::CgroupPath { id: u64::MAX };
        let reply = keeper.answer(&question.encode(77), Keeper::myself());
        assert_eq!(reply, Reply { number: 77, answer: Answer::CgroupPath(None) }, "it still answers");
    }

    #[test]
    fn a_worker_that_asks_without_end_waits_for_the_others_turn() {
        let mut keeper = Keeper::new();
        let question = Question::Ready.encode(1);
        while protocol::send(&keeper.far, &question, &[]).is_ok() {}
        assert!(answer_some(&keeper.near, Keeper::myself(), &keeper.policy, &mut keeper.oracle));
        let (mut buffer, mut answered) = (vec![0; MESSAGE_BYTES], 0);
        while protocol::receive(&keeper.far, &mut buffer, RecvFlags::DONTWAIT).is_ok() {
            answered += 1;
        }
        assert_eq!(answered, QUESTIONS_PER_TURN);
    }

    #[test]
    fn a_message_of_somebody_else_is_refused() {
        let mut keeper = Keeper::new();
        let question = Question::CgroupPath { id: u64::MAX }.encode(1);
        let myself = Keeper::myself();
        assert_ne!(keeper.answer(&question, myself), REFUSED);
        for other in [Peer { pid: myself.pid + 1, ..myself }, Peer { uid: myself.uid + 1, ..myself }] {
            assert_eq!(keeper.answer(&question, other), REFUSED);
        }
    }

    #[test]
    fn descriptors_that_somebody_sends_the_keeper_do_not_arrive() {
        let mut keeper = Keeper::new();
        let (reader, writer) = std::io::pipe().unwrap();
        let question = Question::CgroupPath { id: u64::MAX }.encode(1);
        protocol::send(&keeper.far, &question, &[writer.as_fd()]).unwrap();
        drop(writer);
        assert!(answer_next(&keeper.near, Keeper::myself(), &keeper.policy, &mut keeper.oracle));
        // The pipe has no writer any more, so the keeper holds none either.
        let mut byte = [0];
        assert_eq!(std::io::Read::read(&mut &reader, &mut byte).unwrap(), 0);
    }

    #[test]
    fn a_privileged_connection_is_refused_where_no_service_asks_for_one() {
        let mut keeper = Keeper::new();
        for (addr, port) in [("169.254.169.254", 80), ("127.0.0.1", 22), ("::1", 80), ("168.63.129.16", 80)] {
            for low_port in [false, true] {
                let question = Question::Connect { addr: addr.parse().unwrap(), port, low_port };
                let reply = keeper.answer(&question.encode(9), Keeper::myself());
                assert_eq!(reply, Reply { number: 9, answer: Answer::Connection(false) }, "{addr}:{port}");
            }
        }
    }
}
