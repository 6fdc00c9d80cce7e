//! The files that are compiled in. Their order decides whose words a refusal takes where several clouds know
//! a path.
//!
//! Some platforms have no file because they have no HTTP service that a guard could stand before: Nutanix,
//! Proxmox, PowerVS, IBM Classic, KubeVirt, VMware, SmartOS, LXD and WSL hand their data over by config
//! drive, serial line, guestinfo or unix socket. Whoever can mount such a drive reads the user data on it,
//! guard or not.

use super::load::{LoadError, load};
use super::service::Cloud;

macro_rules! files {
    ($($id:literal),+ $(,)?) => {
        &[$(($id, include_str!(concat!("clouds/", $id, ".toml")))),+]
    };
}

pub(super) const FILES: &[(&str, &str)] = files![
    "aws-ec2",
    "gcp",
    "azure-imds",
    "digitalocean",
    "oracle-oci",
    "alibaba",
    "tencent",
    "openstack",
    "huawei",
    "ibm-vpc",
    "hetzner",
    "scaleway",
    "vultr",
    "akamai-linode",
    "exoscale",
    "cloudstack",
    "upcloud",
    "equinix-metal",
    "yandex",
    "volcengine",
    "ec2-clones",
    "nwcs",
    "cloudcix",
    "rancher1",
    "aws-ecs",
    "aws-eks-pod-identity",
    "gke-metadata-server",
    "azure-wireserver",
    "azure-arc",
];

pub(super) fn load_all() -> Result<Vec<Cloud>, LoadError> {
    FILES.iter().zip(0..).map(|((id, text), number)| load(id, number, text)).collect()
}

/// The text of a file, for one that builds on it.
pub(super) fn text_of(id: &str) -> Option<&'static str> {
    FILES.iter().find(|(name, _)| *name == id).map(|(_, text)| *text)
}
