//! Faults of a head that has one meaning: what no client of a metadata service sends, and attacks do.

use super::fault::Fault;
use super::head::{BodyKind, Header, Method, Parts, Version};
use super::names::{Found, Role};

/// Every hygiene fault of a head, each once, in the order of discovery.
pub(super) fn faults(head: &Parts) -> Vec<Fault> {
    let mut faults = Faults::default();
    if matches!(head.method, Method::Other(_)) {
        faults.add(Fault::MethodUnknown);
    }
    let mut seen = Seen::default();
    for (header, known) in head.known_headers() {
        seen.look(header, known, &mut faults);
    }
    if seen.hosts == 0 && head.version == Version::Http11 {
        faults.add(Fault::HostMissing);
    }
    if head.method.is_read() && !matches!(head.body, BodyKind::None | BodyKind::Length(0)) {
        faults.add(Fault::BodyOnRead);
    }
    faults.0
}

/// A set that keeps its order; almost always empty, so it rarely allocates.
#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, fault: Fault) {
        if !self.0.contains(&fault) {
            self.0.push(fault);
        }
    }
}

/// What the header lines up to here have been.
#[derive(Default)]
struct Seen {
    names: u128,
    hosts: usize,
}

impl Seen {
    fn look(&mut self, header: Header<'_>, found: Found, faults: &mut Faults) {
        match found.role {
            Role::Forwarding => faults.add(Fault::ForwardingHeader),
            Role::Override => faults.add(Fault::OverrideHeader),
            Role::Host => self.host(header, faults),
            Role::Hop | Role::Single if !found.exact => faults.add(Fault::HeaderConfusable),
            Role::Hop => connection(header, faults),
            Role::Single => {
                if self.names & found.bit() != 0 {
                    faults.add(Fault::HeaderRepeated);
                }
                expect(header, faults);
            }
            // The parser has judged the framing; a method override is dropped on the way out.
            Role::Framing | Role::Upgrade | Role::MethodOverride => {}
        }
        self.names |= found.bit();
    }

    fn host(&mut self, header: Header<'_>, faults: &mut Faults) {
        self.hosts += 1;
        if self.hosts > 1 {
            faults.add(Fault::HostRepeated);
        }
        if header.value.is_empty() {
            faults.add(Fault::HostEmpty);
        }
    }
}

/// What `Connection` may name: itself and headers that end here anyway. Perl's LWP names TE, the JDK's HTTP client an
/// upgrade to HTTP/2, each in every request.
const HARMLESS: [&[u8]; 5] = [b"close", b"keep-alive", b"te", b"upgrade", b"http2-settings"];

/// `Connection` can make the next hop drop any header it names, the session token or `Metadata` among them.
fn connection(header: Header<'_>, faults: &mut Faults) {
    let name = header.name;
    if !name.eq_ignore_ascii_case("connection") && !name.eq_ignore_ascii_case("proxy-connection") {
        return;
    }
    let harmless =
        |token: &[u8]| token.is_empty() || HARMLESS.iter().any(|known| token.eq_ignore_ascii_case(known));
    if !header.value.split(|byte| *byte == b',').all(|token| harmless(token.trim_ascii())) {
        faults.add(Fault::ConnectionToken);
    }
}

fn expect(header: Header<'_>, faults: &mut Faults) {
    if header.name.eq_ignore_ascii_case("expect") && !header.value.eq_ignore_ascii_case(b"100-continue") {
        faults.add(Fault::ExpectUnsupported);
    }
}
