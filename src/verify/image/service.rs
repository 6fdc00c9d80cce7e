//! The guard's own service in the image: whether it starts, and what holds if it does not.

use std::fs;
use std::path::Path;

use super::super::{Finding, Status};
use super::root::Root;
use crate::policy::{Mode, Policy};

pub(super) fn unit(root: &Root) -> Finding {
    const CHECK: &str = "service";
    const MASK: &str = "etc/systemd/system/imds-guard.service";
    const WANTED: &str = "etc/systemd/system/sysinit.target.wants/imds-guard.service";
    let masked = fs::read_link(root.path.join(MASK)).is_ok_and(|target| target == Path::new("/dev/null"));
    if masked {
        return Finding::new(CHECK, Status::Wrong, "imds-guard.service is masked")
            .help("systemctl unmask imds-guard");
    }
    if !root.exists(WANTED) {
        return Finding::new(CHECK, Status::Wrong, "imds-guard.service is not enabled")
            .help("systemctl enable imds-guard");
    }
    Finding::new(CHECK, Status::Ok, "enabled, in sysinit.target")
}

pub(super) fn direction(root: &Root, policy: &Policy) -> Finding {
    const CHECK: &str = "direction";
    let is_closed = root.exists("var/lib/imds-guard/closed.nft");
    match (policy.mode(), is_closed) {
        (Mode::Enforce, true) => Finding::new(CHECK, Status::Ok, "closed from the first boot, whatever happens to the guard"),
        (Mode::Enforce, false) => {
            Finding::new(CHECK, Status::Warning, "open if the very first start fails").help("run /usr/lib/imds-guard/remember-direction")
        }
        (Mode::Audit, false) => Finding::new(CHECK, Status::Ok, "open whenever the guard is not there (audit)"),
        (Mode::Audit, true) => {
            Finding::new(CHECK, Status::Wrong, "the policy audits, and /var/lib/imds-guard/closed.nft closes the endpoints until the guard is there")
                .help("run /usr/lib/imds-guard/remember-direction, which removes it")
        }
    }
}
