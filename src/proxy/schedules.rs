//! What the workers share, under random schedules. Each step of these is one critical section, so that every order in
//! which threads can take turns is an order of steps: proptest chooses them. The queue of events has a thread of its own;
//! it runs with real ones. The session tokens' table has its own tests against a model ([`super::tokens`]).

use std::collections::{HashMap, HashSet};
use std::io::Read as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request};
use proptest::prelude::*;

use super::limits::{Census, Client, Counted};
use super::memory::{Key, Memory, Recall, Turn};
use super::pace::Pace;
use crate::audit::event::{Action, Event};
use crate::audit::{Destination, Sink};
use crate::cloud::Endpoint;
use crate::policy::Limits;

fn client(number: u8) -> Client {
    match number % 6 {
        0 => Client::User(Some(0)),
        1 => Client::User(None),
        2 => Client::Container(IpAddr::from([172, 17, 0, 2])),
        3 => Client::Container(IpAddr::from([172, 17, 0, 3])),
        uid => Client::User(Some(uid.into())),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// No order of arrivals and departures gets past a limit, and nobody is counted who has left.
    #[test]
    fn no_order_gets_past_a_limit_of_connections(steps in prop::collection::vec((any::<u8>(), any::<bool>()), 0..200)) {
        let limits = Limits { connections: 12, connections_per_uid: 5, ..Limits::default() };
        let census = Arc::new(Census::default());
        let mut present: Vec<(Client, Counted)> = Vec::new();
        for (number, arrives) in steps {
            if arrives {
                let client = client(number);
                let of = |wanted: fn(&Client) -> bool| present.iter().filter(|(client, _)| wanted(client)).count();
                let own = present.iter().filter(|(other, _)| *other == client).count();
                let is_container = matches!(client, Client::Container(_));
                let is_root = client == Client::User(Some(0));
                let fits = own < 5
                    && (is_root || present.len() < 12)
                    && (!is_container || of(|client| matches!(client, Client::Container(_))) < 6);
                let admitted = census.admit(client, &limits);
                prop_assert_eq!(admitted.is_ok(), fits);
                present.extend(admitted.ok().map(|counted| (client, counted)));
            } else if !present.is_empty() {
                present.swap_remove(usize::from(number) % present.len());
            }
            prop_assert_eq!(census.total() as usize, present.len());
        }
        drop(present);
        prop_assert_eq!(census.total(), 0);
        let all: Vec<_> = (0..5).map(|_| census.admit(client(4), &limits)).collect();
        prop_assert!(all.iter().all(Result::is_ok), "what left has left room");
    }

    /// However asks, answers, failures and reloads follow each other: one asks at a time, and what is given was an answer
    /// to the same question, of after the last reload.
    #[test]
    fn no_order_gives_a_remembered_answer_to_another_question(
        steps in prop::collection::vec((0..4_u8, 0..3_u8), 0..200)
    ) {
        let (memory, now) = (Arc::new(Memory::default()), Instant::now());
        let key = |number: u8| {
            let request = Request::get(format!("/latest/meta-data/{number}")).body(()).unwrap();
            Key::of(Endpoint::new(Endpoint::SHARED, 80), &request, None)
        };
        let mut turns: HashMap<u8, Vec<(Turn, u32)>> = HashMap::new();
        let mut asking: HashSet<u8> = HashSet::new();
        let mut era = 0_u32;
        for (what, number) in steps {
            match what {
                0 | 1 => match memory.recall(key(number), now) {
                    Recall::Known(kept) => {
                        let body = kept.response().into_body();
                        prop_assert_eq!(body, Bytes::from(format!("{number} of {era}")));
                    }
                    Recall::Coming(_) => prop_assert!(asking.contains(&number), "nobody is asking"),
                    Recall::Ask(turn) => {
                        prop_assert!(asking.insert(number), "two ask the same at a time");
                        turns.entry(number).or_default().push((turn, era));
                    }
                },
                2 => {
                    if let Some((turn, of)) = turns.get_mut(&number).and_then(Vec::pop) {
                        if of == era {
                            asking.remove(&number);
                        }
                        if era.is_multiple_of(2) {
                            turn.keep(HeaderMap::new(), Bytes::from(format!("{number} of {of}")), now);
                        }
                    }
                }
                _ => {
                    memory.clear();
                    asking.clear();
                    era += 1;
                }
            }
        }
    }

    /// Beside others nobody is served faster than the pace, but for a burst; and who keeps to it never waits.
    #[test]
    fn no_order_of_asks_gets_past_the_pace(steps in prop::collection::vec((3..6_u8, 0..5_u64), 1..400)) {
        let (pace, start) = (Pace::default(), Instant::now());
        let mut now = start;
        let mut served: HashMap<Client, u64> = HashMap::new();
        pace.wait(Client::User(Some(77)), 100, now);
        for (number, passes) in steps {
            now += Duration::from_millis(passes);
            // Somebody else is always there.
            pace.wait(Client::User(Some(77)), 1_000_000, now);
            let wait = pace.wait(client(number), 100, now);
            let count = served.entry(client(number)).or_default();
            *count += 1;
            let due = now + wait;
            let earned = due.duration_since(start) + Duration::from_millis(250) + Duration::from_millis(10);
            prop_assert!(*count * 10 <= u64::try_from(earned.as_millis()).unwrap(), "{} served by {:?}", count, due - start);
        }
    }
}

/// Each event that found a place is written once, each that did not is counted, and at the end all places are free:
/// with producers that reserve, send and give up in any order, and a log that is exchanged meanwhile.
#[test]
fn the_queue_of_events_loses_and_doubles_nothing() {
    let files: Vec<tempfile::NamedTempFile> =
        (0..9).map(|_| tempfile::NamedTempFile::new().unwrap()).collect();
    let (sink, writer) = Sink::start(Destination::Stream(files[0].reopen().unwrap())).unwrap();
    let sent: usize = std::thread::scope(|scope| {
        let producers: Vec<_> = (0..4_u64)
            .map(|producer| {
                let sink = sink.clone();
                scope.spawn(move || {
                    let (mut sent, mut kept, mut seed) = (0, Vec::new(), producer + 1);
                    for number in 0..20_000 {
                        // xorshift: which of the steps comes next.
                        seed ^= seed << 13;
                        seed ^= seed >> 7;
                        seed ^= seed << 17;
                        if let Some(slot) = sink.reserve() {
                            kept.push(slot);
                        }
                        if seed.is_multiple_of(3) {
                            kept.pop();
                        }
                        if seed.is_multiple_of(2)
                            && let Some(slot) = kept.pop()
                        {
                            slot.send(&Event::now(format!("{producer}-{number}"), Action::Request));
                            sent += 1;
                        }
                        if seed.is_multiple_of(64) {
                            kept.clear();
                        }
                    }
                    sent
                })
            })
            .collect();
        for file in &files[1..] {
            std::thread::sleep(Duration::from_millis(10));
            sink.redirect(Destination::Stream(file.reopen().unwrap()));
        }
        producers.into_iter().map(|producer| producer.join().unwrap()).sum()
    });
    sink.close();
    writer.join().unwrap();
    let mut ids = Vec::new();
    for mut file in files {
        let mut text = String::new();
        file.as_file_mut().read_to_string(&mut text).unwrap();
        ids.extend(
            text.lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["event.id"].to_string()),
        );
    }
    ids.retain(|id| !id.contains("lost"));
    assert_eq!(ids.len(), sent, "written and sent");
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), sent, "none twice");
    let places =
        std::iter::from_fn(|| sink.reserve()).take(crate::audit::sink::QUEUE_EVENTS).collect::<Vec<_>>();
    assert_eq!(places.len(), crate::audit::sink::QUEUE_EVENTS, "all places are free again");
}
