//! The sentence: a caller asks an endpoint for a target; the policy gives a decision; the mode makes it an action;
//! an event tells it.

use std::rc::Rc;

use http::{Request, Response};
use hyper::body::Incoming;

use crate::policy::Action;

use super::connection::{Connection, policy_now, strictness};
use super::decoy;
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
        Action::Refuse(refusal) => service.refuse(&refusal, exchange).await,
        Action::Decoy(bait, refusal) => match decoy::give(&service, &bait, exchange) {
            Ok(decoy) => Ok(decoy),
            Err(exchange) => service.refuse(&refusal, exchange).await,
        },
        Action::Forward(permit) => service.answer(&permit, request, exchange).await,
        Action::Withhold(permit) => service.answer_in_part(&permit, request, exchange).await,
    }
}
