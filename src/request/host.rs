//! The service that a request names, by address or by name.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::fault::Fault;

/// A host with an optional port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address in its canonical spelling; an IPv4 address mapped into IPv6 is the IPv4 address.
    Ip(IpAddr, Option<u16>),
    /// Anything else that could be a name, in lower case, without a dot at its end.
    Name(String, Option<u16>),
}

/// The longest name that DNS allows.
const LONGEST_NAME: usize = 253;

impl Host {
    /// The port, if one is written.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Ip(_, port) | Self::Name(_, port) => *port,
        }
    }

    /// Whether both are the same service over plain HTTP, where no port means 80.
    #[must_use]
    pub fn is_same_service(&self, other: &Self) -> bool {
        let same_host = match (self, other) {
            (Self::Ip(one, _), Self::Ip(two, _)) => one == two,
            (Self::Name(one, _), Self::Name(two, _)) => one == two,
            (Self::Ip(..), Self::Name(..)) | (Self::Name(..), Self::Ip(..)) => false,
        };
        same_host && self.port().unwrap_or(80) == other.port().unwrap_or(80)
    }

    /// Reads a Host header's value, or the authority of an absolute request target.
    ///
    /// Other spellings of an IPv4 address (`0xa9fea9fe`, `2852039166`, `169.254.43518`) stay names, which no
    /// catalogue lists: what only some resolvers read as an address has no single meaning.
    pub(super) fn read(value: &[u8]) -> Result<Self, Fault> {
        let text = std::str::from_utf8(value).map_err(|_| Fault::HostMalformed)?;
        if let Some(rest) = text.strip_prefix('[') {
            let (address, port) = rest.split_once(']').ok_or(Fault::HostMalformed)?;
            return Ok(Self::Ip(read_v6(address)?, read_port(port)?));
        }
        let split = text.find(':').and_then(|colon| text.split_at_checked(colon));
        let (name, port) = split.unwrap_or((text, ""));
        let port = read_port(port)?;
        if let Ok(address) = name.parse::<Ipv4Addr>() {
            return Ok(Self::Ip(address.into(), port));
        }
        Ok(Self::Name(read_name(name)?, port))
    }
}

/// An IPv6 address; a link-local one may carry the interface, which names the sender's side only.
fn read_v6(text: &str) -> Result<IpAddr, Fault> {
    let (address, zone) = text.split_once('%').map_or((text, None), |(address, zone)| (address, Some(zone)));
    let address: Ipv6Addr = address.parse().map_err(|_| Fault::HostMalformed)?;
    if let Some(zone) = zone {
        let plain = zone.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if zone.is_empty() || !plain || !address.is_unicast_link_local() {
            return Err(Fault::HostMalformed);
        }
    }
    Ok(IpAddr::V6(address).to_canonical())
}

/// Nothing, or a colon and a plain number.
fn read_port(text: &str) -> Result<Option<u16>, Fault> {
    if text.is_empty() {
        return Ok(None);
    }
    let digits = text.strip_prefix(':').ok_or(Fault::HostMalformed)?;
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0');
    digits.parse().ok().filter(|_| plain).map(Some).ok_or(Fault::HostMalformed)
}

/// A name of non-empty labels.
fn read_name(text: &str) -> Result<String, Fault> {
    let name = text.strip_suffix('.').unwrap_or(text);
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    let labelled = name.split('.').all(|label| !label.is_empty());
    // `169.254.169.254.` is a name to DNS and an address to some resolvers.
    let address = name.len() < text.len() && name.parse::<Ipv4Addr>().is_ok();
    if plain && labelled && !address && name.len() <= LONGEST_NAME {
        Ok(name.to_ascii_lowercase())
    } else {
        Err(Fault::HostMalformed)
    }
}
