//! How a permitted request is answered: by the metadata service, as it is or with a session token of the guard's own.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::cloud::{Asked, How, Spoken, TokenHolder};
use crate::policy::{Form, Permit};

use super::connection::Connection;
use super::record::Exchange;
use super::tokens::{Learner, Owner as TokenOwner};
use super::upgrade;
use super::upstream::{self, Outgoing, UpstreamBody, UpstreamError};

/// Asks the service what the permit allows, and remembers what its answer says about session tokens.
pub async fn ask(
    connection: &Rc<Connection>,
    permit: &Permit<'_>,
    asked: &Asked,
    request: Request<Incoming>,
    exchange: &mut Exchange,
) -> Result<Response<UpstreamBody>, UpstreamError> {
    let (worker, route, owner) = (&connection.worker, connection.route, connection.owner());
    let outgoing = Outgoing::permitted(permit, request)?;
    let mut response = match permit.form() {
        Form::Upgraded(_, session) => {
            let (response, upgraded) = upgrade::forward(worker, route, owner, session, outgoing).await?;
            exchange.upgraded(upgraded);
            response
        }
        Form::Rebuilt(_) | Form::AsItCame(_) | Form::Tunnel => {
            upstream::send(worker, route, owner, outgoing).await?
        }
    };
    remember_tokens(connection, asked, &mut response);
    Ok(response)
}

/// Whoever fetches a token owns it; so does the first from whom the service takes one that is older than the guard.
fn remember_tokens(connection: &Connection, asked: &Asked, response: &mut Response<UpstreamBody>) {
    let (Some(spoken), Some(stamps)) = (&asked.spoken, connection.identity.stamps()) else { return };
    let tokens = &connection.worker.shared.tokens;
    match spoken.how {
        How::Asks if response.status().is_success() => {
            let owner = TokenOwner::of(stamps);
            let seconds = asked_seconds(asked, spoken);
            let learner = Learner::new(Arc::clone(tokens), Arc::clone(&spoken.session), owner, seconds);
            response.body_mut().watch(learner);
        }
        How::Shows(TokenHolder::Older) if response.status() != StatusCode::UNAUTHORIZED => {
            if let Some(token) = asked.token() {
                tokens.adopt(token, TokenOwner::of(stamps), &spoken.session, Instant::now());
            }
        }
        How::Asks | How::Shows(_) | How::Without | How::Malformed => {}
    }
}

fn asked_seconds(asked: &Asked, spoken: &Spoken) -> Option<u32> {
    let value = asked.head.as_ref()?.values(spoken.session.ttl_header.as_ref()?).next()?;
    std::str::from_utf8(value).ok()?.parse().ok()
}
