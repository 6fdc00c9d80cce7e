//! Services that can also be asked over TLS, and what it takes.

use super::catalogue::Catalogue;
use super::endpoint::{Door, Endpoint};
use super::pattern::PathPattern;
use super::service::Cloud;

/// How a cloud's service is asked over TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The port, at the address that the caller asked.
    pub port: u16,
    /// The name that the service's certificate must be for.
    pub server_name: String,
    /// Who may have signed it.
    pub roots: Roots,
    /// The file with the client's key and certificate, where the service asks for one.
    pub client: Option<String>,
    /// What is asked without TLS, because the client's certificate comes from there.
    pub plain: Option<PathPattern>,
}

/// Who may have signed a service's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Roots {
    /// Whom this system trusts.
    System,
    /// Those in this file alone.
    File(String),
}

/// Whether what answers at an endpoint can be asked over TLS instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsAt<'a> {
    /// It cannot.
    Nowhere,
    /// One of the clouds that may be meant can, and another cannot, or otherwise.
    Uncertain,
    /// It can, so.
    Sure(&'a UpstreamTls),
}

impl Catalogue {
    /// Whether the service behind an endpoint that is read as HTTP can be asked over TLS. Only one family of clouds may
    /// be meant there: with another's name and roots nothing would be proven.
    #[must_use]
    pub fn upstream_tls(&self, endpoint: Endpoint) -> TlsAt<'_> {
        if self.door(endpoint) != Door::Http {
            return TlsAt::Nowhere;
        }
        let serving = || self.serving(endpoint).filter(|cloud| !cloud.is_policy());
        let Some((cloud, tls)) = serving().find_map(|cloud| Some((cloud, cloud.tls_beside(endpoint)?)))
        else {
            return TlsAt::Nowhere;
        };
        if serving().all(|other| other.family() == cloud.family()) {
            TlsAt::Sure(tls)
        } else {
            TlsAt::Uncertain
        }
    }

    /// The one service of these clouds that can be asked over TLS, if it is certain which.
    #[must_use]
    pub fn sure_tls(&self) -> Option<&UpstreamTls> {
        self.endpoints().into_iter().find_map(|endpoint| match self.upstream_tls(endpoint) {
            TlsAt::Sure(tls) => Some(tls),
            TlsAt::Nowhere | TlsAt::Uncertain => None,
        })
    }
}

impl Cloud {
    /// How it is asked over TLS, if it is at that address.
    fn tls_beside(&self, endpoint: Endpoint) -> Option<&UpstreamTls> {
        let tls = self.upstream_tls.as_ref()?;
        let door = Endpoint { port: tls.port, ..endpoint };
        self.served.iter().any(|served| served.endpoint == door).then_some(tls)
    }
}
