//! How a permitted request is answered: by the metadata service, as it is or with a session token of the guard's own;
//! with the whole answer, or a part of it; or from memory.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;

use crate::caller::{Caller, Processes};
use crate::cloud::{Asked, Class, Classes, How, Session, Spoken, TokenHolder};
use crate::policy::{Form, PartialPermit, Permit, Policy, Refusal};
use crate::redact::Unredactable;
use crate::request::Method;

use super::connection::Connection;
use super::issued::Watch;
use super::memory::{self, Key, Recall, Turn};
use super::outgoing::Outgoing;
use super::partial::{Opened, Sealed, Unopened};
use super::record::Exchange;
use super::reply::{self, ReplyBody};
use super::tokens::{Learner, Owner as TokenOwner};
use super::upgrade;
use super::upstream::{self, UpstreamBody, UpstreamError};

/// What is known of a request when it is permitted.
pub struct Service<'a> {
    /// Where it came in.
    pub connection: &'a Rc<Connection>,
    /// By which policy it was judged.
    pub policy: &'a Policy,
    /// Who asks.
    pub caller: &'a Caller,
    /// What was asked.
    pub asked: &'a Rc<Asked>,
}

/// An answer to a permitted request.
enum Answer {
    /// As the service sends it.
    Streams(Response<UpstreamBody>),
    /// In hand.
    Whole(Response<Bytes>),
}

type Answered = Result<Response<ReplyBody>, UpstreamError>;

impl Service<'_> {
    /// Tells the caller no.
    pub async fn refuse(&self, refusal: &Refusal, exchange: Exchange) -> Answered {
        self.connection.identity.look_up_ends().await;
        let answer = refusal.answer(self.policy.catalogue(), self.asked);
        // What was doubted once about a connection's holders stays in doubt: its client had better make a new one.
        let closes = self.asked.head.is_none() || self.caller.processes != Processes::Skipped;
        Ok(reply::refuse(&answer, &refusal.line(), closes, exchange))
    }

    /// Gives the service's answer as it is.
    pub async fn answer(
        &self,
        permit: &Permit<'_>,
        request: Request<Incoming>,
        mut exchange: Exchange,
    ) -> Answered {
        let session = match permit.form() {
            Form::Upgraded(_, session) => Some(session),
            Form::Rebuilt(_) | Form::AsItCame(_) | Form::Tunnel => None,
        };
        let answer = match Outgoing::permitted(permit, request) {
            Ok(outgoing) => match self.key_in_memory(&outgoing, session) {
                Some(key) => self.recall(key, outgoing, &mut exchange).await,
                None => self.ask(outgoing, session, &mut exchange).await.map(Answer::Streams),
            },
            Err(error) => Err(error),
        };
        match answer {
            Err(error) => Err(exchange.upstream_failed(error)),
            Ok(_) if !self.may_still_have(&mut exchange).await => {
                Ok(self.take_back(reply::NO_LONGER, exchange))
            }
            Ok(Answer::Streams(response)) => {
                self.watch_for_a_key(&response, &mut exchange);
                Ok(exchange.stream(response))
            }
            Ok(Answer::Whole(response)) => Ok(exchange.deliver(response)),
        }
    }

    /// Lets the event tell which key the answer hands out.
    fn watch_for_a_key(&self, response: &Response<UpstreamBody>, exchange: &mut Exchange) {
        if response.status() == StatusCode::OK
            && let Some(watch) = self.watch(response.headers())
        {
            exchange.watch(watch);
        }
    }

    /// A watch over the answer with these headers, if it hands out a key and its event is to tell which.
    #[must_use]
    pub fn watch(&self, headers: &HeaderMap) -> Option<Watch> {
        self.asked.target.as_ref().ok().filter(|target| target.method() != &Method::Head)?;
        let issue = self.policy.catalogue().issue(self.asked)?;
        let watch = || Watch::new(Arc::clone(issue), Rc::clone(self.asked), headers);
        self.policy.settings().issued_key.then(watch)
    }

    /// What the request's answer is called in memory, if it may be given from there: a constant that nobody needs a grant
    /// beyond `config` for, asked for without a token or with a good one.
    fn key_in_memory(&self, outgoing: &Outgoing, session: Option<&Arc<Session>>) -> Option<Key> {
        let touched = &self.asked.touched;
        let is_constant = touched.constant && touched.classes == Classes::EMPTY.with(Class::Config);
        let is_plain = session.is_none() && self.asked.faults.is_empty() && outgoing.is_plain_read();
        if !self.policy.settings().cache_constants || !is_constant || !is_plain {
            return None;
        }
        let spoken = self.asked.spoken.as_ref();
        if !spoken.is_none_or(|spoken| self.would_be_taken(spoken)) {
            return None;
        }
        let token_header = spoken.map(|spoken| spoken.session.token_header.as_str());
        Some(Key::of(self.asked.endpoint, outgoing.request(), token_header))
    }

    /// Whether the service would take the request's token. The guard knows that only of tokens that were fetched by way
    /// of it and have not expired.
    fn would_be_taken(&self, spoken: &Spoken) -> bool {
        match spoken.how {
            How::Without => true,
            How::Shows(_) => self.asked.token().is_some_and(|token| {
                let tokens = &self.connection.worker.shared.tokens;
                let holder = tokens.look_up(token, None, &spoken.session, Instant::now()).holder;
                holder == TokenHolder::Foreign
            }),
            How::Asks | How::Malformed => false,
        }
    }

    /// Gives what is in memory, or asks for it on behalf of everybody who asks the same at this moment.
    async fn recall(
        &self,
        key: Key,
        outgoing: Outgoing,
        exchange: &mut Exchange,
    ) -> Result<Answer, UpstreamError> {
        let kept = match self.connection.worker.shared.memory.recall(key, Instant::now()) {
            Recall::Known(kept) => Some(kept),
            Recall::Coming(answer) => memory::wait(answer).await,
            Recall::Ask(turn) => return self.ask_for_all(turn, outgoing, exchange).await,
        };
        match kept {
            Some(kept) => {
                exchange.remembered();
                Ok(Answer::Whole(kept.response()))
            }
            None => self.ask(outgoing, None, exchange).await.map(Answer::Streams),
        }
    }

    async fn ask_for_all(
        &self,
        turn: Turn,
        outgoing: Outgoing,
        exchange: &mut Exchange,
    ) -> Result<Answer, UpstreamError> {
        let (parts, body) = self.ask(outgoing, None, exchange).await?.into_parts();
        if !Turn::keeps(&parts, body.size_hint().exact()) {
            return Ok(Answer::Streams(Response::from_parts(parts, body)));
        }
        let whole = body.read().await.map_err(UpstreamError::Exchange)?;
        turn.keep(parts.headers.clone(), whole.clone(), Instant::now());
        Ok(Answer::Whole(Response::from_parts(parts, whole)))
    }

    /// Gives the service's answer without what the caller lacks, or nothing of it.
    pub async fn answer_in_part(
        &self,
        permit: &PartialPermit<'_>,
        request: Request<Incoming>,
        mut exchange: Exchange,
    ) -> Answered {
        let Some(withholding) = self.policy.catalogue().withholding(self.asked, permit.withheld()) else {
            return Ok(self.take_back(&exchange.not_redacted(Unredactable::Unknown), exchange));
        };
        let opened = match Outgoing::for_part(permit, &withholding, request) {
            Ok(outgoing) => match self.ask(outgoing, permit.session(), &mut exchange).await {
                Ok(response) => {
                    Box::pin(Sealed::new(response, permit).open(&self.connection.worker, &withholding)).await
                }
                Err(error) => Err(Unopened::Broken(error)),
            },
            Err(error) => Err(Unopened::Broken(error)),
        };
        match opened {
            Err(Unopened::Broken(error)) => Err(exchange.upstream_failed(error)),
            Err(Unopened::Unredactable(why)) => Ok(self.take_back(&exchange.not_redacted(why), exchange)),
            Ok(_) if !self.may_still_have(&mut exchange).await => {
                Ok(self.take_back(reply::NO_LONGER, exchange))
            }
            Ok(Opened::Part(response)) => Ok(exchange.deliver(response)),
            Ok(Opened::Aside(response)) => Ok(exchange.stream(response)),
        }
    }

    /// Asks the service, and remembers what its answer says about session tokens.
    async fn ask(
        &self,
        outgoing: Outgoing,
        session: Option<&Arc<Session>>,
        exchange: &mut Exchange,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let connection = self.connection;
        let (worker, route, owner) = (&connection.worker, connection.route, connection.owner());
        let mut response = match session {
            Some(session) => {
                let forwarding = Box::pin(upgrade::forward(worker, route, owner, session, outgoing));
                let (response, upgraded) = forwarding.await?;
                exchange.upgraded(upgraded);
                response
            }
            None => upstream::send(worker, route, owner, outgoing).await?,
        };
        exchange.asked_over(response.body().tls());
        remember_tokens(connection, self.asked, &mut response);
        Ok(response)
    }

    /// Whether the answer may be released. In audit mode it may, whoever the caller is by now; the event tells.
    async fn may_still_have(&self, exchange: &mut Exchange) -> bool {
        let Some(now) = self.connection.changed_meanwhile(self.policy, self.caller, self.asked).await else {
            return true;
        };
        exchange.judged_again(&now);
        now.would_deny()
    }

    /// Closes the connection, too: it may no longer be who it was.
    fn take_back(&self, reason: &str, exchange: Exchange) -> Response<ReplyBody> {
        reply::refuse(&self.policy.catalogue().refusal(self.asked), reason, true, exchange)
    }
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
