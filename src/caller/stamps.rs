//! The kernel's stamps on a client's socket, asked for by `NETLINK_SOCK_DIAG`.
//!
//! One exact question per connection: which socket has this local address (the client's) and this remote address
//! (the *original* destination, before the redirect)? The kernel answers in microseconds, however many processes
//! there are, and needs no capability for it. The answer is believed only if it passes every check in
//! `judge`: the kernel falls back to listening sockets, and reports orphaned sockets as uid 0.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, IPPROTO_TCP, TCP_LISTEN, TCP_SYN_RECV, TCP_SYN_SENT, TCP_TIME_WAIT,
};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla,
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

use super::Why;

/// `INET_DIAG_CGROUP_ID`: the attribute that holds the socket's cgroup id (linux/inet_diag.h, since Linux 5.8).
const CGROUP_ID: u16 = 21;

/// A cookie of this value matches any socket (`INET_DIAG_NOCOOKIE`).
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// Room for one answer; the kernel's are under 300 bytes.
const ANSWER_BYTES: usize = 4096;

/// The client's end of a redirected connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddr(pub SocketAddr);

/// Where the client meant to connect, before the redirect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginalDst(pub SocketAddr);

/// The two ends of a redirected connection, as the client sees them. Two types, so that they cannot be swapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The client's own address and port.
    pub client: ClientAddr,
    /// The address and port that the client connected to.
    pub original: OriginalDst,
    /// The number of the interface to which the client's socket may be bound: the kernel finds such a socket only
    /// if it is named.
    pub interface: Option<u32>,
}

impl Flow {
    /// The flow between these two ends, with v4-mapped addresses folded to IPv4: the kernel files such sockets
    /// under IPv4.
    #[must_use]
    pub fn new(client: SocketAddr, original: SocketAddr) -> Self {
        Self { client: ClientAddr(fold(client)), original: OriginalDst(fold(original)), interface: None }
    }

    /// The same flow, whose client may be bound to this interface.
    #[must_use]
    pub fn on(self, interface: Option<u32>) -> Self {
        Self { interface, ..self }
    }
}

/// A scope (`fe80::1%2`) is kept: the way to the service needs it.
fn fold(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(v4) => SocketAddr::new(IpAddr::V4(v4), addr.port()),
        IpAddr::V6(_) => addr,
    }
}

/// What the kernel says about one socket, after every check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RawStamps {
    /// The creator's user id.
    pub uid: u32,
    /// The id of the cgroup in which the socket was created; `None` from a kernel that does not tell.
    pub cgroup_id: Option<u64>,
    /// The socket's inode number.
    pub inode: u32,
    /// The socket's cookie.
    pub cookie: u64,
}

/// A socket to ask the kernel about TCP sockets of the network namespace in which it was opened.
pub struct SockDiag {
    socket: Socket,
    sequence: u32,
    answer: Vec<u8>,
}

impl SockDiag {
    /// Opens the netlink socket. It keeps working after all privileges are dropped.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, answer: Vec::with_capacity(ANSWER_BYTES) })
    }

    /// Who created the client's end of this flow.
    pub fn stamps(&mut self, flow: Flow) -> Result<RawStamps, Why> {
        let answer = match (self.ask(flow, 0), flow.interface) {
            (Err(Why::NoSocket), Some(interface)) => self.ask(flow, interface),
            (answer, _) => answer,
        };
        judge(flow, &answer?)
    }

    fn ask(&mut self, flow: Flow, interface: u32) -> Result<InetResponse, Why> {
        self.sequence = self.sequence.wrapping_add(1);
        let question = question(flow, interface, self.sequence);
        self.socket.send(&question, 0).map_err(|_| Why::LookupFailed)?;
        loop {
            self.answer.clear();
            self.socket.recv(&mut self.answer, 0).map_err(|_| Why::LookupFailed)?;
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(&self.answer)
                .map_err(|_| Why::LookupFailed)?;
            if message.header.sequence_number != self.sequence {
                continue; // the late answer to an earlier question
            }
            if let NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(answer)) = message.payload {
                return Ok(*answer);
            }
            let is_unknown =
                matches!(message.payload, NetlinkPayload::Error(error) if error.raw_code() == -ENOENT);
            return Err(if is_unknown { Why::NoSocket } else { Why::LookupFailed });
        }
    }
}

/// `ENOENT`: the kernel knows no such socket.
const ENOENT: i32 = nix::errno::Errno::ENOENT as i32;

fn question(flow: Flow, interface: u32, sequence: u32) -> Vec<u8> {
    let (client, original) = (flow.client.0, flow.original.0);
    let socket_id = SocketId {
        source_port: client.port(),
        destination_port: original.port(),
        source_address: client.ip(),
        destination_address: original.ip(),
        interface_id: interface,
        cookie: ANY_COOKIE,
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(
        header,
        SockDiagMessage::InetRequest(InetRequest {
            family: family(original.ip()),
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id,
        })
        .into(),
    );
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

fn family(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { AF_INET } else { AF_INET6 }
}

/// Believes the kernel's answer only if it speaks of exactly the socket that was asked for.
///
/// Each check stops something that was seen: without the comparison of the addresses a caller in another
/// namespace, whose source port some root process listens on, is taken for that listener; without the state check
/// likewise; an orphaned socket (closed by its process, or its process is gone) answers uid 0 and inode 0.
pub(crate) fn judge(flow: Flow, answer: &InetResponse) -> Result<RawStamps, Why> {
    let header = &answer.header;
    match header.state {
        TCP_LISTEN => return Err(Why::Listener),
        // A client whose connection was accepted has sent more than its SYN: what has not is a twin, bound to the same port
        // beside a socket that is bound to the interface.
        TCP_SYN_SENT | TCP_SYN_RECV | TCP_TIME_WAIT => return Err(Why::State),
        _ => {}
    }
    let id = &header.socket_id;
    let client = SocketAddr::new(id.source_address.to_canonical(), id.source_port);
    let original = SocketAddr::new(id.destination_address.to_canonical(), id.destination_port);
    let same = |a: SocketAddr, b: SocketAddr| (a.ip(), a.port()) == (b.ip(), b.port());
    if !same(client, flow.client.0) || !same(original, flow.original.0) {
        return Err(Why::Mismatch);
    }
    if header.inode == 0 {
        return Err(Why::Orphan);
    }
    let (cgroup_id, cookie) = (cgroup_id(answer), u64::from_ne_bytes(id.cookie));
    Ok(RawStamps { uid: header.uid, cgroup_id, inode: header.inode, cookie })
}

/// The cgroup id, unless it is absent or 0. That of the root ([`super::cgroup::ROOT`]) names no unit.
fn cgroup_id(answer: &InetResponse) -> Option<u64> {
    answer.nlas.iter().find_map(|nla| {
        let Nla::Other(attribute) = nla else { return None };
        let mut value = [0; 8];
        if attribute.kind() != CGROUP_ID || attribute.value_len() != value.len() {
            return None;
        }
        attribute.emit_value(&mut value);
        Some(u64::from_ne_bytes(value)).filter(|id| *id != 0)
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use netlink_packet_core::DefaultNla;
    use netlink_packet_sock_diag::constants::TCP_ESTABLISHED;
    use netlink_packet_sock_diag::inet::InetResponseHeader;

    use super::*;

    const CLIENT: &str = "10.0.0.2:40000";
    const IMDS: &str = "169.254.169.254:80";

    fn flow() -> Flow {
        Flow::new(CLIENT.parse().unwrap(), IMDS.parse().unwrap())
    }

    /// A believable answer, which each test spoils in one place.
    fn answer() -> InetResponse {
        InetResponse {
            header: InetResponseHeader {
                family: AF_INET,
                state: TCP_ESTABLISHED,
                timer: None,
                socket_id: SocketId {
                    source_port: 40000,
                    destination_port: 80,
                    source_address: "10.0.0.2".parse().unwrap(),
                    destination_address: "169.254.169.254".parse().unwrap(),
                    interface_id: 0,
                    cookie: 7_u64.to_ne_bytes(),
                },
                recv_queue: 0,
                send_queue: 0,
                uid: 33,
                inode: 4711,
            },
            nlas: [Nla::Other(DefaultNla::new(CGROUP_ID, 99_u64.to_ne_bytes().to_vec()))]
                .into_iter()
                .collect(),
        }
    }

    #[test]
    fn an_exact_answer_is_believed() {
        let stamps = judge(flow(), &answer()).unwrap();
        assert_eq!(stamps, RawStamps { uid: 33, cgroup_id: Some(99), inode: 4711, cookie: 7 });
    }

    #[test]
    fn a_v4_mapped_answer_is_believed() {
        let mut mapped = answer();
        mapped.header.socket_id.source_address = "::ffff:10.0.0.2".parse().unwrap();
        mapped.header.socket_id.destination_address = "::ffff:169.254.169.254".parse().unwrap();
        assert!(judge(flow(), &mapped).is_ok());
    }

    #[test]
    fn a_listening_socket_is_not_the_client() {
        let mut listener = answer();
        listener.header.state = TCP_LISTEN;
        assert_eq!(judge(flow(), &listener), Err(Why::Listener));
    }

    #[test]
    fn an_orphan_is_nobody_rather_than_root() {
        let mut orphan = answer();
        (orphan.header.uid, orphan.header.inode) = (0, 0);
        assert_eq!(judge(flow(), &orphan), Err(Why::Orphan));
    }

    #[test]
    fn half_open_and_dying_sockets_are_not_believed() {
        for state in [TCP_SYN_SENT, TCP_SYN_RECV, TCP_TIME_WAIT] {
            let mut dying = answer();
            dying.header.state = state;
            assert_eq!(judge(flow(), &dying), Err(Why::State));
        }
    }

    #[test]
    fn other_addresses_or_ports_are_a_mismatch() {
        let mut elsewhere = answer();
        elsewhere.header.socket_id.source_port = 40001;
        assert_eq!(judge(flow(), &elsewhere), Err(Why::Mismatch));
        let mut elsewhere = answer();
        elsewhere.header.socket_id.destination_address = "169.254.169.253".parse().unwrap();
        assert_eq!(judge(flow(), &elsewhere), Err(Why::Mismatch));
    }

    #[test]
    fn without_a_usable_cgroup_the_stamps_name_none() {
        let mut none = answer();
        none.nlas.clear();
        assert_eq!(judge(flow(), &none).unwrap().cgroup_id, None);
        let mut zero = answer();
        zero.nlas = [Nla::Other(DefaultNla::new(CGROUP_ID, vec![0; 8]))].into_iter().collect();
        assert_eq!(judge(flow(), &zero).unwrap().cgroup_id, None);
    }

    #[test]
    fn the_kernel_knows_a_live_connection_and_nothing_of_a_dead_one() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let client = TcpStream::connect(server).unwrap();
        let flow = Flow::new(client.local_addr().unwrap(), server);
        let mut diag = SockDiag::open().unwrap();
        assert_eq!(diag.stamps(flow).unwrap().uid, nix::unistd::getuid().as_raw());
        // A port that only a listener has: the kernel offers the listener, which is not a client.
        let nobody = Flow::new(server, "127.0.0.1:9".parse().unwrap());
        assert!(matches!(diag.stamps(nobody), Err(Why::Listener | Why::NoSocket)));
    }
}
