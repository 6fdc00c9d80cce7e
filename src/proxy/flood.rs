//! What is turned away because of a limit, told in aggregates: a flood must not fill the log with an event for each of
//! its connections, and each of them is counted in exactly one.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::caller::stamps::Flow;

use super::limits::Exceeded;

/// How many waves at a time are told apart. Beyond, whose they are is not told.
const WAVES: usize = 1024;

/// The waves that one worker sees.
#[derive(Debug, Default)]
pub struct Floods(RefCell<HashMap<Kind, Wave>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    exceeded: Exceeded,
    uid: Option<u32>,
}

#[derive(Debug)]
struct Wave {
    untold: u64,
    /// The last connection of it.
    flow: Flow,
}

/// What one event tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Surge {
    /// Which limit was met.
    pub exceeded: Exceeded,
    /// Whose connections they are; `None`: not attributed, or of too many users to tell.
    pub uid: Option<u32>,
    /// One of them.
    pub flow: Flow,
    /// How many.
    pub count: u64,
}

impl Floods {
    /// Counts one more. The first of a wave is to be told at once, the others by [`Floods::due`].
    pub fn count(&self, exceeded: Exceeded, uid: Option<u32>, flow: Flow) -> Option<Surge> {
        let mut waves = self.0.borrow_mut();
        let mut kind = Kind { exceeded, uid };
        if waves.len() >= WAVES && !waves.contains_key(&kind) {
            kind.uid = None;
        }
        if let Some(wave) = waves.get_mut(&kind) {
            (wave.untold, wave.flow) = (wave.untold + 1, flow);
            return None;
        }
        waves.insert(kind, Wave { untold: 0, flow });
        Some(Surge { exceeded, uid: kind.uid, flow, count: 1 })
    }

    /// What has come since the last call; once a second. Waves in which nothing came are over.
    pub fn due(&self) -> Vec<Surge> {
        let mut waves = self.0.borrow_mut();
        waves.retain(|_, wave| wave.untold > 0);
        let surge = |(kind, wave): (&Kind, &mut Wave)| Surge {
            exceeded: kind.exceeded,
            uid: kind.uid,
            flow: wave.flow,
            count: std::mem::take(&mut wave.untold),
        };
        waves.iter_mut().map(surge).collect()
    }

    /// Whether there is nothing to tell, nor a wave that could go on.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16) -> Flow {
        Flow::new(format!("10.0.0.2:{port}").parse().unwrap(), "169.254.169.254:80".parse().unwrap())
    }

    #[test]
    fn each_refused_connection_is_counted_in_exactly_one_event() {
        let floods = Floods::default();
        let mut told: Vec<Surge> = Vec::new();
        for second in 0..3 {
            let came = (0..100).map(|port| floods.count(Exceeded::PerUid, Some(33), flow(port)));
            told.extend(came.flatten());
            told.extend(floods.count(Exceeded::Total, Some(34), flow(second)));
            told.extend(floods.due());
        }
        let of = |uid| told.iter().filter(move |surge| surge.uid == Some(uid));
        assert_eq!(of(33).map(|surge| surge.count).sum::<u64>(), 300);
        assert_eq!(of(34).map(|surge| surge.count).sum::<u64>(), 3);
        assert!(told.len() < 12, "{told:?}");
        assert!(floods.due().is_empty());
        assert!(floods.is_empty(), "a wave in which nothing comes is over");
    }

    #[test]
    fn a_flood_of_users_does_not_fill_the_memory() {
        let floods = Floods::default();
        let told: u64 = (0..5000)
            .filter_map(|uid| floods.count(Exceeded::PerUid, Some(uid), flow(1)))
            .map(|surge| surge.count)
            .sum();
        assert!(floods.0.borrow().len() <= WAVES + 1);
        assert_eq!(told + floods.due().iter().map(|surge| surge.count).sum::<u64>(), 5000);
    }
}
