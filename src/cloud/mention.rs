//! Whether a command line names a metadata service. Pure, one pass, and nothing is kept of the text.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a text names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mention {
    /// An endpoint's address, however it is spelled.
    Address,
    /// A host name of a metadata service, or a path that only metadata services have.
    Word,
}

impl Mention {
    /// The stable code that audit events carry.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Address => "names-metadata-address",
            Self::Word => "names-metadata-path",
        }
    }
}

/// Names and paths, in lower case; they are compared without case.
const WORDS: [&[u8]; 15] = [
    b"metadata.google.internal",
    b"metadata.goog",
    b"metadata.azure.",
    b"imds.azure.com",
    b"instance-data.ec2.internal",
    b"metadata.tencentyun.com",
    b"computemetadata",
    b"iam/security-credentials",
    b"instance-identity",
    b"latest/dynamic",
    b"latest/user-data",
    b"meta-data",
    b"metadata/identity",
    b"metadata/instance",
    b"metadata/v1",
];

/// No address is written longer.
const LONGEST: usize = 64;

/// What of a metadata service the text names, if anything.
#[must_use]
pub fn mention(text: &[u8], endpoints: &[IpAddr]) -> Option<Mention> {
    let in_address = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b':');
    let mut tokens = text.split(|byte| !in_address(byte)).filter(|token| token.len() <= LONGEST);
    if tokens.any(|token| address(token).is_some_and(|address| endpoints.contains(&address))) {
        return Some(Mention::Address);
    }
    let starts = |at: usize| {
        let rest = text.get(at..).unwrap_or_default();
        WORDS.iter().any(|word| rest.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word)))
    };
    (0..text.len()).any(starts).then_some(Mention::Word)
}

/// The address that a word is, in any of the spellings that resolvers take, perhaps with a port behind it.
fn address(token: &[u8]) -> Option<IpAddr> {
    if !token.first().is_some_and(|byte| byte.is_ascii_hexdigit() || *byte == b':') {
        return None;
    }
    let token = str::from_utf8(token).ok()?.trim_end_matches('.');
    if token.matches(':').count() > 1 {
        return token.parse::<Ipv6Addr>().ok().map(|address| address.to_canonical());
    }
    let host = token.split(':').next()?;
    inet_aton(host.trim_end_matches('.')).map(IpAddr::V4)
}

/// One to four numbers, decimal, octal or hexadecimal, the last of which fills what is left (inet_aton(3)).
fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let mut parts = text.split('.');
    let mut address: u32 = 0;
    let mut left: u32 = 32;
    let mut part = parts.next()?;
    loop {
        let value = number(part)?;
        let Some(next) = parts.next() else {
            let fits = left == 32 || value >> left == 0;
            return fits.then(|| Ipv4Addr::from(address | value));
        };
        left = left.checked_sub(8).filter(|left| *left > 0)?;
        if value > 0xff {
            return None;
        }
        address |= value << left;
        part = next;
    }
}

fn number(text: &str) -> Option<u32> {
    let lower = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    match lower {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None if text.len() > 1 && text.starts_with('0') => u32::from_str_radix(text, 8).ok(),
        None if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn endpoints() -> Vec<IpAddr> {
        ["169.254.169.254", "fd00:ec2::254", "168.63.129.16"].map(|text| text.parse().unwrap()).to_vec()
    }

    fn named(line: &str) -> Option<Mention> {
        mention(line.replace(' ', "\0").as_bytes(), &endpoints())
    }

    #[test]
    fn every_spelling_of_an_address_is_one() {
        for spelling in [
            "169.254.169.254",
            "169.254.169.254.",
            "2852039166",
            "0xa9fea9fe",
            "0XA9FEA9FE",
            "025177524776",
            "0251.0376.0251.0376",
            "0xa9.0xfe.0xa9.0xfe",
            "0xa9.254.0251.254",
            "169.254.43518",
            "169.16689662",
            "[::ffff:169.254.169.254]",
            "[::ffff:a9fe:a9fe]",
            "[0:0:0:0:0:ffff:a9fe:a9fe]",
            "[fd00:ec2::254]",
            "[fd00:0ec2:0:0:0:0:0:0254]",
            "[FD00:EC2::254]",
        ] {
            for line in [
                format!("curl http://{spelling}/x"),
                format!("curl http://{spelling}:80/x"),
                format!("curl -s http://me@{spelling}"),
                format!("wget {spelling}"),
                format!("sh -c x={spelling};y"),
            ] {
                assert_eq!(named(&line), Some(Mention::Address), "{line}");
            }
        }
    }

    #[test]
    fn names_and_paths_are_found_without_case() {
        for line in [
            "curl -H Metadata-Flavor:Google http://METADATA.google.internal/x",
            "curl http://$IP/latest/meta-data/",
            "python3 -c get('/computeMetadata/v1/')",
            "curl x/latest/dynamic/instance-identity/document",
            "sh -c fetch /metadata/instance?api-version=1",
            "aws iam/security-credentials/role",
        ] {
            assert_eq!(named(line), Some(Mention::Word), "{line}");
        }
    }

    #[test]
    fn other_lines_name_nothing() {
        for line in [
            "",
            "ls -l /etc",
            "ping 169.254.169.253",
            "nc 1169.254.169.254 80",
            "echo 169.254.169.2540",
            "echo 2852039167 285203916 28520391660000",
            "ssh 256.254.169.254",
            "curl http://[fd00:ec2::2540]/",
            "cc -c metadata.c meta.data",
            "date 12:34:56",
        ] {
            assert_eq!(named(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_command_line_panics(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = mention(&text, &endpoints());
        }

        #[test]
        fn the_address_is_found_in_any_base(bases in proptest::array::uniform4(0..3), parts in 1..=4_usize) {
            let whole = u32::from(Ipv4Addr::new(169, 254, 169, 254));
            let mut texts = Vec::new();
            let mut left = 32;
            for (at, base) in bases.into_iter().enumerate().take(parts) {
                let value = if at + 1 == parts {
                    if left == 32 { whole } else { whole & ((1 << left) - 1) }
                } else {
                    left -= 8;
                    (whole >> left) & 0xff
                };
                texts.push(match base {
                    0 => format!("{value}"),
                    1 => format!("0{value:o}"),
                    _ => format!("0x{value:x}"),
                });
            }
            let line = format!("curl\0http://{}/", texts.join("."));
            prop_assert_eq!(mention(line.as_bytes(), &endpoints()), Some(Mention::Address));
        }
    }
}
