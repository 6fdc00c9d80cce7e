//! A socket whose small writes go out together with those of the others, at the end of the event loop's turn.
//!
//! A write to a peer that sleeps costs an interrupt of another processor, several times what the write itself costs.
//! Written one by one, each message finds its peer asleep: it wakes, does its work and sleeps again before the next one
//! comes. Written together, the first one wakes the peer, and it finds the rest when it looks again.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// Longer writes, in bytes, go out at once: copying them would cost more than the wake-up that it saves.
const SMALL: usize = 4 << 10;

/// How much one read takes from the socket, in bytes.
const READ_BYTES: usize = 16 << 10;

/// How long a client that does not read may still take for the last bytes of a connection that has ended.
const FAREWELL: Duration = Duration::from_secs(5);

/// What one worker's sockets have yet to write in this turn.
#[derive(Default)]
pub struct Outbox {
    waiting: RefCell<Vec<Rc<Line>>>,
    turn: Notify,
}

impl Outbox {
    /// Writes at the end of each turn what has gathered in it. Runs in a task of its own: told of the first write of a
    /// turn, it comes after the tasks that were already due.
    pub async fn empty_every_turn(self: Rc<Self>) {
        loop {
            self.turn.notified().await;
            let waiting = self.waiting.take();
            for line in waiting {
                line.queued.set(false);
                line.write_what_goes();
                line.leave_the_rest();
            }
        }
    }

    fn put(&self, line: &Rc<Line>) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.push(Rc::clone(line));
        if waiting.len() == 1 {
            self.turn.notify_one();
        }
    }
}

/// What a socket and the outbox share.
struct Line {
    stream: RefCell<TcpStream>,
    unsent: RefCell<Vec<u8>>,
    /// Whether the outbox will write what is unsent.
    queued: Cell<bool>,
    failed: Cell<Option<io::ErrorKind>>,
    /// Who wrote last, and has to be woken if it cannot be sent.
    writer: RefCell<Option<Waker>>,
}

impl Line {
    /// Writes as much as the kernel takes now.
    fn write_what_goes(&self) {
        let mut unsent = self.unsent.borrow_mut();
        while !unsent.is_empty() {
            match self.stream.borrow().try_write(&unsent) {
                Ok(length) => drop(unsent.drain(..length)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.failed.set(Some(error.kind()));
                    unsent.clear();
                }
            }
        }
    }

    /// What the kernel did not take is the writer's to send; if that one is gone, it goes by itself.
    fn leave_the_rest(self: Rc<Self>) {
        if self.unsent.borrow().is_empty() && self.failed.get().is_none() {
            return;
        }
        if Rc::strong_count(&self) > 1 {
            if let Some(writer) = self.writer.take() {
                writer.wake();
            }
        } else {
            tokio::task::spawn_local(tokio::time::timeout(FAREWELL, async move {
                poll_fn(|cx| self.poll_send(cx)).await
            }));
        }
    }

    /// Writes all that is unsent.
    fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(kind) = self.failed.get() {
            return Poll::Ready(Err(kind.into()));
        }
        let mut unsent = self.unsent.borrow_mut();
        while !unsent.is_empty() {
            let length = ready!(Pin::new(&mut *self.stream.borrow_mut()).poll_write(cx, &unsent))?;
            drop(unsent.drain(..length));
        }
        Poll::Ready(Ok(()))
    }
}

/// One end of a connection. Dropped, it still sends what it took, and closes then.
pub struct Socket {
    line: Rc<Line>,
    outbox: Rc<Outbox>,
}

impl Socket {
    /// A socket that writes by way of this worker's outbox.
    #[must_use]
    pub fn new(stream: TcpStream, outbox: Rc<Outbox>) -> Self {
        let line = Line {
            stream: stream.into(),
            unsent: RefCell::default(),
            queued: Cell::new(false),
            failed: Cell::new(None),
            writer: RefCell::default(),
        };
        Self { line: Rc::new(line), outbox }
    }

    /// Reads what has come, at most a buffer's worth, and hands it over; its length, 0 at the end.
    pub fn poll_take(
        &self,
        cx: &mut Context<'_>,
        room: usize,
        take: impl FnOnce(&[u8]),
    ) -> Poll<io::Result<usize>> {
        let mut space = [MaybeUninit::<u8>::uninit(); READ_BYTES];
        let room = room.min(READ_BYTES);
        let mut buffer = ReadBuf::uninit(space.get_mut(..room).unwrap_or_default());
        ready!(Pin::new(&mut *self.line.stream.borrow_mut()).poll_read(cx, &mut buffer))?;
        take(buffer.filled());
        Poll::Ready(Ok(buffer.filled().len()))
    }

    /// Takes bytes to send: short ones for the end of the turn.
    pub fn poll_put(&self, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if length > SMALL || self.line.unsent.borrow().len() > SMALL {
            ready!(self.line.poll_send(cx))?;
            return Pin::new(&mut *self.line.stream.borrow_mut()).poll_write_vectored(cx, slices);
        }
        if let Some(kind) = self.line.failed.get() {
            return Poll::Ready(Err(kind.into()));
        }
        let mut unsent = self.line.unsent.borrow_mut();
        for slice in slices {
            unsent.extend_from_slice(slice);
        }
        self.line.writer.borrow_mut().replace(cx.waker().clone());
        if !self.line.queued.replace(true) {
            self.outbox.put(&self.line);
        }
        Poll::Ready(Ok(length))
    }

    /// Whether all has gone out, or will at the end of the turn.
    pub fn poll_sent(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.line.queued.get() { Poll::Ready(Ok(())) } else { self.line.poll_send(cx) }
    }

    /// The bare stream, with all sent that was to be; `None` if the other end does not take it.
    pub async fn into_stream(self) -> Option<TcpStream> {
        let sent = tokio::time::timeout(FAREWELL, poll_fn(|cx| self.line.poll_send(cx))).await;
        self.outbox.waiting.borrow_mut().retain(|line| !Rc::ptr_eq(line, &self.line));
        matches!(sent, Ok(Ok(())))
            .then(|| Rc::into_inner(self.line))
            .flatten()
            .map(|line| line.stream.into_inner())
    }
}

impl Read for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_take(cx, buffer.remaining(), |bytes| buffer.put_slice(bytes)).map_ok(drop)
    }
}

impl Write for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_put(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_put(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sent(cx)
    }

    /// Nothing: what ends a connection is its close, which comes next, and says the same to the other end.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_sent(cx)
    }
}
