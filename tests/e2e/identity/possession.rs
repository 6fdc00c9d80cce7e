//! A socket whose visible holder is not who speaks through it.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use super::{BOUND_UID, BOUND_UNIT, Stage, fools_nobody, insider, pinned, play, scratch, start, stranger};
use crate::support::bed::{Bed, PERSON_UID, ROLE_PATH};
use crate::support::caller::Caller;
use crate::support::connection::Connection;
use crate::support::policy::Policy;
use crate::support::simulator::{Fault, SECRET_MARK};
use crate::support::wait;

const METADATA: &str = "169.254.169.254:80";
const URL: &str = "http://169.254.169.254/latest/meta-data/iam/security-credentials/decoy-role";

/// One named test a trick.
macro_rules! possessions {
    ($($test:ident: $trick:literal by $($caller:ident),+;)+) => {
        $(
            #[test]
            #[ignore = "needs root: make test runs it"]
            fn $test() {
                fools_nobody($trick, &[$($caller),+]);
            }
        )+
    };
}

possessions! {
    becoming_the_agent_after_connecting_is_too_late: "connect_then_exec" by stranger, insider;
    the_agent_as_sole_visible_holder_is_too_late: "send_then_exec" by stranger, insider;
    a_socket_in_flight_has_no_holder: "in_flight" by stranger, insider;
    a_socket_shared_with_the_agent_is_not_the_agents: "shared_with_the_agent" by stranger, insider;
    a_holder_whose_name_is_no_text_is_a_holder: "holder_whose_name_is_no_text" by stranger, insider;
    a_private_descriptor_table_hides_no_holder: "private_table" by stranger, insider;
    a_socket_left_to_a_child_stays_its_creators: "left_to_a_child" by stranger, insider;
    a_socket_taken_from_the_agent_has_another_holder: "take_from_the_agent" by stranger, insider;
    a_search_that_takes_too_long_grants_nothing: "too_much_to_search" by insider;
    a_dead_leader_hides_no_holder: "dead_leader" by stranger, insider;
    a_descriptor_registered_with_io_uring_has_no_holder: "registered_with_io_uring" by stranger, insider;
    a_reuseport_twin_of_the_agents_connection_is_not_the_agent: "twin_elsewhere" by stranger, insider;
    a_reuseport_twin_that_listens_is_not_the_agent: "twin_that_listens" by stranger, insider;
}

#[test]
#[ignore = "needs root: make test runs it"]
fn exiting_before_the_look_up_gives_no_grant() {
    // Nobody is left to read an answer, so it is about what reaches the cloud.
    let stage = Stage::new();
    stage.enforce();
    for caller in [stranger(&stage.bed), insider(&stage.bed)] {
        play(&caller, "exit_before_the_look_up", &[]).expect("it needs nothing special");
    }
    assert!(stage.bed.cloud.received().is_empty());
    let unserved = |event: &crate::support::event::Event| event.text("imds_guard.verdict") != "allow";
    stage.guard.event("of a caller that was gone", unserved);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_thread_behind_a_crowd_of_others_is_a_holder() {
    Stage::new().fools_nobody(|bed| play(&insider(bed), "private_table", &["700"]));
}

/// The agent's program, and a copy of it that is another file.
fn genuine_and_other() -> (String, tempfile::TempDir) {
    let python = fs::canonicalize("/usr/bin/python3").unwrap();
    let place = scratch(BOUND_UID);
    fs::copy(&python, place.path().join("other")).unwrap();
    fs::set_permissions(place.path().join("other"), fs::Permissions::from_mode(0o755)).unwrap();
    (python.to_str().unwrap().to_owned(), place)
}

fn other(place: &Path) -> String {
    place.join("other").to_str().unwrap().to_owned()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_kept_connection_does_not_stay_the_agents_when_its_program_changes() {
    let (python, place) = genuine_and_other();
    let other = other(place.path());
    let stage = Stage::with_exe(&python);
    stage.fools_nobody(|bed| play(&insider(bed), "keep_alive_across_exec", &[&other]));
    // The same program on the same connection is still the agent.
    let told = play(&insider(&stage.bed), "keep_alive_across_exec", &[&python]).unwrap();
    assert!(told.contains(SECRET_MARK), "{told}");
}

/// What the bound agent is told that becomes another program while the service has its request, the so manieth.
fn becomes_another_under_way(bed: &Bed, program: &str, asked: &[&str], requests: usize) -> String {
    let scratch = scratch(BOUND_UID);
    let arguments = [&[program], asked].concat();
    let mut command = start(&insider(bed), "become_another_under_way", &scratch, &arguments);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    wait::until_true("the service has the request", Duration::from_secs(9), || {
        bed.reached(asked[0].split('?').next().unwrap()).len() == requests
    });
    child.stdin.take().unwrap().write_all(b"!").unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_agent_that_becomes_another_while_a_document_is_taken_apart_gets_no_part_of_it() {
    let (python, place) = genuine_and_other();
    let bed = Bed::new();
    let reader = format!("exe = \"{python}\"\nallow = [\"user-data\"]");
    let reader =
        format!("[[agent]]\nname = \"reader\"\nunit = \"{BOUND_UNIT}\"\nuser = {BOUND_UID}\n{reader}");
    let _guard = bed.guard(&Policy::enforce().key("aggregate = \"redact\"").with(&reader));
    bed.cloud.set_fault(Fault::Slow(Duration::from_secs(2)));
    let asked = ["/computeMetadata/v1/?recursive=true&alt=json", "Metadata-Flavor: Google"];
    // As itself it is given the tree with the user data, without the rest that it lacks.
    let told = becomes_another_under_way(&bed, &python, &asked, 1);
    assert!(told.contains(SECRET_MARK) && told.contains("-part-"), "{told}");
    let told = becomes_another_under_way(&bed, &other(place.path()), &asked, 2);
    assert!(!told.contains(SECRET_MARK), "the part was released to another program: {told}");
    assert!(told.contains("the caller changed"), "{told}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_agent_that_becomes_another_while_its_request_is_under_way_gets_no_answer() {
    let (python, place) = genuine_and_other();
    let other = other(place.path());
    let stage = Stage::with_exe(&python);
    stage.bed.cloud.set_fault(Fault::Slow(Duration::from_secs(2)));
    let becomes_another = |requests| becomes_another_under_way(&stage.bed, &other, &[ROLE_PATH], requests);
    let told = becomes_another(1);
    assert!(told.contains(SECRET_MARK), "audit mode only tells: {told}");
    stage.guard.event("of what enforce mode would have held back", |event| {
        event.text("url.path") == ROLE_PATH && event.text("imds_guard.would_deny") == "true"
    });
    stage.enforce();
    let told = becomes_another(2);
    assert!(!told.contains(SECRET_MARK), "the answer was released to another program: {told}");
    assert!(told.contains("the caller changed"), "{told}");
    assert_eq!(stage.bed.reached(ROLE_PATH).len(), 2, "it was the agent when it asked");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn another_users_process_cannot_be_robbed_of_its_connection() {
    let stage = Stage::new();
    stage.enforce();
    let mut agent: Connection = pinned(&stage.bed).connect(METADATA);
    agent.get(ROLE_PATH, &[]);
    assert_eq!(agent.answer().map(|answer| answer.status), Some(200));
    let pid = agent.pid().to_string();
    let told = play(&stranger(&stage.bed), "take_from_a_process", &[&pid]).unwrap();
    assert!(told.contains("refused by the kernel") && !told.contains(SECRET_MARK), "{told}");
}

/// Two processes: one listens for a socket and asks by it, the other makes one, hands it over, and reads the answer.
fn hand_over(from: &Caller<'_>, to: &Caller<'_>, address: &str) -> String {
    let taker = Waiting::new(to, "take_a_socket", address);
    let told = play(from, "give_a_socket", &[address]).unwrap();
    drop(taker);
    told
}

/// A trick that goes on beside the test. Killed when dropped.
struct Waiting {
    child: Child,
    cannot_be_played: bool,
    _scratch: tempfile::TempDir,
}

impl Waiting {
    /// Starts it and waits for its first line.
    fn new(caller: &Caller<'_>, trick: &str, argument: &str) -> Self {
        let scratch = scratch(caller.uid);
        let mut child = start(caller, trick, &scratch, &[argument]).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.contains("Error") && !line.contains("Traceback"), "{line}");
        let cannot_be_played = line.starts_with("skipped");
        if cannot_be_played {
            eprintln!("SKIPPED {trick}: {line}");
        }
        Self { child, cannot_be_played, _scratch: scratch }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_socket_that_a_stranger_hands_to_the_agent_stays_the_strangers() {
    for agent in [pinned, insider] {
        let python = fs::canonicalize("/usr/bin/python3").unwrap();
        let stage = Stage::with_exe(python.to_str().unwrap());
        let address = format!("{}-hand-over", stage.bed.name);
        stage.fools_nobody(|bed| Some(hand_over(&stranger(bed), &agent(bed), &address)));
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_socket_that_the_agent_hands_on_is_still_stamped_as_its_own() {
    // The giver was the agent, and trusted not to do that: the threat model says so.
    let stage = Stage::new();
    stage.enforce();
    let address = format!("{}-hand-over", stage.bed.name);
    let told = hand_over(&pinned(&stage.bed), &stranger(&stage.bed), &address);
    assert!(told.contains(SECRET_MARK), "{told}");
    // Bound to a program, it takes another program in its unit that visibly holds the socket to lose the grant.
    let told = hand_over(&insider(&stage.bed), &insider(&stage.bed), &address);
    assert!(!told.contains(SECRET_MARK), "{told}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn memory_that_never_answers_stops_nobody_else() {
    let stage = Stage::new();
    stage.enforce();
    let bed = &stage.bed;
    // Root sets the trap, because not every machine lets users mount FUSE file systems of their own.
    let trap = bed.caller("session-7.scope", 0);
    let trapped = Waiting::new(&trap, "memory_that_never_answers", &PERSON_UID.to_string());
    if trapped.cannot_be_played {
        return;
    }
    wait::until_true("the trap was asked for its command line", Duration::from_secs(5), || {
        stage.guard.events().iter().filter(|event| event.text("user.id") == PERSON_UID.to_string()).count()
            >= 4
    });
    for _ in 0..3 {
        assert_eq!(insider(bed).get(URL).status, 200, "the agent waits for somebody else's memory");
    }
    let event = stage.guard.event("of the agent", |event| event.text("user.id") == BOUND_UID.to_string());
    assert!(event.text("process.command_line").contains("curl"), "others are still told: {event:?}");
    drop(trapped);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_unit_that_is_too_much_to_search_costs_other_agents_nothing() {
    let stage = Stage::new();
    stage.enforce();
    let crowd = stage.bed.caller("session-7.scope", PERSON_UID);
    let scratch = scratch(PERSON_UID);
    let mut child = start(&crowd, "crowd_that_asks", &scratch, &[]).stderr(Stdio::piped()).spawn().unwrap();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut String::new()).unwrap();
    for _ in 0..10 {
        assert_eq!(insider(&stage.bed).get(URL).status, 200);
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
