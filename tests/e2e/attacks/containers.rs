//! Traffic of another network namespace that this host forwards, as of a container on a bridge.

use std::process::Command;

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::policy::Policy;
use crate::support::simulator::SECRET_MARK;

const URL: &str = "http://169.254.169.254/latest/meta-data/iam/security-credentials/decoy-role";

/// A container's network namespace behind the vm.
struct Pod {
    name: String,
}

impl Pod {
    fn new(bed: &Bed) -> Self {
        let pod = Self { name: format!("{}-pod", bed.name) };
        let name = &pod.name;
        ip(&["netns", "add", name]);
        bed.network.vm.ip(&format!(
            "link add pod type veth peer name eth0 netns {name}\nlink set pod addrgenmode none\n\
             link set pod up\naddr add 10.98.0.1/24 dev pod\n"
        ));
        for line in [
            "link set eth0 addrgenmode none",
            "link set eth0 up",
            "addr add 10.98.0.2/24 dev eth0",
            "route add default via 10.98.0.1",
        ] {
            ip(&[&["-netns", name], line.split(' ').collect::<Vec<_>>().as_slice()].concat());
        }
        bed.network.cloud.ip("route add 10.98.0.0/24 via 10.99.0.2\n");
        let forward = "echo 1 > /proc/sys/net/ipv4/ip_forward";
        assert!(bed.network.vm.command("sh").args(["-c", forward]).status().expect("sh runs").success());
        pod
    }

    /// What curl printed inside, as root: in its container everybody may be root.
    fn get(&self, url: &str) -> String {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).args(["--", "curl", "-q", "-sS", "-i"]);
        let output = command.args(["--max-time", "3", url]).output().expect("curl runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn ip(arguments: &[&str]) {
    assert!(Command::new("ip").args(arguments).status().expect("ip runs").success(), "ip {arguments:?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_container_gets_nothing_in_enforce() {
    let bed = Bed::new();
    let pod = Pod::new(&bed);
    assert!(pod.get(URL).contains(SECRET_MARK), "without a guard it is open to it");
    let before = bed.cloud.received().len();
    let _guard = bed.guard(&Policy::enforce());
    let token = "http://169.254.169.254/latest/meta-data/instance-id";
    for url in [URL, token] {
        assert_eq!(pod.get(url), "", "{url}");
    }
    assert_eq!(bed.cloud.received().len(), before);
    assert_eq!(bed.agent().get(URL).status, 200, "the host's own agent is served");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_container_is_left_alone_in_audit() {
    let bed = Bed::new();
    let pod = Pod::new(&bed);
    let _guard = bed.guard(&Policy::audit());
    assert!(pod.get(URL).contains(SECRET_MARK));
    let peers: Vec<String> =
        bed.reached(ROLE_PATH).iter().map(|request| request.peer.ip().to_string()).collect();
    assert_eq!(peers, ["10.98.0.2"], "the guard stood in between");
}
