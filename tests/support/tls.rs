//! A metadata service behind TLS: a certificate authority made for one test, and a server that ends TLS and asks the
//! decoy cloud.

use std::fs::{self, File, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, setns};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::netns::Namespace;

/// The name that Google's clients verify.
pub const GOOGLE: &str = "metadata.google.internal";

/// Whether a certificate's time is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Validity {
    /// It is.
    Valid,
    /// It is over.
    Expired,
}

/// A certificate authority.
pub struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key.
pub struct Leaf {
    /// Key and certificate in one text, as Google's guest agent writes them.
    pub pem: String,
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Authority {
    /// A new one, which nobody knows yet.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no name is no wrong name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { pem: certificate.pem(), der: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    /// Its certificate, as it lies in a file.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for that name.
    pub fn issue(&self, name: &str, validity: Validity) -> Leaf {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, name);
        if validity == Validity::Expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2020, 2, 1);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Leaf {
            pem: format!("{}{}", key.serialize_pem(), certificate.pem()),
            chain: vec![certificate.der().clone()],
            key: key.serialize_der(),
        }
    }
}

/// Writes a file as the guest agent does: root's, for everybody to read.
pub fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a file lies in a directory")).expect("a directory");
    fs::write(path, text).expect("a file");
    fs::set_permissions(path, Permissions::from_mode(0o644)).expect("its own file");
}

/// A server that speaks TLS and passes what it reads on to the decoy cloud's port 80. Stops when dropped.
pub struct TlsServer {
    accepted: Arc<AtomicUsize>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TlsServer {
    /// Listens in the namespace. Clients must show a certificate of `clients`, if it is given.
    pub fn start(cloud: &Namespace, at: &str, leaf: &Leaf, clients: Option<&Authority>) -> Self {
        let at: SocketAddr = at.parse().expect("an address and a port");
        let config = server_config(leaf, clients);
        let (ready, is_ready) = mpsc::channel();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let namespace = File::open(cloud.path()).expect("the namespace exists");
        let thread = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = TcpListener::bind(at).await.expect("the address is free");
                ready.send(()).expect("somebody waits");
                tokio::select! {
                    () = serve(listener, config, &count) => {}
                    _ = stopped => {}
                }
            });
        });
        is_ready.recv().expect("the TLS server listens");
        Self { accepted, stop: Some(stop), thread: Some(thread) }
    }

    /// How many TLS connections were made: handshakes that both sides took.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn server_config(leaf: &Leaf, clients: Option<&Authority>) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => {
            let mut roots = RootCertStore::empty();
            roots.add(authority.der.clone()).expect("a root");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.expect("a verifier"))
        }
    };
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf.key.clone()));
    builder.with_single_cert(leaf.chain.clone(), key).expect("a certificate and its key")
}

async fn serve(listener: TcpListener, config: ServerConfig, accepted: &Arc<AtomicUsize>) {
    let (local, acceptor) = (listener.local_addr().expect("an address"), TlsAcceptor::from(Arc::new(config)));
    let tasks = tokio::task::LocalSet::new();
    let accept = async {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, accepted) = (acceptor.clone(), Arc::clone(accepted));
            // A client that gives up is no fault of the server.
            tokio::task::spawn_local(async move { converse(stream, local, &acceptor, &accepted).await });
        }
    };
    tasks.run_until(accept).await;
}

async fn converse(
    stream: TcpStream,
    local: SocketAddr,
    acceptor: &TlsAcceptor,
    accepted: &AtomicUsize,
) -> io::Result<()> {
    let mut client = acceptor.accept(stream).await?;
    accepted.fetch_add(1, Ordering::SeqCst);
    let mut cloud = TcpStream::connect(SocketAddr::new(local.ip(), 80)).await?;
    copy_bidirectional(&mut client, &mut cloud).await.map(drop)
}
