//! Serves the snapshot: HTTP on a unix socket, and the metrics alone on a loopback port.
//!
//! Whoever connects may be slow, hostile, or many. So each door takes few connections at a time, each of which ends after
//! two seconds whatever it does; requests have no body; and the snapshot is made at most a few times a second.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use super::prometheus;
use super::snapshot::Snapshot;

/// Connections at one time, for each door.
const CONNECTIONS: usize = 8;

/// How long one connection may last.
const PATIENCE: Duration = Duration::from_secs(2);

/// A snapshot serves whoever asks within this time after it was made.
const FRESH: Duration = Duration::from_millis(200);

/// How long a failed accept is waited out.
const PAUSE: Duration = Duration::from_millis(100);

/// Where snapshots come from.
pub trait Source: 'static {
    /// Makes one.
    fn snapshot(&self) -> impl Future<Output = Snapshot>;
}

/// Which paths a door has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    /// All of them: whoever may open the socket may see it all.
    Unix,
    /// What every local user may see.
    Loopback,
}

/// Serves both doors for ever, on the present thread.
pub async fn serve<S: Source>(source: S, unix: Option<UnixListener>, loopback: Option<TcpListener>) {
    let office = Rc::new(Office { source, last: RefCell::default(), making: tokio::sync::Mutex::new(()) });
    let at_unix = async {
        let Some(listener) = unix else { return };
        serve_door(&office, Door::Unix, async || listener.accept().await.map(|(stream, _)| stream)).await;
    };
    let at_loopback = async {
        let Some(listener) = loopback else { return };
        serve_door(&office, Door::Loopback, async || listener.accept().await.map(|(stream, _)| stream)).await;
    };
    tokio::join!(at_unix, at_loopback);
}

async fn serve_door<S: Source, C>(office: &Rc<Office<S>>, door: Door, accept: impl AsyncFn() -> io::Result<C>)
where
    C: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match accept().await {
            Ok(stream) => {
                let office = Rc::clone(office);
                tokio::task::spawn_local(async move {
                    let _place = place;
                    let _ = tokio::time::timeout(PATIENCE, office.serve(door, stream)).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a reader of the status could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

struct Office<S> {
    source: S,
    last: RefCell<Option<(Instant, Rc<Snapshot>)>>,
    /// Held while a snapshot is made: readers that come together wait for one.
    making: tokio::sync::Mutex<()>,
}

impl<S: Source> Office<S> {
    async fn serve<C: AsyncRead + AsyncWrite + Unpin + 'static>(self: Rc<Self>, door: Door, stream: C) {
        let service = service_fn(|request| {
            let office = Rc::clone(&self);
            async move { io::Result::Ok(office.answer(door, &request).await) }
        });
        let served = http1::Builder::new()
            .keep_alive(false)
            .auto_date_header(false)
            .max_buf_size(8 << 10)
            .serve_connection(TokioIo::new(stream), service)
            .await;
        if let Err(error) = served {
            tracing::debug!(%error, "a reader of the status left");
        }
    }

    async fn answer(&self, door: Door, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "GET only\n");
        }
        match (request.uri().path(), door) {
            ("/metrics", _) => {
                let text = prometheus::write(&*self.snapshot().await);
                response(StatusCode::OK, prometheus::CONTENT_TYPE, text)
            }
            ("/status", Door::Unix) => match serde_json::to_string(&*self.snapshot().await) {
                Ok(text) => response(StatusCode::OK, "application/json", text),
                Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the snapshot cannot be written\n"),
            },
            (_, Door::Unix) => plain(StatusCode::NOT_FOUND, "/status (JSON) and /metrics (Prometheus)\n"),
            (_, Door::Loopback) => plain(StatusCode::NOT_FOUND, "/metrics (Prometheus)\n"),
        }
    }

    async fn snapshot(&self) -> Rc<Snapshot> {
        let _turn = self.making.lock().await;
        if let Some((made, snapshot)) = &*self.last.borrow()
            && made.elapsed() < FRESH
        {
            return Rc::clone(snapshot);
        }
        let snapshot = Rc::new(self.source.snapshot().await);
        *self.last.borrow_mut() = Some((Instant::now(), Rc::clone(&snapshot)));
        snapshot
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    response(status, "text/plain; charset=utf-8", text)
}

fn response(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpStream, UnixStream};

    use super::*;
    use crate::observe::snapshot::tests::example;

    struct Counted(Rc<Cell<u32>>);

    impl Source for Counted {
        async fn snapshot(&self) -> Snapshot {
            self.0.set(self.0.get() + 1);
            example()
        }
    }

    /// Runs a test beside both doors.
    fn with_doors(test: impl AsyncFnOnce(std::path::PathBuf, std::net::SocketAddr, Rc<Cell<u32>>)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("status.sock");
            let unix = UnixListener::bind(&path).unwrap();
            let loopback = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = loopback.local_addr().unwrap();
            let made = Rc::new(Cell::new(0));
            tokio::task::spawn_local(serve(Counted(Rc::clone(&made)), Some(unix), Some(loopback)));
            test(path, addr, made).await;
        });
    }

    async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, line: &str) -> String {
        stream.write_all(format!("{line} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[test]
    fn the_unix_socket_has_it_all_and_the_loopback_port_only_the_metrics() {
        with_doors(async |path, addr, _| {
            let unix = async |line: &str| ask(UnixStream::connect(&path).await.unwrap(), line).await;
            let loopback = async |line: &str| ask(TcpStream::connect(addr).await.unwrap(), line).await;
            let status = unix("GET /status").await;
            let body = status.split_once("\r\n\r\n").unwrap().1;
            assert_eq!(serde_json::from_str::<Snapshot>(body).unwrap(), example());
            for answer in [unix("GET /metrics").await, loopback("GET /metrics").await] {
                assert!(answer.contains("imds_guard_redirect_in_place 1\n"), "{answer}");
            }
            let hidden = loopback("GET /status").await;
            assert!(hidden.starts_with("HTTP/1.0 404") && !hidden.contains("web.service"), "{hidden}");
            assert!(unix("POST /status").await.starts_with("HTTP/1.0 405"));
            assert!(unix("nonsense").await.starts_with("HTTP/1.1 400"));
        });
    }

    #[test]
    fn readers_that_take_every_place_are_let_go_and_those_of_the_other_door_do_not_wait() {
        with_doors(async |path, addr, _| {
            let mut idle = Vec::new();
            for _ in 0..CONNECTIONS * 2 {
                idle.push(TcpStream::connect(addr).await.unwrap());
            }
            let status = ask(UnixStream::connect(&path).await.unwrap(), "GET /status").await;
            assert!(status.starts_with("HTTP/1.0 200"), "{status}");
            // Behind them all in the queue, and answered when they are let go.
            let late = ask(TcpStream::connect(addr).await.unwrap(), "GET /metrics").await;
            assert!(late.starts_with("HTTP/1.0 200"), "{late}");
        });
    }

    #[test]
    fn many_readers_share_one_snapshot() {
        with_doors(async |path, _, made| {
            for _ in 0..5 {
                ask(UnixStream::connect(&path).await.unwrap(), "GET /metrics").await;
            }
            // A machine that is busy may take longer than a snapshot is fresh; it must not be one for each.
            assert!(made.get() < 5, "{} snapshots", made.get());
        });
    }
}
