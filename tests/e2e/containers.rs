//! Callers in other network namespaces, as Docker, Podman and Kubernetes make them.

use std::time::Duration;

use crate::support::bed::{Bed, ROLE_PATH};
use crate::support::caller::{Caller, Curl, PYTHON};
use crate::support::container::{self, Bridge, Container, Place};
use crate::support::guard::{Guard, MARK, status_field};
use crate::support::netns::{Namespace, unique};
use crate::support::policy::Policy;
use crate::support::simulator::SECRET_MARK;
use crate::support::wait;

const V4: &str = "http://169.254.169.254";
const V6: &str = "http://[fd00:ec2::254]";

/// Containers are behind these interfaces.
const INTERFACES: &str = "[containers]\ninterfaces = [\"docker0\", \"br-*\", \"veth*\"]";

/// Docker's containers may read credentials.
const DOCKER: &str = "[[agent]]\nname = \"docker\"\ncontainer = \"docker\"\n\
                      allow = [\"config\", \"session\", \"credentials\"]";

fn enforce() -> Policy {
    Policy::enforce().with(INTERFACES)
}

/// A request for the role's credentials, whatever comes of it.
fn ask(caller: &Caller<'_>, at: &str) -> Curl {
    caller.curl(&["--max-time", "5", &format!("{at}{ROLE_PATH}")])
}

fn is_refused(curl: &Curl) -> bool {
    curl.exit == 0 && curl.answer.is_refusal()
}

/// Whether the credentials came.
fn is_served(curl: &Curl) -> bool {
    curl.exit == 0 && curl.answer.status == 200 && curl.answer.text().contains(SECRET_MARK)
}

fn bridge_filtering(bed: &Bed) {
    for family in ["iptables", "ip6tables"] {
        bed.sysctl(&format!("net/bridge/bridge-nf-call-{family}"), "1");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_container_that_the_policy_names_is_served_and_told() {
    for at in [V4, V6] {
        let bed = Bed::new();
        let bridge = Bridge::new(&bed, "docker0");
        let container = Container::docker(&bed, &bridge, 2);
        let guard = bed.guard(&enforce().with(DOCKER));
        let answer = ask(&container.user(63_001), at);
        assert!(is_served(&answer), "{at}: {answer:?}");
        let event = guard.event_for(ROLE_PATH);
        assert_eq!(event.text("container.id"), container.id);
        assert_eq!(event.text("container.runtime"), "docker");
        assert_eq!(event.text("imds_guard.origin"), "container");
        assert_eq!(event.text("imds_guard.attribution"), "stamped");
        assert_eq!(event.text("imds_guard.cgroup"), container.cgroup());
        assert_eq!(event.text("imds_guard.agent"), "docker");
        assert_eq!(event.text("user.id"), "63001");
        assert!(bridge.addresses(2).contains(&event.text("source.ip")), "{}", event.text("source.ip"));
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn containers_are_led_with_bridge_filtering_on() {
    // Docker and kubelet turn it on: a bridge's packets then pass the IP hooks once more.
    for at in [V4, V6] {
        let bed = Bed::new();
        let bridge = Bridge::new(&bed, "docker0");
        bridge_filtering(&bed);
        let (named, other) = (Container::docker(&bed, &bridge, 2), Container::docker(&bed, &bridge, 3));
        let agent = format!(
            "[[agent]]\nname = \"named\"\ncontainer = {{ runtime = \"docker\", id = \"{}\" }}\nallow = \"credentials\"",
            named.id
        );
        let guard = bed.guard(&enforce().with(&agent));
        assert!(is_served(&ask(&named.root(), at)), "{at}");
        assert!(is_refused(&ask(&other.root(), at)), "{at}");
        assert_eq!(
            guard
                .event("of the other", |event| event.text("container.id") == other.id)
                .text("imds_guard.reason"),
            "no-agent-in-container"
        );
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_container_that_nobody_names_gets_nothing_not_even_a_token() {
    for at in [V4, V6] {
        let bed = Bed::new();
        let bridge = Bridge::new(&bed, "br-0a1b2c3d");
        let container = Container::docker(&bed, &bridge, 2);
        // What everyone and root may do is said of this host's own.
        let rules = "[[agent]]\nname = \"root\"\nuser = \"root\"\nallow = [\"config\", \"session\", \"credentials\"]\n\
                     [[rule]]\nname = \"anybody\"\nclass = \"credentials\"\naction = \"allow\"\n\
                     [[rule]]\nname = \"root by rule\"\nuser = \"root\"\nclass = \"credentials\"\naction = \"allow\"";
        let _guard = bed.guard(&enforce().with(rules));
        let token = [
            "-X",
            "PUT",
            "-H",
            "X-aws-ec2-metadata-token-ttl-seconds: 60",
            &format!("{at}/latest/api/token"),
        ];
        let asked = container.root().curl(&token);
        assert!(is_refused(&asked), "{at}: a session token: {asked:?}");
        for path in ["/latest/meta-data/instance-id", ROLE_PATH, "/latest/user-data"] {
            let asked = container.root().curl(&[&format!("{at}{path}")]);
            assert!(is_refused(&asked), "{at}{path}: {asked:?}");
        }
        assert!(bed.cloud.received().is_empty());
        assert!(is_served(&ask(&bed.agent(), at)), "this host's own agent is served");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_all_containers_may_do_the_policy_says() {
    let bed = Bed::new();
    let bridge = Bridge::new(&bed, "docker0");
    let container = Container::docker(&bed, &bridge, 2);
    let policy = Policy::enforce().with("[containers]\ninterfaces = \"docker0\"\nallow = \"config\"");
    let guard = bed.guard(&policy);
    let harmless = "/latest/meta-data/instance-id";
    assert_eq!(container.root().get(&format!("{V4}{harmless}")).status, 200);
    assert_eq!(guard.event_for(harmless).text("imds_guard.reason"), "containers-allow");
    assert!(is_refused(&ask(&container.root(), V4)));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn audit_counts_containers_and_leaves_them_alone() {
    let bed = Bed::new();
    let bridge = Bridge::new(&bed, "docker0");
    let container = Container::docker(&bed, &bridge, 2);
    let policy = Policy::audit().with(INTERFACES);
    let guard = bed.guard(&policy);
    for at in [V4, V6] {
        assert!(is_served(&ask(&container.root(), at)), "{at}");
    }
    guard.reload(&policy);
    // In one event or, where an address changed meanwhile and the rules with it, in two.
    wait::until_true("both are counted", Duration::from_secs(10), || {
        let events = guard.events();
        let counted =
            events.iter().filter(|event| event.text("imds_guard.reason") == "containers-not-judged");
        let aggregates = counted.filter(|event| event.text("event.action") == "aggregate");
        aggregates.map(|event| event.text("imds_guard.count").parse::<u32>().unwrap()).sum::<u32>() == 2
    });
    assert!(guard.events().iter().all(|event| event.text("event.action") != "request"), "one was judged");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn audit_judges_containers_where_the_policy_says_so() {
    let bed = Bed::new();
    let bridge = Bridge::new(&bed, "docker0");
    let container = Container::docker(&bed, &bridge, 2);
    let guard = bed.guard(&Policy::audit().with("[containers]\ninterfaces = [\"docker0\"]\njudge = true"));
    for at in [V4, V6] {
        assert!(is_served(&ask(&container.root(), at)), "{at}: audit refuses nothing");
    }
    let event = guard.event_for(ROLE_PATH);
    assert_eq!(event.text("imds_guard.would_deny"), "true");
    assert_eq!(event.text("container.id"), container.id);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_guard_that_stops_lets_containers_pass_in_audit_and_not_in_enforce() {
    let judged = "[containers]\ninterfaces = [\"docker0\"]\njudge = true";
    for (policy, passes) in [(Policy::audit(), true), (Policy::enforce(), false)] {
        let bed = Bed::new();
        let bridge = Bridge::new(&bed, "docker0");
        let container = Container::docker(&bed, &bridge, 2);
        let guard = bed.guard(&policy.with(judged).with(DOCKER));
        assert!(is_served(&ask(&container.root(), V4)));
        drop(guard);
        let after = ask(&container.root(), V4);
        assert_eq!(is_served(&after), passes, "{after:?}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_comes_in_through_an_uplink_is_never_led() {
    for policy in [Policy::enforce(), Policy::audit().with("# judged")] {
        let bed = Bed::new();
        // A neighbour that uses the vm as its next hop, on a cable that is not named.
        let uplink = Bridge::cable(&bed, "ens6");
        let neighbour = Container::at_cable(&bed, &uplink, 2);
        let judged = "[containers]\ninterfaces = [\"docker0\", \"br-*\", \"veth*\"]\njudge = true";
        let is_enforced = policy.text(std::path::Path::new("/")).contains("enforce");
        let guard = bed.guard(&policy.with(judged).with(DOCKER));
        for at in [V4, V6] {
            let answer = ask(&neighbour.root(), at);
            assert_eq!(
                is_served(&answer),
                !is_enforced,
                "{at}: it passes the guard by, or not at all: {answer:?}"
            );
        }
        assert!(guard.events().iter().all(|event| event.text("imds_guard.origin") != "container"));
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_interface_that_becomes_an_uplink_is_no_longer_led() {
    let bed = Bed::new();
    let bridge = Bridge::new(&bed, "br-lan");
    let container = Container::docker(&bed, &bridge, 2);
    let guard = bed.guard(&enforce().with(DOCKER));
    assert!(is_served(&ask(&container.root(), V4)));
    let gateway = &bridge.addresses(9)[0];
    bed.network.vm.ip(&format!("route add default via {gateway} dev br-lan\n"));
    guard.event("of the uplink", |event| event.text("imds_guard.reason") == "uplink-of-containers");
    wait::until_true("nothing is led from there", Duration::from_secs(10), || {
        let answer = ask(&container.root(), V4);
        !is_served(&answer) && !is_refused(&answer)
    });
    bed.network.vm.ip("route del default\n");
    wait::until_true("it is led again", Duration::from_secs(10), || is_served(&ask(&container.root(), V4)));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_policy_that_names_an_uplink_is_refused() {
    let bed = Bed::new();
    bed.network.vm.ip("route add default via 10.99.0.1 dev eth0\n");
    for name in ["eth0", "et*"] {
        let policy = Policy::enforce().with(&format!("[containers]\ninterfaces = [\"{name}\"]"));
        let output = Guard::run_to_end(&mut bed.guard_command(), &policy);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{message}");
        assert!(message.contains("default route"), "{message}");
        let dir = Guard::prepare(&policy);
        let check = bed.guard_command().args(["check"]).arg(Guard::config_in(&dir)).output().unwrap();
        assert_eq!(check.status.code(), Some(1), "{}", String::from_utf8_lossy(&check.stdout));
    }
    assert!(!bed.has_redirect());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_forged_name_of_a_container_is_no_container() {
    let bed = Bed::new();
    let bridge = Bridge::new(&bed, "docker0");
    let container = Container::docker(&bed, &bridge, 2);
    let guard = bed.guard(
        &enforce()
            .with(DOCKER)
            .with("[[agent]]\nname = \"any\"\ncontainer = [\"*\", \"podman\"]\nallow = \"credentials\""),
    );
    let (unique, id) = (unique().replace('-', "_"), container::id());
    for path in [
        format!("/user.slice/user-{unique}.slice/user@1000.service/docker-{id}.scope"),
        format!("/user.slice/user-{unique}.slice/docker-{id}.scope"),
        format!("/system.slice/{unique}.service/docker-{id}.scope"),
        format!("/system.slice/{unique}.service/docker/{id}"),
        format!("/system.slice/{unique}.service/libpod-payload-{id}"),
        format!("/system.slice/{unique}.service/machine.slice/libpod-{id}.scope"),
        format!("/{unique}/docker/{id}"),
    ] {
        let place = Place::new(&path);
        let asked = ask(&container.in_cgroup(place.cgroup.clone()), V4);
        assert!(is_refused(&asked), "{path}: {asked:?}");
        let host = Caller::new(&bed.network.vm, place.cgroup.clone(), 63_100);
        let asked = ask(&host, V4);
        assert!(is_refused(&asked), "{path}, in the host's own namespace: {asked:?}");
        let event = guard.event(&path, |event| event.text("imds_guard.cgroup") == path);
        assert_eq!(event.text("imds_guard.agent"), "");
    }
    assert!(bed.reached(ROLE_PATH).is_empty());
    assert!(is_served(&ask(&container.root(), V4)), "the real one is served");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn containers_of_each_engine_are_known() {
    let bed = Bed::new();
    let bridge = Bridge::new(&bed, "docker0");
    let (container, unique) = (Container::docker(&bed, &bridge, 2), unique().replace('-', "_"));
    let agents = format!(
        "[[agent]]\nname = \"a\"\ncontainer = [\"docker\", \"podman\", \"cri-o\", {{ runtime = \"containerd\", pod = \"8b0e0b3c-*\" }}]\n\
         user = 0\nallow = \"credentials\"\n\
         [[agent]]\nname = \"b\"\ncontainer = {{ runtime = \"podman\", rootless = true }}\nuser = 63100\nallow = \"credentials\"\n\
         [[agent]]\nname = \"c\"\ncontainer = \"quadlet\"\nunit = \"{unique}.service\"\nallow = \"credentials\""
    );
    let guard = bed.guard(&enforce().with(&agents));
    let pod = "8b0e0b3c_5a4f_4a8e_9d3b_0123456789ab";
    for (path, uid, agent) in [
        (format!("/docker/{}", container::id()), 0, "a"),
        (format!("/machine.slice/libpod-{}.scope/container", container::id()), 0, "a"),
        (format!("/kubepods.slice/kubepods-pod{pod}.slice/cri-containerd-{}.scope", container::id()), 0, "a"),
        (
            format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{pod}.slice/crio-{}.scope",
                container::id()
            ),
            0,
            "a",
        ),
        (
            format!(
                "/user.slice/user-{unique}.slice/user@1000.service/user.slice/libpod-{}.scope",
                container::id()
            ),
            63_100,
            "b",
        ),
        (format!("/system.slice/{unique}.service/libpod-payload-{}", container::id()), 0, "c"),
    ] {
        let place = Place::new(&path);
        let caller = Caller::new(container.namespace(), place.cgroup.clone(), uid);
        assert!(is_served(&ask(&caller, V4)), "{path}");
        let event = guard.event(&path, |event| event.text("imds_guard.cgroup") == path);
        assert_eq!(event.text("imds_guard.agent"), agent, "{path}");
        let pod = if path.contains("kubepods") { pod.replace('_', "-") } else { String::new() };
        assert_eq!(event.text("orchestrator.resource.id"), pod, "{path}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_connection_that_two_namespaces_know_is_nobodys() {
    let bed = Bed::new();
    let bridge = Bridge::new(&bed, "docker0");
    let container = Container::docker(&bed, &bridge, 2);
    let guard = bed.guard(&enforce().with(DOCKER));
    let port = "25017";
    let from = |port: &str| container.root().curl(&["--local-port", port, &format!("{V4}{ROLE_PATH}")]);
    assert!(is_served(&from("45016")), "without a twin it is served");

    // Another namespace gives itself the container's address, and a socket the connection's ends.
    let twin = Namespace::new(format!("{}-twin", bed.name));
    let address = &bridge.addresses(2)[0];
    twin.ip(&format!("link add eth0 type veth peer name eth1\nlink set eth0 up\nlink set eth1 up\naddr add {address}/24 dev eth0\nroute add default dev eth0\n"));
    let connect = "import socket, sys, time\n\
                   s = socket.socket(); s.setblocking(False); s.bind((sys.argv[1], int(sys.argv[2])))\n\
                   s.connect_ex(('169.254.169.254', 80)); print('connecting', flush=True); time.sleep(60)";
    let stranger = Caller::new(&twin, bed.slice.unit("twin.service"), 63_100);
    let mut command = stranger.command(PYTHON);
    command.args(["-I", "-S", "-c", connect, address, port]).stdout(std::process::Stdio::piped());
    let mut twin = command.spawn().expect("python3 runs");
    let mut line = [0_u8; 10];
    std::io::Read::read_exact(twin.stdout.as_mut().unwrap(), &mut line).expect("it connects");
    // Namespaces that were there at the last search are asked; this one is found by a search that somebody else causes.
    let other = Container::docker(&bed, &bridge, 3);
    assert!(is_served(&ask(&other.root(), V4)));

    let answer = from(port);
    assert!(is_refused(&answer), "{answer:?}");
    guard.event("of the twins", |event| event.text("imds_guard.attribution") == "several-namespaces");
    twin.kill().expect("it runs");
    twin.wait().expect("it ends");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_connection_that_no_namespace_shows_is_nobodys() {
    let bed = Bed::new();
    let bridge = Bridge::new(&bed, "docker0");
    let container = Container::docker(&bed, &bridge, 2);
    // What an unattributed caller may do is not said of containers either.
    let policy =
        enforce().with(DOCKER).with("[unattributed]\nallow = [\"config\", \"session\", \"credentials\"]");
    let guard = bed.guard(&policy);
    // A socket that is bound to its interface is found only by the interface's number, which is its namespace's own.
    let answer = container.root().curl(&["--interface", "if!eth0", &format!("{V4}{ROLE_PATH}")]);
    assert!(is_refused(&answer), "{answer:?}");
    let event = guard.event_for(ROLE_PATH);
    assert_eq!(event.text("imds_guard.attribution"), "no-namespace");
    assert_eq!(event.text("imds_guard.origin"), "container");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_host_s_socket_of_the_same_ends_is_not_the_container() {
    // The host's agent has a connection from each port; a container takes the port of one.
    let bed = Bed::new();
    let bridge = Bridge::new(&bed, "docker0");
    let container = Container::docker(&bed, &bridge, 2);
    let _guard = bed.guard(&enforce());
    let address = &bridge.addresses(2)[0];
    // IP_FREEBIND lets anybody bind to an address that is not there (15 is its number).
    let bind = "import socket, sys, time\n\
                s = socket.socket(); s.setsockopt(0, 15, 1); s.bind((sys.argv[1], 25018)); s.listen()\n\
                print('listening.', flush=True); time.sleep(60)";
    let mut command = bed.agent().command(PYTHON);
    command.args(["-I", "-S", "-c", bind, address]).stdout(std::process::Stdio::piped());
    let mut listener = command.spawn().expect("python3 runs");
    let mut line = [0_u8; 10];
    std::io::Read::read_exact(listener.stdout.as_mut().unwrap(), &mut line).expect("it listens");
    let answer = container.root().curl(&["--local-port", "25018", &format!("{V4}{ROLE_PATH}")]);
    assert!(is_refused(&answer), "{answer:?}");
    listener.kill().expect("it runs");
    listener.wait().expect("it ends");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_listeners_for_containers_answer_nobody_else() {
    let bed = Bed::new();
    let bridge = Bridge::new(&bed, "docker0");
    let container = Container::docker(&bed, &bridge, 2);
    let guard = bed.guard(&enforce().with(DOCKER));
    let before = bed.cloud.received().len();
    for port in guard.listening_ports() {
        for (caller, at) in [
            (container.root(), bridge.addresses(1)[0].clone()),
            (bed.agent(), "127.0.0.1".to_owned()),
            (bed.agent(), bridge.addresses(1)[0].clone()),
        ] {
            let direct = caller.curl(&[
                "--max-time",
                "3",
                "-H",
                "Host: 169.254.169.254",
                &format!("http://{at}:{port}{ROLE_PATH}"),
            ]);
            assert_ne!(direct.exit, 0, "{at}:{port}: {direct:?}");
        }
    }
    assert_eq!(bed.cloud.received().len(), before);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_executable_inside_a_container_proves_nothing() {
    let bed = Bed::new();
    let bridge = Bridge::new(&bed, "docker0");
    let container = Container::docker(&bed, &bridge, 2);
    let agent = |more: &str| {
        format!("[[agent]]\nname = \"curl\"\ncontainer = \"docker\"\n{more}allow = \"credentials\"")
    };
    let guard = bed.guard(&enforce().with(&agent("exe = \"/usr/bin/curl\"\n")));
    // A root directory of its own, as every container has.
    let rooted = |caller: Caller<'_>| {
        let mut command = caller.command("unshare");
        command.args(["--mount", "sh", "-c", "d=$(mktemp -d) && mount -t tmpfs none $d && mkdir $d/usr $d/lib $d/lib64 $d/etc && for x in usr lib lib64 etc; do mount --rbind /$x $d/$x; done && exec chroot $d /usr/bin/curl -q -sS -i --max-time 5 \"$0\""]);
        command.arg(format!("{V4}{ROLE_PATH}"));
        String::from_utf8_lossy(&command.output().expect("unshare runs").stdout).into_owned()
    };
    let told = rooted(container.root());
    assert!(told.to_lowercase().contains(MARK) && !told.contains(SECRET_MARK), "{told}");
    guard.reload(&enforce().with(&agent("")));
    assert!(rooted(container.root()).contains(SECRET_MARK), "without `exe` it is served");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_guard_keeps_no_network_namespace_alive() {
    let bed = Bed::new();
    let bridge = Bridge::new(&bed, "docker0");
    let container = Container::docker(&bed, &bridge, 2);
    let guard = bed.guard(&enforce().with(DOCKER));
    assert!(is_served(&ask(&container.root(), V4)));
    let port_is_there = || {
        bed.network.vm.command("ip").args(["link", "show", "docker0v2"]).output().unwrap().status.success()
    };
    assert!(port_is_there());
    drop(container);
    // The cable's end goes when the kernel lets the namespace go.
    wait::until_true("the namespace is gone", Duration::from_secs(15), || !port_is_there());
    drop(guard);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_container_that_comes_later_is_found() {
    let bed = Bed::new();
    let bridge = Bridge::new(&bed, "docker0");
    let _guard = bed.guard(&enforce().with(DOCKER));
    let mut containers = Vec::new();
    for number in 2..8 {
        let container = Container::docker(&bed, &bridge, number);
        assert!(is_served(&ask(&container.root(), V4)), "container {number}");
        containers.push(container);
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn only_a_keeper_of_containers_may_enter_namespaces() {
    let bed = Bed::new();
    let can = |guard: &Guard| {
        let held = status_field(guard.keeper(), "CapEff").expect("a running keeper");
        u64::from_str_radix(&held, 16).expect("hexadecimal") & 1 << 21 != 0
    };
    let guard = bed.guard(&Policy::enforce());
    assert!(!can(&guard), "CAP_SYS_ADMIN without containers");
    guard.reload(&enforce());
    guard.event("of the reload", |event| event.text("imds_guard.reason") == "reload-failed");
    drop(guard);
    assert!(can(&bed.guard(&enforce())));
    let mut without = bed.network.vm.command("setpriv");
    without.args(["--bounding-set", "-sys_admin", "--"]).arg(crate::support::guard::binary());
    let output = Guard::run_to_end(&mut without, &enforce());
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(77), "{message}");
    assert!(message.contains("CAP_SYS_ADMIN"), "{message}");
}
