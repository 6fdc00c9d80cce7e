//! What keeper and proxy say to each other over their `SOCK_SEQPACKET` pairs.
//!
//! The proxy is the half that an attacker might take over, so what it may say is little and of fixed form: a
//! [`Question`] is 48 bytes, and anything else is answered with [`Answer::Refused`]. What the keeper says is
//! trusted, and may be JSON with descriptors attached.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::caller::Process;
use crate::caller::namespaces::Found;
use crate::observe::Health;

/// The length of every message from the proxy, in bytes.
pub const QUESTION_BYTES: usize = 48;

/// The longest message from the keeper, in bytes.
pub const MESSAGE_BYTES: usize = 128 << 10;

/// How many descriptors one message may carry; the kernel's own limit is 253.
pub const DESCRIPTORS: usize = 250;

/// What the proxy may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// The path of the cgroup with this id.
    CgroupPath {
        /// The cgroup's id.
        id: u64,
    },
    /// Where the processes of this host are that hold this socket, by a hierarchy of cgroup v1; answered as a path.
    PlaceOfHolders {
        /// The socket's inode number.
        inode: u32,
    },
    /// The processes of this cgroup that hold this socket.
    Holders {
        /// The id of the cgroup in which the socket was created.
        cgroup_id: u64,
        /// The socket's inode number.
        inode: u32,
        /// The uid stamped on the socket.
        uid: u32,
        /// Whether to digest the executables.
        digest: bool,
        /// Whether the verdict depends on the answer, so that it may take longer than for the log's sake.
        decisive: bool,
    },
    /// A connection to this metadata endpoint that carries a proof of privilege (see [`crate::cloud::Proof`]).
    Connect {
        /// The endpoint's address.
        addr: IpAddr,
        /// The endpoint's port.
        port: u16,
        /// Whether the source port is to be below 1024.
        low_port: bool,
    },
    /// Who created the client's end of this connection, in whichever other network namespace it is.
    Foreign {
        /// The client's address and port, without a scope.
        client: SocketAddr,
        /// The endpoint to which it connected, without a scope.
        original: SocketAddr,
    },
    /// Not a question: the proxy has dropped its privileges and serves.
    Ready,
    /// Not a question: this worker is not stuck.
    Alive,
    /// Not a question: a new policy is in force, as of this many reloads.
    Reloaded {
        /// How many reload orders the proxy has carried out.
        count: u64,
    },
}

impl Question {
    /// The message that asks this, with a number that the answer will repeat.
    #[must_use]
    pub fn encode(self, number: u32) -> [u8; QUESTION_BYTES] {
        let (kind, wide, first, second, flag) = match self {
            Self::Foreign { client, original } => return encode_flow(number, client, original),
            Self::CgroupPath { id } => (1_u32, id, 0, 0, 0),
            Self::Holders { cgroup_id, inode, uid, digest, decisive } => {
                (2, cgroup_id, inode, uid, u32::from(digest) | u32::from(decisive) << 1)
            }
            Self::PlaceOfHolders { inode } => (8, 0, inode, 0, 0),
            Self::Ready => (3, 0, 0, 0, 0),
            Self::Alive => (6, 0, 0, 0, 0),
            Self::Reloaded { count } => (4, count, 0, 0, 0),
            Self::Connect { port, low_port, .. } => (5, 0, u32::from(port), 0, u32::from(low_port)),
        };
        let addr = if let Self::Connect { addr, .. } = self { mapped(addr) } else { Ipv6Addr::UNSPECIFIED };
        let mut bytes = [0; QUESTION_BYTES];
        let words = [kind, number, first, second, flag];
        let fields =
            words.iter().flat_map(|word| word.to_le_bytes()).chain(wide.to_le_bytes()).chain(addr.octets());
        bytes.iter_mut().zip(fields).for_each(|(byte, field)| *byte = field);
        bytes
    }

    /// The question in a message, or `None` if it is not exactly one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<(u32, Self)> {
        let bytes: &[u8; QUESTION_BYTES] = bytes.try_into().ok()?;
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let wide = u64::from_le_bytes(bytes.get(20..28)?.try_into().ok()?);
        let (first, second, flag) = (word(8)?, word(12)?, word(16)?);
        let question = match (word(0)?, flag) {
            (FOREIGN, _) => decode_flow(bytes)?,
            (1, 0) => Self::CgroupPath { id: wide },
            (2, 0..=3) => Self::Holders {
                cgroup_id: wide,
                inode: first,
                uid: second,
                digest: flag & 1 != 0,
                decisive: flag & 2 != 0,
            },
            (8, 0) => Self::PlaceOfHolders { inode: first },
            (3, 0) => Self::Ready,
            (6, 0) => Self::Alive,
            (4, 0) => Self::Reloaded { count: wide },
            (5, 0 | 1) => Self::Connect {
                addr: Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(28..44)?).ok()?).to_canonical(),
                port: u16::try_from(first).ok()?,
                low_port: flag == 1,
            },
            _ => return None,
        };
        let number = word(4)?;
        (question.encode(number) == *bytes).then_some((number, question))
    }
}

/// The kind of a question that names two ends, which leaves no room for the fields of the others.
const FOREIGN: u32 = 7;

/// Kind, number, both ports in one word, both addresses; the last word is 0.
fn encode_flow(number: u32, client: SocketAddr, original: SocketAddr) -> [u8; QUESTION_BYTES] {
    let ports = u32::from(client.port()) << 16 | u32::from(original.port());
    let addresses = [client, original].into_iter().flat_map(|end| mapped(end.ip()).octets());
    let words = [FOREIGN, number, ports].into_iter().flat_map(u32::to_le_bytes);
    let mut bytes = [0; QUESTION_BYTES];
    bytes.iter_mut().zip(words.chain(addresses)).for_each(|(byte, field)| *byte = field);
    bytes
}

fn decode_flow(bytes: &[u8; QUESTION_BYTES]) -> Option<Question> {
    let port = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let addr = |at: usize| {
        let octets: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets).to_canonical())
    };
    Some(Question::Foreign {
        client: SocketAddr::new(addr(12)?, port(10)?),
        original: SocketAddr::new(addr(28)?, port(8)?),
    })
}

fn mapped(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// What the keeper answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The cgroup's path, if there is such a cgroup.
    CgroupPath(Option<String>),
    /// Every visible holder of the socket; `None` if the look-up failed.
    Holders(Option<Vec<Process>>),
    /// Who created the client's end of the connection.
    Foreign(Found),
    /// Whether the connection that was asked for comes along.
    Connection(bool),
    /// That was no question.
    Refused,
}

/// An answer and the number of its question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The number of the question.
    pub number: u32,
    /// The answer to it.
    pub answer: Answer,
}

/// How the descriptor of the audit log is to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogKind {
    /// A file opened for appending, or standard output.
    Stream,
    /// The journal's native socket.
    Journal,
}

/// What the keeper orders. Descriptors come along in the order in which the fields name them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// The first order: everything that the proxy needs. With it come the policy bundle, the audit log, the
    /// listeners, the status doors, and one question channel per worker.
    Start {
        /// The uid to become.
        uid: u32,
        /// The gid to become.
        gid: u32,
        /// What the log's descriptor is.
        log: LogKind,
        /// How many listeners come along: for each endpoint one per worker, the workers in turn.
        listeners: usize,
        /// Whether the unix socket for the status comes along.
        status: bool,
        /// Whether the loopback listener for the metrics comes along.
        metrics: bool,
        /// How many question channels come along: one per worker.
        workers: usize,
        /// How often each worker is to say that it is not stuck, in milliseconds; 0 is never.
        alive_ms: u64,
        /// Whether listeners for containers follow in a second order.
        containers: bool,
    },
    /// The second order, where the first announced it: with it come the listeners for connections out of other network
    /// namespaces, one for each endpoint.
    Containers,
    /// These are the addresses of this network namespace's interfaces, each with its interface's number.
    Interfaces(Vec<(IpAddr, u32)>),
    /// How the keeper's own work stands, for whoever reads the status.
    Health(Health),
    /// Take the policy bundle that comes along.
    Reload,
    /// Take the certificates for TLS to the service that come along.
    Renew,
    /// Go on logging to the descriptor that comes along.
    Rotate(LogKind),
    /// Accept nothing more, finish what is under way within this many milliseconds, and end.
    Drain {
        /// Milliseconds of patience.
        patience_ms: u64,
    },
}

/// Two connected ends of a message channel.
pub fn channel() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message with descriptors, without waiting for room: the other half may be in an attacker's hands, and must
/// not hold up this one by not reading.
pub fn send(channel: impl AsFd, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    sendmsg(channel, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// Who is at the far end of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its process id.
    pub pid: u32,
    /// Its uid, once it has become the guard's user.
    pub uid: u32,
}

/// The keeper's end of a channel: the kernel tells with each message who sent it.
pub fn tell_senders(channel: impl AsFd) -> io::Result<()> {
    Ok(rustix::net::sockopt::set_socket_passcred(channel, true)?)
}

/// Receives one message into `buffer`, and who sent it, as the kernel says; an empty message means that the other end is
/// closed. Descriptors that come along are let go by the kernel: nobody has a reason to send the keeper any.
pub fn receive_from(channel: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Option<Peer>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(channel, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::DONTWAIT)?;
    let sender = ancillary.drain().find_map(|message| {
        let RecvAncillaryMessage::ScmCredentials(sender) = message else { return None };
        Some(Peer { pid: u32::try_from(sender.pid.as_raw_nonzero().get()).ok()?, uid: sender.uid.as_raw() })
    });
    Ok((received.bytes, sender))
}

/// Receives one message and its descriptors into `buffer`; an empty message means that the other end is closed.
pub fn receive(channel: impl AsFd, buffer: &mut [u8], flags: RecvFlags) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = recvmsg(channel, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
    let descriptors = ancillary
        .drain()
        .filter_map(|message| {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message { Some(descriptors) } else { None }
        })
        .flatten()
        .collect();
    Ok((received.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_question_has_no_use_for_is_zero() {
        let question = Question::CgroupPath { id: 7 };
        let bytes = question.encode(1);
        assert_eq!(Question::decode(&bytes), Some((1, question)));
        for at in [8, 12, 16, 28, 43, 44, 47] {
            let mut other = bytes;
            other[at] = 1;
            assert_eq!(Question::decode(&other), None, "byte {at}");
        }
    }

    fn question() -> impl Strategy<Value = Question> {
        prop_oneof![
            any::<u64>().prop_map(|id| Question::CgroupPath { id }),
            any::<u32>().prop_map(|inode| Question::PlaceOfHolders { inode }),
            any::<(u64, u32, u32, bool, bool)>().prop_map(|(cgroup_id, inode, uid, digest, decisive)| {
                Question::Holders { cgroup_id, inode, uid, digest, decisive }
            }),
            any::<(u128, u16, bool)>().prop_map(|(addr, port, low_port)| Question::Connect {
                addr: Ipv6Addr::from(addr).to_canonical(),
                port,
                low_port
            }),
            any::<(u128, u16, u128, u16)>().prop_map(|(client, from, original, to)| {
                let end = |addr, port| SocketAddr::new(Ipv6Addr::from(addr).to_canonical(), port);
                Question::Foreign { client: end(client, from), original: end(original, to) }
            }),
            (any::<u32>(), any::<u16>(), any::<u32>(), any::<u16>()).prop_map(
                |(client, from, original, to)| {
                    let end = |addr, port| SocketAddr::new(IpAddr::V4(Ipv4Addr::from_bits(addr)), port);
                    Question::Foreign { client: end(client, from), original: end(original, to) }
                }
            ),
            Just(Question::Ready),
            Just(Question::Alive),
            any::<u64>().prop_map(|count| Question::Reloaded { count }),
        ]
    }

    proptest! {
        #[test]
        fn a_question_survives_the_wire(question in question(), number: u32) {
            prop_assert_eq!(Question::decode(&question.encode(number)), Some((number, question)));
        }

        #[test]
        fn no_bytes_confuse_the_keeper(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some((number, question)) = Question::decode(&bytes) {
                prop_assert_eq!(question.encode(number).to_vec(), bytes);
            }
        }
    }

    #[test]
    fn descriptors_come_along() {
        let (near, far) = channel().unwrap();
        let file = tempfile::tempfile().unwrap();
        send(&near, b"here", &[file.as_fd()]).unwrap();
        let mut buffer = [0; 16];
        let (length, descriptors) = receive(&far, &mut buffer, RecvFlags::empty()).unwrap();
        assert_eq!((&buffer[..length], descriptors.len()), (&b"here"[..], 1));
    }
}
