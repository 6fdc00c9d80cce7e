use super::*;
use crate::caller::{Attribution, Cgroup, CgroupPath, Exe, Origin, Process, Processes, Stamps, Why};
use crate::cases::request;
use crate::cloud::Endpoint;
use crate::policy::{Accounts, Action, Compiled, Context, Source, Verdict};

const FILE: &str = "[aws]\nrole = \"r\"\naccess-key-id = \"AKIACANARY\"\nsecret-access-key = \"s3cret\"\nsession-token = \"t\"\n";
const ROLE: &str = "GET /latest/meta-data/iam/security-credentials/role";

fn compile(text: &str, canaries: CanaryFile) -> Compiled {
    let accounts = Accounts::parse("imds-guard:x:990:990\nweb:x:33:33", "");
    let context = Context { accounts, canaries, ..Context::default() };
    let source = Source { name: "policy.toml".to_owned(), text: text.to_owned() };
    Policy::compile(&[source], &context).unwrap_or_else(|errors| panic!("{errors:?}"))
}

fn policy(more: &str) -> Policy {
    let text = format!(
        "mode = \"enforce\"\ncloud = \"aws\"\n[guard]\ndecoys = \"/etc/decoys.toml\"\n[everyone]\nallow = \"config\"\n\
         [[rule]]\nname = \"canaries\"\naction = \"decoy\"\nclass = \"credentials\"\n{more}"
    );
    compile(&text, CanaryFile::Text(Canaried(FILE.to_owned()))).policy
}

fn caller(uid: u32, unit: &str, exe: Option<&str>) -> Caller {
    let path = CgroupPath::new(format!("/system.slice/{unit}")).unwrap();
    let process = |exe: &str| Process {
        pid: 1,
        start_ticks: 0,
        parent: 0,
        uid,
        comm: String::new(),
        command_line: String::new(),
        exe: Exe { path: exe.to_owned(), names: vec![exe.to_owned()], doubt: String::new(), sha256: None },
    };
    Caller {
        origin: Origin::Host,
        attribution: Attribution::Stamped(Stamps {
            uid,
            cgroup: Cgroup { id: 1, path },
            inode: 1,
            cookie: 1,
        }),
        processes: exe.map_or(Processes::Skipped, |exe| Processes::Holders(vec![process(exe)])),
    }
}

fn asked(policy: &Policy, line: &str) -> Asked {
    request::ask(policy.catalogue(), Endpoint::new(Endpoint::SHARED, 80), line, &[])
}

/// `decoy`, `refuse` or `forward`.
fn action(policy: &Policy, caller: &Caller, line: &str) -> &'static str {
    let asked = asked(policy, line);
    let decision = policy.decide(caller, &asked);
    let is_decoy = decision.is_decoy();
    let action = match decision.act(&asked) {
        Action::Decoy(..) => "decoy",
        Action::Refuse(_) => "refuse",
        Action::Forward(_) | Action::Withhold(_) => "forward",
    };
    assert_eq!(action == "decoy", is_decoy);
    action
}

#[test]
fn a_stranger_has_a_decoy_and_nobody_for_whom_anything_speaks() {
    let policy = policy(
        "[[agent]]\nname = \"a\"\nunit = \"a.service\"\nuser = 33\nallow = \"config\"\n\
         [[agent]]\nname = \"b\"\nunit = \"b.service\"\nexe = \"/usr/bin/b\"\nallow = \"config\"\n",
    );
    for (who, wanted) in [
        (caller(33, "web.service", None), "decoy"),
        (caller(0, "a.service", None), "decoy"),
        (caller(33, "a.service", None), "refuse"),
        (caller(33, "b.service", None), "refuse"),
        (caller(33, "b.service", Some("/usr/bin/b")), "refuse"),
        (caller(33, "b.service", Some("/tmp/x")), "refuse"),
    ] {
        assert_eq!(action(&policy, &who, ROLE), wanted, "{who:?}");
    }
    let unknown =
        Caller { attribution: Attribution::Unattributed(Why::Orphan), ..caller(33, "web.service", None) };
    assert_eq!(action(&policy, &unknown, ROLE), "refuse", "it might be an agent");
}

#[test]
fn an_agent_known_by_its_executable_alone_is_looked_at_before_a_decoy_is_given() {
    let policy = policy("[[agent]]\nname = \"w\"\nexe = \"/usr/bin/w\"\nallow = \"config\"\n");
    let unseen = caller(33, "web.service", None);
    assert_eq!(action(&policy, &unseen, ROLE), "refuse");
    assert!(policy.needs_processes(&unseen, &asked(&policy, ROLE)));
    assert!(policy.may_need_processes(&unseen));
    assert_eq!(action(&policy, &caller(33, "web.service", Some("/usr/bin/curl")), ROLE), "decoy");
    assert_eq!(action(&policy, &caller(33, "web.service", Some("/usr/bin/w")), ROLE), "refuse");
    assert!(!policy.needs_processes(&unseen, &asked(&policy, "GET /latest/user-data")));
}

#[test]
fn only_reads_of_credentials_that_have_a_form_are_baited() {
    let policy = policy("[[rule]]\nname = \"all\"\naction = \"decoy\"\n");
    let web = caller(33, "web.service", None);
    for (line, wanted) in [
        (ROLE, "decoy"),
        ("HEAD /latest/meta-data/iam/security-credentials/role", "decoy"),
        ("GET /latest/meta-data/iam/security-credentials/", "decoy"),
        ("GET /latest/meta-data/iam/security-credentials-extended/role", "refuse"),
        ("PUT /latest/meta-data/iam/security-credentials/role", "refuse"),
        ("GET /latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance", "refuse"),
        ("GET /latest/user-data", "refuse"),
        ("GET /latest/meta-data/iam/%2573ecurity-credentials/role", "refuse"),
    ] {
        assert_eq!(action(&policy, &web, line), wanted, "{line}");
    }
}

#[test]
fn a_rule_of_decoys_denies_whoever_is_given_none() {
    let policy = policy(
        "[[agent]]\nname = \"a\"\nunit = \"a.service\"\nuser = 33\nallow = \"credentials\"\n\
         [[rule]]\nname = \"a\"\nagent = \"a\"\naction = \"allow\"\n",
    );
    let decision = policy.decide(&caller(33, "a.service", None), &asked(&policy, ROLE));
    assert_eq!((decision.verdict(), decision.is_decoy()), (Verdict::Deny, false));
    let trial = compile(
        "mode = \"audit\"\ncloud = \"aws\"\n[[rule]]\nname = \"c\"\naction = \"decoy\"\nclass = \"credentials\"\n",
        CanaryFile::NotRead,
    );
    let decision = trial.policy.decide(&caller(33, "web.service", None), &asked(&trial.policy, ROLE));
    assert!(decision.is_decoy() && !decision.would_give_decoy(), "there is no canary");
    assert!(matches!(decision.act(&asked(&trial.policy, ROLE)), Action::Forward(_)));
}

#[test]
fn the_file_says_exactly_what_is_needed_and_an_error_no_value() {
    let canaries = Canaries::read(FILE).unwrap();
    assert!(canaries.has("aws-ec2") && !canaries.has("gcp") && !canaries.has("aws-ecs"));
    assert!(!format!("{canaries:?} {:?}", Canaried(FILE.to_owned())).contains("s3cret"));
    for (text, wanted) in [
        ("", "no table"),
        ("x", "is no TOML"),
        ("[aws]\nrole = \"s3cret", "line 2"),
        ("aws = \"s3cret\"", "`aws` is no table"),
        ("[hetzner]\n", "`hetzner` is no table, or no cloud with decoys"),
        ("[aws]\nrole = \"s3cret\"", "lacks `access-key-id`"),
        (&format!("{FILE}more = \"s3cret\""), "has no use for `more`"),
        (&FILE.replace("\"s3cret\"", "\"s3\\\"cret\""), "`secret-access-key` is no text"),
        (&FILE.replace("\"s3cret\"", "5"), "`secret-access-key` is no text"),
        (&FILE.replace("s3cret", ""), "`secret-access-key` is no text"),
        (&FILE.replace("s3cret", &"s".repeat(VALUE_BYTES + 1)), "`secret-access-key` is no text"),
    ] {
        let told = Canaries::read(text).unwrap_err().to_string();
        assert!(told.contains(wanted) && !told.contains("s3") && told.len() < 400, "{told}");
    }
    let both =
        Canaries::read(&format!("{FILE}{}", FILE.replace("[aws]", "[aws-ec2]").replace("\"t\"", "\"own\"")));
    assert_eq!(both.unwrap().0["aws-ec2"]["session-token"], "own", "a cloud's own table before its family's");
}

#[test]
fn the_file_is_found_before_the_policy_is_compiled() {
    assert_eq!(canary_file("[guard]\ndecoys = \"/etc/d.toml\"\nuser = 5\n").as_deref(), Some("/etc/d.toml"));
    for none in ["", "[guard]\nuser = 5", "[guard]\ndecoys = \"d.toml\"", "[guard]\ndecoys = 5", "["] {
        assert_eq!(canary_file(none), None, "{none}");
    }
}

#[test]
fn decoys_that_nobody_would_be_given_are_told() {
    let codes = |guard: &str, rules: &str, canaries: CanaryFile| {
        let text = format!("mode = \"enforce\"\n{guard}\n{rules}");
        let warnings = compile(&text, canaries).warnings;
        warnings.into_iter().map(|warning| warning.code).collect::<Vec<_>>()
    };
    let file = || CanaryFile::Text(Canaried(FILE.to_owned()));
    let guard = |cloud: &str| format!("cloud = \"{cloud}\"\n[guard]\ndecoys = \"/etc/d.toml\"");
    let rule = "[[rule]]\nname = \"r\"\naction = \"decoy\"\n";
    assert!(codes(&guard("aws"), rule, file()).is_empty());
    assert_eq!(codes("cloud = \"aws\"", rule, CanaryFile::NotRead), ["decoy-without-file"]);
    assert_eq!(codes(&guard("aws"), "", file()), ["decoys-unused"]);
    assert_eq!(codes(&guard("hetzner"), rule, file()), ["decoy-has-no-effect"]);
    let user_data = format!("{rule}class = \"user-data\"");
    assert_eq!(codes(&guard("aws"), &user_data, file()), ["decoy-has-no-effect"]);
    assert!(codes(&guard("gcp"), rule, file()).iter().all(|code| *code == "decoy-without-canary"));
    assert!(!codes(&guard("gcp"), rule, file()).is_empty());
    assert!(codes(&guard("all"), rule, file()).is_empty(), "an image runs on many clouds");
    let unread = CanaryFile::Unreadable("cannot read /etc/d.toml".to_owned());
    assert_eq!(codes(&guard("aws"), rule, unread), ["decoys-unread"]);
}

#[test]
fn a_rule_for_an_agent_gives_no_decoys_and_a_wrong_file_is_an_error() {
    let errors = |text: &str, canaries: &str| {
        let canaries = CanaryFile::Text(Canaried(canaries.to_owned()));
        let source = Source { name: "policy.toml".to_owned(), text: text.to_owned() };
        let context = Context { canaries, ..Context::default() };
        let errors = Policy::compile(std::slice::from_ref(&source), &context).unwrap_err();
        let told = crate::policy::diagnostic::render(&errors, &[source], false);
        assert!(!told.contains("s3cret"), "{told}");
        errors.into_iter().map(|error| error.code).collect::<Vec<_>>()
    };
    let agent = "mode = \"enforce\"\n[[agent]]\nname = \"a\"\nunit = \"a.service\"\nuser = 0\nallow = \"config\"\n\
                 [[rule]]\nname = \"r\"\nagent = \"a\"\naction = \"decoy\"\n";
    assert!(errors(agent, "").contains(&"decoy-for-agent"));
    let wrong = "mode = \"enforce\"\n[guard]\ndecoys = \"/etc/d.toml\"\n";
    assert!(errors(wrong, "[aws]\nsession-token = \"s3cret\"").contains(&"decoys"));
    assert!(errors("mode = \"enforce\"\n[guard]\ndecoys = \"d.toml\"\n", "").contains(&"decoys"));
}

/// The file that the page shows, and what it says of each cloud's.
#[test]
fn the_page_tells_what_the_file_holds() {
    let page = include_str!("../../../docs/policy.md");
    let shown = page.split("```toml decoys\n").nth(1).unwrap().split("```").next().unwrap();
    assert!(Canaries::read(shown).unwrap().has("aws-ec2"));
    let (_, section) = page.split_once("\n## Decoys\n").unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `[")?.split_once("]` | "));
    let mut told = Vec::new();
    for (name, texts) in rows {
        let texts: Vec<&str> = texts.split('`').skip(1).step_by(2).collect();
        let file = texts.iter().fold(format!("[{name}]\n"), |file, text| format!("{file}{text} = \"x\"\n"));
        let canaries = Canaries::read(&file).unwrap_or_else(|error| panic!("{error}"));
        told.extend(canaries.0.into_keys());
    }
    let clouds = Catalogue::builtin().clouds().iter().filter(|cloud| !cloud.decoys().is_empty());
    let mut known: Vec<&str> = clouds.map(|cloud| cloud.id()).collect();
    told.sort_unstable();
    known.sort_unstable();
    assert_eq!(told, known);
}
