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

/// Whether this process is in the initial user namespace, where every uid is itself: elsewhere all unmapped users
/// look alike (65534), and the stamps would mean nothing.
pub fn in_initial_user_namespace() -> io::Result<bool> {
    let map = fs::read_to_string("/proc/self/uid_map")?;
    Ok(map.split_whitespace().eq(["0", "0", "4294967295"]))
}
