//! What other tools' rules do to the redirect, as they stand in files or in the kernel. Pure, and by words: each tool has a
//! language of its own, and the question is only whether somebody has to look.

use std::net::IpAddr;

/// Words that change where a packet goes, in iptables' language and in nft's.
const VERDICTS: [&str; 10] =
    ["DROP", "REJECT", "REDIRECT", "DNAT", "TPROXY", "drop", "reject", "redirect", "dnat", "tproxy"];

/// Those of them that lead a packet elsewhere.
const LEADS: [&str; 6] = ["REDIRECT", "DNAT", "TPROXY", "redirect", "dnat", "tproxy"];

/// Rules that name one of these addresses and drop, refuse or lead elsewhere what goes there.
#[must_use]
pub fn about<'a>(rules: &'a str, addresses: &[IpAddr]) -> Vec<&'a str> {
    let named = texts(addresses);
    significant(rules).filter(|line| names(line, &named).is_some() && says(line, &VERDICTS)).collect()
}

/// What a rule of somebody else's leads to somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Led {
    /// The address that was meant.
    pub address: String,
    /// Family, table and chain.
    pub chain: String,
    /// The rule.
    pub rule: String,
}

/// The rules of a listing (as `nft -s list ruleset` writes it) that lead elsewhere what goes to one of these addresses,
/// without the guard's own.
#[must_use]
pub fn led(listing: &str, addresses: &[IpAddr]) -> Vec<Led> {
    let named = texts(addresses);
    let (mut table, mut chain) = ("", "");
    let mut found = Vec::new();
    for line in significant(listing) {
        let block = |kind: &str| line.strip_prefix(kind)?.split(" {").next();
        if let Some(name) = block("table ") {
            (table, chain) = (name, "");
        } else if let Some(name) = block("chain ") {
            chain = name;
        }
        if table.ends_with(crate::redirect::TABLE) || !says(line, &LEADS) {
            continue;
        }
        if let Some(address) = names(line, &named) {
            found.push(Led {
                address: address.to_owned(),
                chain: format!("{table} {chain}"),
                rule: line.to_owned(),
            });
        }
    }
    found
}

fn texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(IpAddr::to_string).collect()
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| c.is_whitespace() || ",{}!/\"".contains(c))
}

/// The first of the addresses that a line names.
fn names<'a>(line: &str, named: &'a [String]) -> Option<&'a str> {
    named.iter().map(String::as_str).find(|address| words(line).any(|word| word == *address))
}

fn says(line: &str, these: &[&str]) -> bool {
    words(line).any(|word| these.contains(&word))
}

/// Whether what comes in is dropped unless a rule accepts it, and none accepts the loopback interface: connections that
/// are led to the guard come in there.
#[must_use]
pub fn drops_loopback(rules: &str) -> bool {
    drops_input(rules) && !significant(rules).any(accepts_loopback)
}

/// Whether what comes in is dropped unless a rule accepts it.
#[must_use]
pub fn drops_input(rules: &str) -> bool {
    let iptables = significant(rules).any(|line| {
        let mut words = line.split_whitespace();
        matches!((words.next(), words.next()), (Some(":INPUT" | "*filter:INPUT"), Some("DROP" | "REJECT")))
            || line.starts_with("-P INPUT DROP")
    });
    // nft's policy may stand on the hook's line or on the next.
    let text: String = significant(rules).collect::<Vec<_>>().join(" ");
    let nft = text.split("hook input").skip(1).any(|chain| {
        let end = chain.find("hook ").unwrap_or(chain.len());
        chain.get(..end).is_some_and(|chain| chain.contains("policy drop"))
    });
    iptables || nft
}

fn accepts_loopback(line: &str) -> bool {
    let words: Vec<&str> = line.split(|c: char| c.is_whitespace() || c == ';').collect();
    let pairs = || words.iter().zip(words.iter().skip(1));
    let on_loopback = pairs().any(|(word, next)| {
        matches!(*word, "-i" | "--in-interface" | "iif" | "iifname") && next.trim_matches('"') == "lo"
    });
    on_loopback && words.iter().any(|word| matches!(*word, "ACCEPT" | "accept"))
}

/// Rules that keep packets from being tracked: what is not tracked cannot be led.
#[must_use]
pub fn untracked(rules: &str) -> Vec<&str> {
    let is_untracked = |line: &&str| {
        line.split(|c: char| c.is_whitespace() || c == ';')
            .any(|word| matches!(word, "NOTRACK" | "--notrack" | "notrack"))
    };
    significant(rules).filter(is_untracked).collect()
}

/// The lines that say something.
fn significant(rules: &str) -> impl Iterator<Item = &str> {
    rules.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMDS: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];

    fn addresses() -> Vec<IpAddr> {
        IMDS.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn rules_about_the_service_are_found_in_both_languages() {
        for rule in [
            "-A OUTPUT -d 169.254.169.254/32 -m owner ! --uid-owner 0 -j DROP",
            "-A PREROUTING -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.5:8181",
            "ip daddr 169.254.169.254 tcp dport 80 redirect to :9000",
            "ip6 daddr { fd00:ec2::254, fd00::1 } drop",
        ] {
            assert_eq!(about(rule, &addresses()), [rule]);
        }
        for rule in [
            "# -A OUTPUT -d 169.254.169.254 -j DROP",
            "-A OUTPUT -d 169.254.169.254/32 -j ACCEPT",
            "-A OUTPUT -d 169.254.169.25/32 -j DROP",
            "-A OUTPUT -d 169.254.170.2/32 -p tcp --dport 80 -j REDIRECT --to-ports 51679",
        ] {
            assert!(about(rule, &addresses()).is_empty(), "{rule}");
        }
    }

    #[test]
    fn what_others_lead_elsewhere_is_found_with_its_place() {
        let listing = "table inet imds_guard {\n\tchain lead4 {\n\t\tip daddr 169.254.169.254 tcp dport 80 redirect to :169\n\t}\n}\n\
                       table ip nat {\n\tchain PREROUTING {\n\t\ttype nat hook prerouting priority -100; policy accept;\n\
                       \t\tip daddr 169.254.169.254 tcp dport 80 counter dnat to 10.0.0.5:8181\n\
                       \t\tip daddr 169.254.169.254 drop\n\
                       \t\tip daddr 169.254.170.9 dnat to 127.0.0.1\n\t}\n\
                       \tchain OUTPUT {\n\t\tip daddr 169.254.169.254 counter xt target \"REDIRECT\"\n\t}\n}\n";
        let found = led(listing, &addresses());
        let places: Vec<&str> = found.iter().map(|led| &*led.chain).collect();
        assert_eq!(places, ["ip nat PREROUTING", "ip nat OUTPUT"]);
        assert_eq!(found[0].address, "169.254.169.254");
        assert!(found[0].rule.contains("dnat to 10.0.0.5:8181"));
    }

    #[test]
    fn a_closed_input_must_accept_loopback() {
        let closed = "*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n";
        assert!(drops_input(closed) && drops_loopback(closed));
        assert!(!drops_loopback(&closed.replace("-A INPUT -p", "-A INPUT -i lo -j ACCEPT\n-A INPUT -p")));
        let nft = "table inet filter {\n chain input {\n  type filter hook input priority 0; policy drop;\n  tcp dport 22 accept\n }\n}";
        assert!(drops_loopback(nft));
        assert!(!drops_loopback(&nft.replace("tcp dport 22", "iifname \"lo\" accept\n tcp dport 22")));
        assert!(!drops_loopback(&nft.replace("tcp dport 22", "iif lo accept;\n tcp dport 22")));
        let open = nft.replace("policy drop", "policy accept");
        let forward = "chain forward { type filter hook forward priority 0; policy drop; }";
        assert!(!drops_input(&format!("{open}\n{forward}")), "another chain's policy");
    }

    #[test]
    fn untracked_packets_are_told() {
        assert_eq!(untracked("-A OUTPUT -o lo -j CT --notrack\n-A OUTPUT -j ACCEPT").len(), 1);
        assert_eq!(untracked("oifname \"lo\" notrack;").len(), 1);
        assert!(untracked("ct state untracked accept").is_empty());
    }
}
