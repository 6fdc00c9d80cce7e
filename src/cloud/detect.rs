//! On which cloud this machine runs, from the strings that its firmware shows.

use super::source::DetectEntry;

/// What the firmware says about the machine; somebody else read it. An empty string is a string that is not
/// there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dmi {
    /// `/sys/class/dmi/id/sys_vendor`
    pub sys_vendor: String,
    /// `/sys/class/dmi/id/product_name`
    pub product_name: String,
    /// `/sys/class/dmi/id/product_serial`, which only root can read
    pub product_serial: String,
    /// `/sys/class/dmi/id/product_uuid`, which only root can read
    pub product_uuid: String,
    /// `/sys/class/dmi/id/bios_vendor`
    pub bios_vendor: String,
    /// `/sys/class/dmi/id/board_asset_tag`
    pub board_asset_tag: String,
    /// `/sys/class/dmi/id/chassis_asset_tag`
    pub chassis_asset_tag: String,
    /// `/sys/hypervisor/uuid`, on Xen
    pub hypervisor_uuid: String,
}

/// A set of strings that together give a cloud away.
#[derive(Debug, Clone)]
pub(super) struct Signature(Vec<(Field, Vec<String>)>);

type Field = fn(&Dmi) -> &str;

impl Signature {
    /// `None` if the entry asks for nothing, which would match every machine.
    pub(super) fn new(entry: &DetectEntry) -> Option<Self> {
        let fields: [(Field, &Option<String>); 8] = [
            (|dmi| &dmi.sys_vendor, &entry.sys_vendor),
            (|dmi| &dmi.product_name, &entry.product_name),
            (|dmi| &dmi.product_serial, &entry.product_serial),
            (|dmi| &dmi.product_uuid, &entry.product_uuid),
            (|dmi| &dmi.bios_vendor, &entry.bios_vendor),
            (|dmi| &dmi.board_asset_tag, &entry.board_asset_tag),
            (|dmi| &dmi.chassis_asset_tag, &entry.chassis_asset_tag),
            (|dmi| &dmi.hypervisor_uuid, &entry.hypervisor_uuid),
        ];
        let mut tests = Vec::new();
        for (field, wanted) in fields {
            let Some(wanted) = wanted else { continue };
            if wanted.chars().all(|c| c == '*') {
                return None;
            }
            tests.push((field, wanted.to_ascii_lowercase().split('*').map(str::to_owned).collect()));
        }
        (!tests.is_empty()).then_some(Self(tests))
    }

    pub(super) fn matches(&self, dmi: &Dmi) -> bool {
        self.0.iter().all(|(field, runs)| like(runs, &field(dmi).trim().to_ascii_lowercase()))
    }
}

/// Whether the text is the runs in their order, with anything between them.
fn like(runs: &[String], text: &str) -> bool {
    match runs {
        [] => false,
        [whole] => whole == text,
        [first, middle @ .., last] => {
            let Some(mut rest) = text.strip_prefix(&**first).and_then(|rest| rest.strip_suffix(&**last))
            else {
                return false;
            };
            middle.iter().all(|run| match rest.split_once(&**run) {
                Some((_, behind)) => {
                    rest = behind;
                    true
                }
                None => false,
            })
        }
    }
}
