//! TLS to the metadata service: the caller speaks plain HTTP to the guard, the guard judges the request and speaks TLS
//! to the service.
//!
//! * The service's certificate is verified on every connection: signed by the roots that belong to the service, for its
//!   name, valid now. No session is resumed, or a certificate would outlive its end.
//! * Under `require` nothing goes without TLS, except what the client's certificate itself is made from.
//! * Under `prefer` a service that does not speak TLS is asked without, as its callers would have asked it. One that
//!   speaks TLS and cannot prove who it is, is not: somebody stands in its place.
//!
//! So `prefer` keeps those out who only listen. Whoever can keep the guard from reaching the service's TLS port can make
//! it ask in clear; against them there is `require`.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{HOST, HeaderMap, HeaderValue, LOCATION};
use http::{Request, Uri};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::audit::event::UpstreamTls as Told;
use crate::cloud::tls::TlsAt;
use crate::cloud::{Endpoint, PathPattern};
use crate::keeper::certificates::Certificates;
use crate::policy::{Policy, TlsUse};

use super::upstream::UpstreamError;
use super::worker::Worker;

/// How long a service may take until TLS stands: where there is another way, less than its clients wait for an answer.
const PATIENCE_WITH_ANOTHER_WAY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a service that did not speak TLS is asked without it, before it is tried again.
const DECLINED: Duration = Duration::from_mins(1);

/// Why a request that should go over TLS does not go at all.
#[derive(Debug, Error)]
pub enum TlsError {
    /// Nobody answers at the TLS port, or not in TLS, or not to this client.
    #[error("TLS is required, and the metadata service does not speak it with this machine")]
    NotOffered,
    /// There are no roots, or no client certificate where the service asks for one.
    #[error("TLS is required, and the certificates for it are not there")]
    NoCertificates,
    /// Several clouds may be meant.
    #[error("TLS is required, and which cloud this is is not certain")]
    Uncertain,
    /// Whoever answers is not the service.
    #[error("the metadata service's certificate {0}")]
    Certificate(&'static str),
    /// The other side speaks TLS wrongly.
    #[error("TLS with the metadata service failed")]
    Broken,
    /// This machine could not open the connection.
    #[error("cannot connect to the metadata service")]
    Connect(#[source] io::Error),
}

/// What a policy and the certificates of the moment make of TLS.
pub struct Tls {
    required: bool,
    /// Tells connections that were made with other certificates, or under another policy.
    generation: u64,
    offered: HashSet<Endpoint>,
    uncertain: HashSet<Endpoint>,
    service: Option<Service>,
    declined: Mutex<HashMap<Endpoint, Instant>>,
}

struct Service {
    port: u16,
    name: ServerName<'static>,
    host: HeaderValue,
    plain: Option<PathPattern>,
    connector: Option<TlsConnector>,
}

/// How one request goes upstream.
#[derive(Clone)]
pub enum Way {
    /// Without TLS, and if the policy wants TLS, why.
    Plain(Option<Told>),
    /// Over TLS.
    Tls(Arc<Tls>),
}

/// How what asks for this path goes there; without a path, for bytes that nobody reads.
pub fn way(worker: &Worker, to: SocketAddr, path: Option<&str>) -> Result<Way, TlsError> {
    worker.shared.tls.load_full().map_or(Ok(Way::Plain(None)), |tls| tls.way(to, path))
}

impl Way {
    /// TLS, if it is that.
    #[must_use]
    pub fn tls(&self) -> Option<&Tls> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(tls) => Some(tls),
        }
    }

    /// What tells its connections from those of another way.
    #[must_use]
    pub fn generation(&self) -> Option<u64> {
        self.tls().map(|tls| tls.generation)
    }

    /// What an event tells of it.
    #[must_use]
    pub fn told(&self) -> Option<Told> {
        match self {
            Self::Plain(told) => *told,
            Self::Tls(_) => Some(Told::Established),
        }
    }

    /// Whether there is another way, should the service not take this one.
    #[must_use]
    pub fn may_change(&self) -> bool {
        self.tls().is_some_and(Tls::has_another_way)
    }

    /// The way that is left when the service, having proven who it is, turned this machine away: its certificate is
    /// over, say. From TLS 1.3 on that comes only with the first read.
    #[must_use]
    pub fn left_after(&self, error: &UpstreamError, to: SocketAddr) -> Option<Self> {
        let UpstreamError::Exchange(error) = error else { return None };
        self.tls().filter(|tls| tls.has_another_way() && turned_away(error)).map(|tls| tls.decline(to))
    }
}

impl Tls {
    /// What the policy wants; `None` if it does not want TLS.
    ///
    /// Certificates that cannot be used, such as a file that is just being written, do not replace those of `before`.
    #[must_use]
    pub fn new(policy: &Policy, certificates: Option<&Certificates>, before: Option<&Self>) -> Option<Self> {
        static GENERATIONS: AtomicU64 = AtomicU64::new(0);
        let required = match policy.settings().upstream_tls {
            TlsUse::Off => return None,
            TlsUse::Prefer => false,
            TlsUse::Require => true,
        };
        let catalogue = policy.catalogue();
        let endpoints = || catalogue.endpoints().into_iter();
        let is_sure = |endpoint: &Endpoint| matches!(catalogue.upstream_tls(*endpoint), TlsAt::Sure(_));
        let service = catalogue.sure_tls().and_then(|tls| {
            let mut connector = None;
            if let Some(Certificates { roots: Some(roots), client }) = certificates
                && (client.is_some() || tls.client.is_none())
            {
                connector = connector_of(roots, client.as_deref());
                if connector.is_none() {
                    tracing::error!("the certificates for TLS cannot be used; those from before stay in use");
                    connector = before.and_then(|before| before.service.as_ref()?.connector.clone());
                }
            }
            Some(Service {
                port: tls.port,
                name: ServerName::try_from(tls.server_name.clone()).ok()?,
                host: HeaderValue::try_from(&tls.server_name).ok()?,
                plain: tls.plain.clone(),
                connector,
            })
        });
        Some(Self {
            required,
            generation: GENERATIONS.fetch_add(1, Ordering::Relaxed),
            offered: endpoints().filter(is_sure).collect(),
            uncertain: endpoints().filter(|at| catalogue.upstream_tls(*at) == TlsAt::Uncertain).collect(),
            service,
            declined: Mutex::default(),
        })
    }

    fn way(self: Arc<Self>, to: SocketAddr, path: Option<&str>) -> Result<Way, TlsError> {
        let endpoint = Endpoint::new(to.ip(), to.port());
        if self.uncertain.contains(&endpoint) {
            return if self.required { Err(TlsError::Uncertain) } else { Ok(Way::Plain(None)) };
        }
        let Some(service) = self.service.as_ref().filter(|_| self.offered.contains(&endpoint)) else {
            return Ok(Way::Plain(None));
        };
        if path.is_some_and(|path| service.is_plain(path)) {
            return Ok(Way::Plain(Some(Told::Bootstrap)));
        }
        if service.connector.is_none() {
            return if self.required {
                Err(TlsError::NoCertificates)
            } else {
                Ok(Way::Plain(Some(Told::NoCertificate)))
            };
        }
        if !self.required && self.has_declined(endpoint) {
            return Ok(Way::Plain(Some(Told::Declined)));
        }
        Ok(Way::Tls(self))
    }

    /// Whether a request may go without TLS when the service turns out not to speak it.
    #[must_use]
    pub fn has_another_way(&self) -> bool {
        !self.required
    }

    /// Where TLS is spoken for that endpoint.
    #[must_use]
    pub fn door_of(&self, to: SocketAddr) -> SocketAddr {
        let mut door = to;
        door.set_port(self.service.as_ref().map_or(to.port(), |service| service.port));
        door
    }

    /// Notes that the service at that endpoint does not speak TLS with this machine; gives the way that is left.
    pub fn decline(&self, to: SocketAddr) -> Way {
        let endpoint = Endpoint::new(to.ip(), to.port());
        self.declined.lock().unwrap_or_else(PoisonError::into_inner).insert(endpoint, Instant::now());
        Way::Plain(Some(Told::Declined))
    }

    fn has_declined(&self, endpoint: Endpoint) -> bool {
        let declined = self.declined.lock().unwrap_or_else(PoisonError::into_inner);
        declined.get(&endpoint).is_some_and(|since| since.elapsed() < DECLINED)
    }

    /// Makes TLS of a connection that `dial` opens.
    pub async fn shake(
        &self,
        dial: impl Future<Output = io::Result<TcpStream>>,
    ) -> Result<TlsStream<TcpStream>, TlsError> {
        let service = self.service.as_ref().ok_or(TlsError::NoCertificates)?;
        let connector = service.connector.as_ref().ok_or(TlsError::NoCertificates)?;
        let patience = if self.required { PATIENCE } else { PATIENCE_WITH_ANOTHER_WAY };
        let shake = async {
            let stream = dial.await.map_err(unreached)?;
            connector.connect(service.name.clone(), stream).await.map_err(|error| failed(&error))
        };
        tokio::time::timeout(patience, shake).await.unwrap_or(Err(TlsError::NotOffered))
    }

    /// Names the service as its certificate does, as a client of its TLS port would. Gives the caller's own name for it.
    pub fn address<B>(&self, request: &mut Request<B>) -> Option<HeaderValue> {
        let host = self.service.as_ref()?.host.clone();
        if request.uri().authority().is_some()
            && let Some(target) = request.uri().path_and_query()
        {
            *request.uri_mut() = Uri::from(target.clone());
        }
        request.headers_mut().insert(HOST, host)
    }

    /// Leads the caller back to where it came from, if the service sends it elsewhere at itself: over there is TLS.
    pub fn lead_back(&self, headers: &mut HeaderMap, caller_s_host: Option<&HeaderValue>) {
        let Some(service) = &self.service else { return };
        let back = headers.get(LOCATION).and_then(|location| {
            let location = location.to_str().ok()?;
            let rest = location.strip_prefix("https://").or_else(|| location.strip_prefix("http://"))?;
            let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            let name = authority.split(':').next()?;
            name.as_bytes().eq_ignore_ascii_case(service.host.as_bytes()).then_some(())?;
            let host = caller_s_host.unwrap_or(&service.host).to_str().ok()?;
            HeaderValue::try_from(format!("http://{host}{path}")).ok()
        });
        if let Some(back) = back {
            headers.insert(LOCATION, back);
        }
    }
}

impl Service {
    fn is_plain(&self, path: &str) -> bool {
        let Some(pattern) = &self.plain else { return false };
        let segments: Vec<String> =
            path.trim_start_matches('/').split('/').map(str::to_ascii_lowercase).collect();
        pattern.matches(&segments)
    }
}

/// `None` if they cannot be used.
fn connector_of(roots: &str, client: Option<&str>) -> Option<TlsConnector> {
    let mut trusted = RootCertStore::empty();
    trusted.add_parsable_certificates(CertificateDer::pem_slice_iter(roots.as_bytes()).flatten());
    if trusted.is_empty() {
        return None;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .ok()?
        .with_root_certificates(trusted);
    let mut config = match client {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>().ok()?;
            let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).ok()?;
            builder.with_client_auth_cert(chain, key).ok()?
        }
    };
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Some(TlsConnector::from(Arc::new(config)))
}

/// Whether the service is what could not be reached; if this machine is at its limits, that says nothing of TLS.
fn unreached(error: io::Error) -> TlsError {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut};
    let kinds = [ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut];
    if kinds.contains(&error.kind()) { TlsError::NotOffered } else { TlsError::Connect(error) }
}

/// Why there is no TLS: the other side does not speak it, or declines to; or it does, and is not who it should be.
fn failed(error: &io::Error) -> TlsError {
    let Some(cause) = tls_cause(error) else { return TlsError::NotOffered };
    if let rustls::Error::InvalidCertificate(fault) = cause {
        return TlsError::Certificate(certificate_fault(fault));
    }
    if matches!(
        cause,
        rustls::Error::AlertReceived(_)
            | rustls::Error::InvalidMessage(_)
            | rustls::Error::PeerIncompatible(_)
            | rustls::Error::NoApplicationProtocol
    ) {
        return TlsError::NotOffered;
    }
    TlsError::Broken
}

fn tls_cause(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// In words of the guard's own: what the other side wrote into its certificate is not for the log.
fn certificate_fault(fault: &CertificateError) -> &'static str {
    if matches!(fault, CertificateError::Expired | CertificateError::ExpiredContext { .. }) {
        "has expired"
    } else if matches!(fault, CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) {
        "is not valid yet"
    } else if matches!(fault, CertificateError::UnknownIssuer | CertificateError::BadSignature) {
        "is signed by nobody who is trusted for it"
    } else if matches!(
        fault,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
    ) {
        "is for another name"
    } else {
        "cannot be verified"
    }
}

/// Whether the other side ended TLS with an alert.
fn turned_away(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return matches!(tls_cause(error), Some(rustls::Error::AlertReceived(_)));
        }
        source = cause.source();
    }
    false
}
