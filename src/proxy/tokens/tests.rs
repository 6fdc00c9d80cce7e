//! The table against a slow and obvious model, under random schedules; and the learner.

use proptest::prelude::*;

use super::*;
use crate::caller::{Cgroup, CgroupPath};
use crate::cloud::Catalogue;

const CAPACITY: usize = 5;

fn aws() -> Arc<Session> {
    Arc::clone(Catalogue::builtin().cloud("aws-ec2").unwrap().session().unwrap())
}

fn owner(uid: u32, cgroup: &str, id: u64) -> Owner {
    let path = CgroupPath::new(cgroup).unwrap();
    Owner::of(&Stamps { uid, cgroup: Cgroup { id, path }, inode: 1, cookie: 1 })
}

fn owners() -> [Owner; 5] {
    [
        owner(0, "/system.slice/a.service", 1),
        owner(0, "/system.slice/b.service", 2),
        owner(1, "/system.slice/a.service", 1),
        owner(1, "/user.slice/user-1.slice/session-1.scope", 3),
        owner(2, "/user.slice/user-1.slice/session-1.scope", 3),
    ]
}

#[derive(Debug, Clone)]
enum Op {
    Learn { token: u8, owner: usize, seconds: u64 },
    Show { token: u8, owner: Option<usize> },
    Adopt { token: u8, owner: usize },
    Pass { seconds: u64 },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let seconds = prop::sample::select(vec![1, 60, 3600, 21_600]);
    let one = prop_oneof![
        3 => (0..8_u8, 0..5_usize, seconds.clone())
            .prop_map(|(token, owner, seconds)| Op::Learn { token, owner, seconds }),
        4 => (0..8_u8, prop::option::of(0..5_usize)).prop_map(|(token, owner)| Op::Show { token, owner }),
        2 => (0..8_u8, 0..5_usize).prop_map(|(token, owner)| Op::Adopt { token, owner }),
        1 => seconds.prop_map(|seconds| Op::Pass { seconds }),
    ];
    prop::collection::vec(one, 0..80)
}

/// Every token that is known, in the order in which it was learned.
#[derive(Default)]
struct Model(Vec<(u8, usize, u64)>);

impl Model {
    fn learn(&mut self, token: u8, owner: usize, expires: u64) {
        self.0.retain(|known| known.0 != token);
        if self.0.len() >= CAPACITY {
            let uid = |owner: usize| owners()[owner].uid;
            let count = |of: u32| self.0.iter().filter(|known| uid(known.1) == of).count();
            let richest = self.0.iter().map(|known| uid(known.1)).max_by_key(|of| (count(*of), *of)).unwrap();
            let oldest = self.0.iter().position(|known| uid(known.1) == richest).unwrap();
            self.0.remove(oldest);
        }
        self.0.push((token, owner, expires));
    }

    fn show(&self, token: u8, owner: Option<usize>, now: u64) -> TokenHolder {
        match self.0.iter().find(|known| known.0 == token && now < known.2) {
            Some(known) if Some(known.1) == owner => TokenHolder::Own,
            Some(_) => TokenHolder::Foreign,
            None if now < 21_600 => TokenHolder::Older,
            None => TokenHolder::Unknown,
        }
    }
}

proptest! {
    /// Whatever is fetched, shown and forgotten in whatever order: a token is its fetcher's and nobody else's.
    #[test]
    fn a_token_is_its_fetcher_s_under_any_schedule(ops in ops()) {
        let (started, session, owners) = (Instant::now(), aws(), owners());
        let tokens = Tokens::new([7; 32], started, CAPACITY);
        let (mut model, mut now) = (Model::default(), 0);
        for op in ops {
            let moment = started + Duration::from_secs(now);
            match op {
                Op::Learn { token, owner, seconds } => {
                    tokens.learn(&[token], owners[owner].clone(), Duration::from_secs(seconds), moment);
                    model.learn(token, owner, now + seconds);
                }
                Op::Show { token, owner } => {
                    let caller = owner.map(|at| &owners[at]);
                    let found = tokens.look_up(&[token], caller, &session, moment);
                    prop_assert_eq!(found.holder, model.show(token, owner, now));
                    prop_assert_eq!(found.fetched_by.is_some(), found.holder == TokenHolder::Foreign);
                }
                Op::Adopt { token, owner } => {
                    tokens.adopt(&[token], owners[owner].clone(), &session, moment);
                    if model.show(token, None, now) == TokenHolder::Older {
                        model.learn(token, owner, 21_600);
                    }
                }
                Op::Pass { seconds } => now += seconds,
            }
            prop_assert!(tokens.len() <= CAPACITY);
            prop_assert_eq!(tokens.len(), model.0.len());
        }
    }

    #[test]
    fn no_answer_and_no_split_of_it_confuses_the_learner(
        body in prop::collection::vec(any::<u8>(), 0..64),
        cut in 0..64_usize,
    ) {
        let tokens = Arc::new(Tokens::new([7; 32], Instant::now(), CAPACITY));
        let me = owners()[0].clone();
        let mut learner = Learner::new(Arc::clone(&tokens), aws(), me.clone(), Some(60));
        let (before, after) = body.split_at(cut.min(body.len()));
        learner.see(before);
        learner.see(after);
        learner.finish();
        if let Some(token) = aws().token_in(&body) {
            let found = tokens.look_up(token.as_bytes(), Some(&me), &aws(), Instant::now());
            prop_assert_eq!(found.holder, TokenHolder::Own);
        } else {
            prop_assert!(tokens.is_empty());
        }
    }
}

#[test]
fn one_user_s_flood_of_tokens_pushes_out_nobody_else_s() {
    let (now, session, owners) = (Instant::now(), aws(), owners());
    let tokens = Tokens::new([7; 32], now, 100);
    tokens.learn(b"agent", owners[0].clone(), Duration::from_hours(6), now);
    for number in 0..10_000_u32 {
        tokens.learn(&number.to_be_bytes(), owners[3].clone(), Duration::from_hours(6), now);
    }
    assert_eq!(tokens.len(), 100);
    assert_eq!(tokens.look_up(b"agent", Some(&owners[0]), &session, now).holder, TokenHolder::Own);
    let newest = tokens.look_up(&9_999_u32.to_be_bytes(), Some(&owners[3]), &session, now);
    assert_eq!(newest.holder, TokenHolder::Own);
}

#[test]
fn units_that_start_again_keep_their_tokens_and_sessions_do_not_share_theirs() {
    let restarted = owner(0, "/system.slice/a.service", 77);
    assert_eq!(restarted, owner(0, "/system.slice/a.service/worker", 78));
    assert_ne!(restarted, owner(0, "/system.slice/b.service", 77));
    assert_ne!(restarted, owner(5, "/system.slice/a.service", 77));
    let session = "/user.slice/user-1.slice/session-1.scope";
    assert_ne!(owner(1, session, 3), owner(1, session, 4));
    assert_ne!(owner(0, "/system.slice/docker-1.scope", 3), owner(0, "/system.slice/docker-1.scope", 4));
}

#[test]
fn an_answer_that_is_too_long_teaches_nothing() {
    let tokens = Arc::new(Tokens::new([7; 32], Instant::now(), CAPACITY));
    let mut learner = Learner::new(Arc::clone(&tokens), aws(), owners()[0].clone(), None);
    for _ in 0..1000 {
        learner.see(&[b'a'; 1000]);
    }
    assert!(learner.seen.len() <= ANSWER_BYTES);
    learner.finish();
    assert!(tokens.is_empty());
}

#[test]
fn a_lifetime_stays_within_the_service_s_bounds() {
    let tokens = Arc::new(Tokens::new([7; 32], Instant::now(), CAPACITY));
    for (asked, seconds) in [(None, 21_600), (Some(0), 1), (Some(60), 60), (Some(u32::MAX), 21_600)] {
        let learner = Learner::new(Arc::clone(&tokens), aws(), owners()[0].clone(), asked);
        assert_eq!(learner.lifetime.as_secs(), seconds, "{asked:?}");
    }
}

#[test]
fn neither_the_key_nor_a_token_is_shown() {
    let tokens = Tokens::new([0xab; 32], Instant::now(), CAPACITY);
    tokens.learn(b"the-token", owners()[0].clone(), Duration::from_mins(1), Instant::now());
    let shown = format!("{tokens:?}");
    assert_eq!(shown, "Tokens { known: 1, .. }");
    // Two runs make two digests of one token.
    assert_ne!(tokens.fingerprint(b"x"), Tokens::new([0xac; 32], Instant::now(), 1).fingerprint(b"x"));
}
