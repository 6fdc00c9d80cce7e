//! The sentence: a caller asks an endpoint for a target; the policy gives a decision; the mode makes it an action;
//! an event tells it.

use std::rc::Rc;

use http::{Request, Response};
use hyper::body::Incoming;

use crate::caller::Processes;
use crate::policy::Action;

use super::connection::{Connection, policy_now, strictness};
use super::record::Exchange;
use super::reply::{self, ReplyBody};
use super::service::Service;
use super::upstream::UpstreamError;

/// Answers one request. Every request is decided anew, by the policy that is in force at that moment.
pub async fn answer(
    connection: Rc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, UpstreamError> {
    let policy = policy_now(&connection.worker);
    connection.wire.set_strictness(strictness(&policy));
    let mut exchange = Exchange::begin(&connection, &policy);
    let asked = Rc::new(connection.asked(&policy));
    let caller = connection.caller(&policy, &asked).await;
    let decision = policy.decide(&caller, &asked);
    exchange.judged(&asked, &decision);
    if exchange.must_not_go_unrecorded(&asked, &decision) {
        return Ok(reply::refuse(&policy.catalogue().refusal(&asked), reply::NO_RECORD, false, exchange));
    }
    let service = Service { connection: &connection, policy: &policy, caller: &caller, asked: &asked };
    match decision.act(&asked) {
        Action::Refuse(refusal) => {
            connection.identity.look_up_ends().await;
            let answer = refusal.answer(policy.catalogue(), &asked);
            // What was doubted once about a connection's holders stays in doubt: its client had better make a new one.
            let closes = asked.head.is_none() || caller.processes != Processes::Skipped;
            Ok(reply::refuse(&answer, &refusal.line(), closes, exchange))
        }
        Action::Forward(permit) => service.answer(&permit, request, exchange).await,
        Action::Withhold(permit) => service.answer_in_part(&permit, request, exchange).await,
    }
}
