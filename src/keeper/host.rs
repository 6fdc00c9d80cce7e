//! What the keeper reads of the host: users and groups, the machine's firmware strings, its own namespaces.

use std::fs;
use std::io;
use std::path::Path;

use crate::cloud::Dmi;

/// The text of /etc/passwd and /etc/group; empty where there is none.
///
/// The files are read as they are, never through NSS: on some clouds an NSS module itself asks the metadata
/// service, which would wait for the guard, which would wait for NSS.
#[must_use]
pub fn accounts() -> (String, String) {
    accounts_of(Path::new("/"))
}

/// The same of another root directory.
#[must_use]
pub fn accounts_of(root: &Path) -> (String, String) {
    let read = |file| fs::read_to_string(root.join(file)).unwrap_or_default();
    (read("etc/passwd"), read("etc/group"))
}

/// The firmware's strings, by which a cloud is recognised; empty where the machine has none.
#[must_use]
pub fn dmi() -> Dmi {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let id = |name: &str| read(&format!("/sys/class/dmi/id/{name}"));
    Dmi {
        sys_vendor: id("sys_vendor"),
        product_name: id("product_name"),
        product_serial: id("product_serial"),
        product_uuid: id("product_uuid"),
        bios_vendor: id("bios_vendor"),
        board_asset_tag: id("board_asset_tag"),
        chassis_asset_tag: id("chassis_asset_tag"),
        hypervisor_uuid: read("/sys/hypervisor/uuid"),
    }
}

/// The interfaces of this network namespace through which default routes of its main table lead, each once.
#[must_use]
pub fn uplinks() -> Vec<String> {
    let read = |name: &str| fs::read_to_string(format!("/proc/self/net/{name}")).unwrap_or_default();
    let mut found = default_routes(&read("route"), &read("ipv6_route"));
    found.sort_unstable();
    found.dedup();
    found
}

/// The interfaces of default routes, as the kernel shows routes (`/proc/net/route`: name, destination, six fields, mask;
/// `/proc/net/ipv6_route`: destination, its length, seven fields, name). Loopback holds the entries that refuse.
fn default_routes(v4: &str, v6: &str) -> Vec<String> {
    let v4 = v4.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match (fields.first(), fields.get(1), fields.get(7)) {
            (Some(name), Some(&"00000000"), Some(&"00000000")) => Some(*name),
            _ => None,
        }
    });
    let v6 = v6.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_default = fields.first().is_some_and(|to| to.bytes().all(|byte| byte == b'0'));
        (is_default && fields.get(1) == Some(&"00")).then(|| fields.last().copied())?
    });
    v4.chain(v6).filter(|name| *name != "lo").map(str::to_owned).collect()
}

/// Whether this process is in the initial user namespace, where every uid is itself: elsewhere all unmapped users
/// look alike (65534), and the stamps would mean nothing.
pub fn in_initial_user_namespace() -> io::Result<bool> {
    let map = fs::read_to_string("/proc/self/uid_map")?;
    Ok(map.split_whitespace().eq(["0", "0", "4294967295"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uplinks_are_where_default_routes_lead() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  ens5\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let zero = "00000000000000000000000000000000";
        let v6 = format!(
            "{zero} 00 {zero} 00 fe800000000000000000000000000001 00000064 00000001 00000000 00000003     ens6\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n\
             fd000000000000000000000000000000 08 {zero} 00 {zero} 00000100 00000001 00000000 00000001  docker0\n"
        );
        assert_eq!(default_routes(v4, &v6), ["ens5", "ens6"]);
    }
}
