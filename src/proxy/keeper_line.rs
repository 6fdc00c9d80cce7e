//! The proxy's line to the keeper: one question at a time, with a time limit, never blocking the worker.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdDatagram;
use std::time::Duration;

use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixDatagram};
use tokio::sync::{Mutex, Semaphore};

use crate::keeper::protocol::{self, Answer, MESSAGE_BYTES, Question, Reply};

/// How many questions may wait for the line. Beyond that the asker is told "unknown" at once: a flood of callers
/// that need a look-up must not queue up before everybody else's.
const WAITING: usize = 64;

/// How long an answer may take before it counts as unknown, which in enforce mode means a refusal. The keeper needs
/// microseconds; only a machine whose processors are starved comes near this, and its clients wait as well.
const PATIENCE: Duration = Duration::from_secs(1);

/// One worker's channel to the keeper.
#[derive(Debug)]
pub struct KeeperLine {
    channel: UnixDatagram,
    places: Semaphore,
    turn: Mutex<Vec<u8>>,
    number: Cell<u32>,
}

impl KeeperLine {
    /// A line over this end of the channel. Must be called inside the worker's runtime.
    pub fn new(channel: OwnedFd) -> io::Result<Self> {
        // A seqpacket socket keeps messages apart as a datagram socket does, and tokio knows only the latter.
        let channel = StdDatagram::from(channel);
        channel.set_nonblocking(true)?;
        Ok(Self {
            channel: UnixDatagram::from_std(channel)?,
            places: Semaphore::new(WAITING),
            turn: Mutex::new(vec![0; MESSAGE_BYTES]),
            number: Cell::new(0),
        })
    }

    /// Asks and waits for the answer; `None` if there is none in time.
    pub async fn ask(&self, question: Question) -> Option<Answer> {
        Some(self.ask_for_more(question).await?.0)
    }

    /// A connection to a metadata endpoint that carries a proof of privilege.
    pub async fn connect(&self, to: SocketAddr, low_port: bool) -> io::Result<TcpStream> {
        let question = Question::Connect { addr: to.ip(), port: to.port(), low_port };
        let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, "the keeper opened no connection");
        let (_, socket) = self.ask_for_more(question).await.ok_or_else(refused)?;
        let stream = TcpStream::from_std(socket.ok_or_else(refused)?.into())?;
        stream.writable().await?;
        stream.take_error()?.map_or(Ok(stream), Err)
    }

    async fn ask_for_more(&self, question: Question) -> Option<(Answer, Option<OwnedFd>)> {
        let _place = self.places.try_acquire().ok()?;
        tokio::time::timeout(PATIENCE, self.exchange(question)).await.ok()?
    }

    async fn exchange(&self, question: Question) -> Option<(Answer, Option<OwnedFd>)> {
        let mut buffer = self.turn.lock().await;
        let number = self.number.get().wrapping_add(1);
        self.number.set(number);
        self.channel.send(&question.encode(number)).await.ok()?;
        loop {
            let received = self.channel.async_io(Interest::READABLE, || {
                protocol::receive(&self.channel, &mut buffer, RecvFlags::DONTWAIT)
            });
            let (length, mut descriptors) = received.await.ok()?;
            let reply: Reply = serde_json::from_slice(buffer.get(..length)?).ok()?;
            if reply.number == number {
                return Some((reply.answer, descriptors.pop())); // else the late answer to a question that was given up
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::*;

    #[test]
    fn one_question_is_under_way_a_few_wait_and_the_rest_are_turned_away() {
        const CALLERS: usize = 500;
        let (near, far) = protocol::channel().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            let line = Rc::new(KeeperLine::new(near).unwrap());
            let ask = |id| {
                let line = Rc::clone(&line);
                spawn_local(async move { line.ask(Question::CgroupPath { id }).await })
            };
            let asked: Vec<_> = (0..CALLERS as u64).map(ask).collect();
            for _ in 0..CALLERS {
                yield_now().await;
            }
            let turned_away = asked.iter().filter(|one| one.is_finished()).count();
            assert_eq!(turned_away, CALLERS - WAITING, "no more than {WAITING} may wait for the keeper");
            let mut buffer = [0; protocol::QUESTION_BYTES + 1];
            let mut at_the_keeper = 0;
            while protocol::receive_from(&far, &mut buffer).is_ok() {
                at_the_keeper += 1;
            }
            assert_eq!(at_the_keeper, 1, "the others wait for its answer");
        });
    }
}
