//! The kernel's table of TCP sockets, as anybody may read it (proc_net_tcp.txt of the kernel's documentation).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// One socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Socket {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) uid: u32,
    /// 0 while nobody has accepted it.
    pub(super) inode: u64,
}

/// The sockets of this network namespace, of one IP version.
pub(super) fn of_this_namespace(v4: bool) -> io::Result<Vec<Socket>> {
    let table = fs::read_to_string(if v4 { "/proc/self/net/tcp" } else { "/proc/self/net/tcp6" })?;
    Ok(table.lines().skip(1).filter_map(socket).collect())
}

/// `sl local remote state queues timer retransmits uid timeout inode …`
fn socket(line: &str) -> Option<Socket> {
    let mut fields = line.split_whitespace().skip(1);
    let (local, remote) = (address(fields.next()?)?, address(fields.next()?)?);
    let uid = fields.nth(4)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    Some(Socket { local, remote, uid, inode })
}

/// Hexadecimal: words of four bytes in the machine's own order, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':').filter(|(ip, _)| ip.len() % 8 == 0)?;
    let words: Option<Vec<[u8; 4]>> = (0..ip.len() / 8)
        .map(|word| Some(u32::from_str_radix(ip.get(word * 8..word * 8 + 8)?, 16).ok()?.to_ne_bytes()))
        .collect();
    let bytes = words?.concat();
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => IpAddr::V4(Ipv4Addr::from(v4)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?)),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn a_line_of_each_version_is_read() {
        let v4 = "   3: 0200630A:00A9 0200630A:D2F4 01 00000000:00000000 00:00000000 00000000 63111        0 99001 1 0 20 4";
        let socket = socket(v4).unwrap();
        assert_eq!(
            (socket.local, socket.remote),
            ("10.99.0.2:169".parse().unwrap(), "10.99.0.2:54004".parse().unwrap())
        );
        assert_eq!((socket.uid, socket.inode), (63_111, 99_001));
        let v6 = "000000000000000000000000010000000:0050";
        assert_eq!(address(v6), None, "too long");
        let loopback = "00000000000000000000000001000000:0050";
        assert_eq!(address(loopback), Some("[::1]:80".parse().unwrap()));
    }

    #[test]
    fn this_test_s_own_listener_is_there() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let here = listener.local_addr().unwrap();
        assert!(
            of_this_namespace(true).unwrap().iter().any(|socket| socket.local == here && socket.inode != 0)
        );
    }
}
