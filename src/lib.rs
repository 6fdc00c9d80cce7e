//! imds-guard stands between a virtual machine's processes and its instance metadata service.
//!
//! One request is one sentence, and each noun is one type in one room:
//!
//! > A [`caller::Caller`] asks an [`cloud::Endpoint`] for a [`request::Target`]; the [`policy::Policy`] gives a
//! > [`policy::Decision`]; the [`policy::Mode`] makes it an action; an `audit::Event` tells it.
//!
//! ```text
//! client -- nft redirect --> listener - Flow{client, original destination} --> stamps - Caller <- processes (keeper)
//!                               |                                                |
//!                     gate - raw head -> hyper http1 -> Target ------------------+
//!                                                                                v
//!                                          Policy::decide - Decision -> Mode - Permit | Refusal
//!                                                                                |
//!                      upstream::forward(Permit, request)  <---------------------+---->  reply::refuse(Refusal)
//!                                 |                                              v
//!                      streamed response                              Event -> sink
//! ```
//!
//! The rooms, from the pure core outwards:
//!
//! * [`request`]: bytes of a head to one normal form, or the reason why there is none. No I/O.
//! * [`cloud`]: which addresses, paths and refusal answers each cloud has. Data, no I/O after loading.
//! * [`redact`]: takes out of an answer what its caller lacks. No I/O.
//! * [`policy`]: who may touch what. No I/O, no clock.
//! * [`cases`]: callers and requests as somebody describes them, for tests of a policy. No I/O.
//! * [`caller`]: what the kernel and procfs say about the process behind a connection.
//! * [`audit`]: the record, one JSON line for each request.
//! * [`redirect`]: the nftables table that leads connections here.
//! * [`proxy`]: the unprivileged half. It reads what callers write.
//! * [`keeper`]: the privileged half. It never does.
//! * [`observe`]: the guard's own state: a snapshot, metrics.
//! * [`verify`]: looks whether a machine is guarded, and what is wrong with an image.
//! * [`report`]: reads audit logs back: tables, a page, a proposed policy.
//! * [`cli`] and [`cmd`]: the command line.

pub mod audit;
pub mod caller;
pub mod cases;
pub mod cli;
pub mod cloud;
pub mod cmd;
mod hex;
pub mod keeper;
pub mod observe;
pub mod policy;
pub mod proxy;
pub mod redact;
pub mod redirect;
pub mod report;
pub mod request;
pub mod verify;
