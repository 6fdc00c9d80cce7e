//! The client's connection as hyper's server sees it: only bytes that the gate has passed.
//!
//! hyper answers some malformed heads by itself and reads others more generously than the guard does, so it never
//! sees a head before the gate has judged its framing. For each head that it sees there is one [`Admitted`] in
//! [`Wire::admitted`]: the raw head, or the fault that put an end to the connection, for which hyper is shown a
//! stand-in. So every request, however broken, takes the one way through the pipeline.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use bytes::{Buf as _, Bytes, BytesMut};
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::net::TcpStream;

use crate::request::{Fault, Gate, RawHead, Step, Strictness};

use super::socket::Socket;

/// What hyper is shown in place of a head that the gate refused; the answer to it closes the connection.
const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";

/// How much of the next, pipelined requests is read ahead while an answer is under way.
const AHEAD_BYTES: usize = 64 << 10;

/// What the gate let through, in the order in which hyper sees it.
#[derive(Debug)]
pub enum Admitted {
    /// A well-framed head.
    Head(RawHead),
    /// The connection's last request: it has no single meaning.
    Faulty(Fault),
}

/// What a connection is doing, and since when: what the time limits go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Between requests.
    Idle(Instant),
    /// In the middle of a head.
    Head(Instant),
    /// Waiting for more of a request's body.
    Body(Instant),
    /// A request is being answered: no limit, since long polls take as long as they take.
    Answering,
}

/// Why hyper's part of the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// As HTTP says.
    Ordinary,
    /// Its bytes cannot be judged, and audit mode passes them on as they are.
    Tunnel(Fault),
    /// A time limit ran out, or the guard stops.
    Expired,
    /// The service failed before it answered, and the client sees that as it would without the guard.
    Reset,
}

/// Whether the client is still there after its half of the connection ended.
pub type StillThere = Box<dyn Fn() -> bool>;

/// A shared handle to one client's connection.
#[derive(Clone)]
pub struct Wire(Rc<Inner>);

/// A handle that does not keep the connection alive.
pub struct WeakWire(Weak<Inner>);

impl WeakWire {
    /// The connection, if it is still there.
    #[must_use]
    pub fn upgrade(&self) -> Option<Wire> {
        self.0.upgrade().map(Wire)
    }
}

struct Inner {
    state: RefCell<State>,
    still_there: StillThere,
    phase: Cell<Phase>,
    ending: Cell<Ending>,
    half_closed: Cell<bool>,
}

struct State {
    stream: Socket,
    gate: Gate,
    strictness: Strictness,
    unread: BytesMut,
    passed: Bytes,
    admitted: Option<Admitted>,
    reader: Option<Waker>,
    answering: bool,
    refused: bool,
}

impl Wire {
    /// Puts the gate on a client's connection.
    #[must_use]
    pub fn new(stream: Socket, gate: Gate, strictness: Strictness, still_there: StillThere) -> Self {
        Self(Rc::new(Inner {
            state: RefCell::new(State {
                stream,
                gate,
                strictness,
                unread: BytesMut::new(),
                passed: Bytes::new(),
                admitted: None,
                reader: None,
                answering: false,
                refused: false,
            }),
            still_there,
            phase: Cell::new(Phase::Idle(Instant::now())),
            ending: Cell::new(Ending::Ordinary),
            half_closed: Cell::new(false),
        }))
    }

    /// A handle for those who only watch.
    #[must_use]
    pub fn downgrade(&self) -> WeakWire {
        WeakWire(Rc::downgrade(&self.0))
    }

    /// The head that belongs to the request that hyper has just delivered.
    #[must_use]
    pub fn admitted(&self) -> Option<Admitted> {
        self.0.state.borrow_mut().admitted.take()
    }

    /// The answer is out: the next pipelined request may be read.
    pub fn answered(&self) {
        let mut state = self.0.state.borrow_mut();
        state.gate.response_done();
        state.answering = false;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
    }

    /// A reload may change how strict the next request is read.
    pub fn set_strictness(&self, strictness: Strictness) {
        let mut state = self.0.state.borrow_mut();
        state.gate.set_strictness(strictness);
        state.strictness = strictness;
    }

    /// What the connection is doing.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.0.phase.get()
    }

    /// How hyper's part ended, once it has.
    #[must_use]
    pub fn ending(&self) -> Ending {
        self.0.ending.get()
    }

    /// Ends the connection as soon as hyper looks.
    pub fn expire(&self) {
        self.0.ending.set(Ending::Expired);
        if let Some(reader) = self.0.state.borrow_mut().reader.take() {
            reader.wake();
        }
    }

    /// Looks again whether a client that closed its half is still there; wakes hyper if it is not.
    pub fn check_half_closed(&self) {
        if self.0.half_closed.get()
            && !(self.0.still_there)()
            && let Some(reader) = self.0.state.borrow_mut().reader.take()
        {
            reader.wake();
        }
    }

    /// Ends the connection by a reset, as the client would see it if the service itself had refused.
    pub fn end_by_reset(&self) {
        self.0.ending.set(Ending::Reset);
    }

    /// Whether the client may still be sending what nobody will read: a plain close would answer that with a reset,
    /// which destroys the last answer on its way.
    #[must_use]
    pub fn has_unread(&self) -> bool {
        let state = self.0.state.borrow();
        state.refused || !state.unread.is_empty() || matches!(self.0.phase.get(), Phase::Body(_))
    }

    /// The bare connection and what was read of it and not passed on, for a tunnel.
    #[must_use]
    pub async fn into_tunnel(self) -> Option<(TcpStream, BytesMut)> {
        let inner = Rc::into_inner(self.0)?;
        let state = inner.state.into_inner();
        Some((state.stream.into_stream().await?, state.unread))
    }
}

impl Inner {
    /// What hyper gets to read next; an empty answer is the end.
    fn poll_passed(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state.borrow_mut();
        loop {
            if !state.passed.is_empty() || self.ending.get() != Ending::Ordinary {
                return Poll::Ready(Ok(()));
            }
            if state.refused {
                return self.poll_hold(&mut state, cx);
            }
            let State { gate, unread, .. } = &mut *state;
            match gate.step(unread) {
                Step::Head { head, consumed } => {
                    state.unread.advance(consumed);
                    state.passed = head.bytes().clone();
                    state.admitted = Some(Admitted::Head(head));
                    state.answering = true;
                }
                Step::Body(length) => state.passed = state.unread.split_to(length).freeze(),
                Step::RequestComplete => self.phase.set(Phase::Answering),
                Step::Hold => return self.poll_hold(&mut state, cx),
                Step::Refused(fault) => self.refuse(&mut state, fault)?,
                Step::NeedMore => {
                    self.note_phase(&state);
                    if ready!(self.poll_more(&mut state, cx))? == 0 {
                        return Poll::Ready(Ok(()));
                    }
                    self.note_phase(&state);
                }
            }
        }
    }

    /// Audit mode passes on what it cannot read, but only between requests: in the middle of one there is nothing
    /// that would still mean the same.
    fn refuse(&self, state: &mut State, fault: Fault) -> io::Result<()> {
        if state.answering {
            return Err(io::Error::new(io::ErrorKind::InvalidData, fault.message()));
        }
        if state.strictness == Strictness::Audit {
            self.ending.set(Ending::Tunnel(fault));
        } else {
            state.passed = Bytes::from_static(STAND_IN);
            state.admitted = Some(Admitted::Faulty(fault));
            (state.answering, state.refused) = (true, true);
        }
        Ok(())
    }

    /// An answer is under way: nothing is passed on, but a client that leaves is noticed.
    fn poll_hold(&self, state: &mut State, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.phase.set(Phase::Answering);
        loop {
            state.reader = Some(cx.waker().clone());
            if self.half_closed.get() {
                return if (self.still_there)() { Poll::Pending } else { Poll::Ready(Ok(())) };
            }
            if state.unread.len() >= AHEAD_BYTES {
                return Poll::Pending;
            }
            if ready!(self.poll_more(state, cx))? == 0 {
                self.half_closed.set(true);
            }
        }
    }

    /// Reads from the socket; 0 at its end.
    fn poll_more(&self, state: &mut State, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.half_closed.get() {
            return Poll::Ready(Ok(0));
        }
        let State { stream, unread, reader, .. } = state;
        let read = stream.poll_take(cx, usize::MAX, |bytes| unread.extend_from_slice(bytes));
        if read.is_pending() {
            *reader = Some(cx.waker().clone());
        }
        read
    }

    fn note_phase(&self, state: &State) {
        let phase = match (state.answering, state.unread.is_empty(), self.phase.get()) {
            (true, ..) => Phase::Body(Instant::now()),
            (false, false, phase @ Phase::Head(_)) | (false, true, phase @ Phase::Idle(_)) => phase,
            (false, false, _) => Phase::Head(Instant::now()),
            (false, true, _) => Phase::Idle(Instant::now()),
        };
        self.phase.set(phase);
    }
}

impl Read for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.0.poll_passed(cx))?;
        let mut state = self.0.state.borrow_mut();
        let length = state.passed.len().min(buffer.remaining());
        buffer.put_slice(&state.passed.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl Write for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.state.borrow().stream.poll_put(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.state.borrow().stream.poll_put(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.state.borrow().stream.poll_sent(cx)
    }

    /// Nothing more: the connection goes on as a tunnel, or ends with a close that says the same.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.state.borrow().stream.poll_sent(cx)
    }
}
