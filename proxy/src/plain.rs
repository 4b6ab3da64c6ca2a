//! Every request that is no WebSocket, by Pingora's `HttpProxy`. Its head was read, judged and
//! rewritten by us before (`service.rs`); here it only finds its server.

mod carrier;
mod http1;
mod session;

pub use carrier::Carrier;
pub use http1::{After, Http1, Wishes};
pub use session::Exchange;

use crate::access::{Access, End};
use crate::forward;
use crate::front::arrive::Secured;
use crate::metrics::Metrics;
use crate::route::Route;
use crate::route::affinity::Issue;
use crate::upstream::attempt::{Attempt, no_sockets};
use crate::upstream::bound::{self, Bound, Tainted};
use crate::upstream::l4::{self, Way};
use crate::upstream::watched::Told;
use crate::upstream::{Exhausted, Plan};
use async_trait::async_trait;
use bytes::Bytes;
use http::header::{CONNECTION, HOST, SET_COOKIE, TE};
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use std::cell::Cell;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use weir_conf::proxy::HostHeader;

/// A kept connection that is not for this client.
const NOT_THIS_ONE: &str = "of another client";

pub struct Plain {
    pub metrics: Metrics,
    /// Kept connections that may not serve another client.
    pub tainted: Tainted,
}

/// An admitted request on its way to its upstream; what `service.rs` knows of it.
pub struct Passage {
    pub plan: Plan,
    pub access: Access,
    pub route: Arc<Route>,
    pub issue: Option<Issue>,
    pub tls: Option<Arc<Secured>>,
    /// The connections to servers that are the client's own, and who it is.
    pub own: (Bound, IpAddr),
    /// What a connection of ours to the server tells.
    pub told: Arc<Told>,
}

tokio::task_local! {
    /// Pingora makes its context by a call without arguments, in the task that asked it to go on;
    /// so what belongs to the request waits here for that call.
    static PASSAGE: Cell<Option<Passage>>;
}

/// Runs Pingora's path for one request.
pub async fn with<F: Future>(passage: Passage, path: F) -> F::Output {
    PASSAGE.scope(Cell::new(Some(passage)), path).await
}

#[derive(Default)]
pub struct Ctx {
    passage: Option<Passage>,
    /// Holds the request's place at its server, too.
    attempt: Option<Attempt>,
    /// The connection serves this request alone.
    single: bool,
    exhausted: Option<Exhausted>,
    /// Bytes of the request's body so far.
    sent: u64,
    /// The head was written to the server, so it may have acted.
    begun: bool,
    /// The server has begun to answer.
    answered: bool,
    /// It was sent a second time: a kept connection had closed at that moment.
    resent: bool,
    /// Its connection to the server, by the descriptor; and whether it is the client's own.
    connection: (RawFd, bool),
}

#[async_trait]
impl ProxyHttp for Plain {
    type CTX = Ctx;

    fn new_ctx(&self) -> Ctx {
        let passage = PASSAGE.try_with(Cell::take).ok().flatten();
        Ctx { passage, ..Ctx::default() }
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut Ctx) -> Result<Box<HttpPeer>> {
        let Some(Passage { plan, access, route, own: (own, client), told, .. }) = &mut ctx.passage else {
            return Err(Error::new_in(ErrorType::HTTPStatus(500)));
        };
        let group = match bound::is_seen(&session.req_header().headers) {
            true => Some(own.begin(*client)),
            false => own.group(*client),
        };
        if let Some(before) = ctx.attempt.take().filter(|attempt| !attempt.has_failed()) {
            plan.again(before.name());
        }
        match plan.next().await {
            Ok(attempt) => {
                let way = Way {
                    connect: route.deadlines.connect,
                    fresh: ctx.resent,
                    own: group.map(|group| (&*own, group)),
                    told,
                };
                let (mut peer, single) = l4::peer(&attempt, &way)?;
                peer.options.read_timeout = Some(route.read_timeout);
                peer.options.write_timeout = Some(route.write_timeout);
                session.set_write_timeout(Some(route.write_timeout));
                (access.server, access.moved) = (Some(attempt.name().clone()), attempt.moved());
                (ctx.attempt, ctx.single) = (Some(attempt), single);
                (ctx.sent, ctx.begun, ctx.connection.1) = (0, false, group.is_some());
                Ok(peer)
            }
            Err(exhausted) => {
                ctx.exhausted = Some(exhausted);
                Err(Error::new_in(ErrorType::HTTPStatus(503)))
            }
        }
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        ctx: &mut Ctx,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let cause = match error.etype() {
            ErrorType::ConnectTimedout => "timeout",
            ErrorType::ConnectRefused => "refused",
            ErrorType::TLSHandshakeFailure => "tls",
            _ => "error",
        };
        let Some(attempt) = &mut ctx.attempt else { return error };
        if l4::is_our_lack(&error) {
            attempt.give_up();
            no_sockets(&error);
            ctx.exhausted = Some(Exhausted { retry_after: Duration::from_secs(1), cause: "no_sockets" });
            return Error::new_in(ErrorType::HTTPStatus(503));
        }
        attempt.fail(Instant::now(), cause);
        error.set_retry(true);
        error
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        reused: bool,
        _: &HttpPeer,
        fd: RawFd,
        _: Option<&pingora_core::protocols::Digest>,
        ctx: &mut Ctx,
    ) -> Result<()> {
        ctx.connection.0 = fd;
        if self.tainted.take(fd) && reused {
            return Err(Error::new_up(ErrorType::new(NOT_THIS_ONE)));
        }
        if let Some(attempt) = &mut ctx.attempt {
            attempt.begun();
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        _: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        let takes_trailers = ctx.passage.as_ref().is_some_and(|passage| passage.told.wanted);
        if takes_trailers {
            request.insert_header(TE, "trailers")?;
        }
        match (ctx.single, takes_trailers) {
            (true, true) => request.insert_header(CONNECTION, "close, TE")?,
            (true, false) => request.insert_header(CONNECTION, "close")?,
            (false, true) => request.insert_header(CONNECTION, "TE")?,
            (false, false) => {}
        }
        if let (Some(passage), Some(attempt)) = (&ctx.passage, &ctx.attempt)
            && passage.route.host_header == HostHeader::Upstream
        {
            request.insert_header(HOST, attempt.server().entry.authority())?;
        }
        Ok(())
    }

    /// A connection alone says little: the kernel takes it for a server that hangs.
    async fn upstream_response_filter(
        &self,
        _: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        ctx.answered = true;
        if let Some(attempt) = &mut ctx.attempt {
            attempt.judge(Instant::now(), Some(response.status.as_u16()));
        }
        if let (Some(Passage { own: (own, client), told, .. }), (fd, false)) = (&ctx.passage, ctx.connection)
            && bound::is_seen(&response.headers)
        {
            own.begin(*client);
            // A connection of ours has none.
            match fd < 0 {
                true => told.keep_for_nobody(),
                false => self.tainted.add(fd),
            }
        }
        Ok(())
    }

    /// Bodies of a known length were judged by it before; here those in chunks are.
    async fn request_body_filter(
        &self,
        _: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut Ctx,
    ) -> Result<()> {
        ctx.begun = true;
        ctx.sent += body.as_ref().map_or(0, |part| part.len() as u64);
        let max = ctx.passage.as_ref().map_or(0, |passage| passage.route.max_body_size);
        if max > 0 && ctx.sent > max {
            return Err(Error::new_in(ErrorType::HTTPStatus(413)));
        }
        if let (true, Some(attempt), Some(passage)) = (end, &mut ctx.attempt, &ctx.passage) {
            // A plain answer may take its time; but a server of which nothing at all comes is looked at as soon as
            // one that owes a handshake.
            let patience = passage.route.deadlines.handshake.min(passage.route.read_timeout);
            attempt.sent(Instant::now(), patience, "answer_timeout");
        }
        Ok(())
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Ctx,
        reused: bool,
    ) -> Box<Error> {
        if *error.etype() == ErrorType::new(NOT_THIS_ONE) {
            error.set_retry(true);
            return error;
        }
        let from_server = *error.esource() == pingora_core::ErrorSource::Upstream;
        let reused = reused || ctx.passage.as_ref().is_some_and(|passage| passage.told.was_kept());
        let late = matches!(error.etype(), ErrorType::ReadTimedout | ErrorType::WriteTimedout);
        let gone = matches!(
            error.etype(),
            ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::WriteError
        );
        let closed = from_server && reused && gone && !ctx.answered;
        let whole = session.req_header().method.is_idempotent() && !session.as_ref().retry_buffer_truncated();
        let again = closed && (whole || !ctx.begun) && !ctx.resent;
        error.set_retry(again);
        ctx.resent |= again;
        if again && let Some(Passage { access, .. }) = &ctx.passage {
            self.metrics.resent(access.upstream.as_deref().unwrap_or_default());
        }
        if let Some(attempt) = &mut ctx.attempt
            && from_server
        {
            match late {
                true => attempt.late(Instant::now()),
                // A kept connection is closed whenever the server likes, which says nothing.
                false if reused => {}
                false => attempt.judge(Instant::now(), None),
            }
        }
        error
    }

    async fn response_filter(
        &self,
        _: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Ctx,
    ) -> Result<()> {
        // Nobody asked: an upgrade never comes this way. To the client it would look like a tunnel.
        if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
            return Err(Error::new_up(ErrorType::HTTPStatus(502)));
        }
        // Before ours are put in, which `Connection` could name.
        for name in forward::of_the_hop(&response.headers) {
            response.remove_header(&name);
        }
        // What we say stands in the answer itself.
        if response.status.is_informational() {
            return Ok(());
        }
        let Some(Passage { route, access, issue, tls, .. }) = &ctx.passage else { return Ok(()) };
        if !route.response_headers.is_empty() {
            route.response_headers.apply(response, &access.vars());
        }
        if let (Some(issue), Some(attempt)) = (issue, &ctx.attempt)
            && let Some(cookie) = issue.set_cookie(attempt.name(), SystemTime::now())
        {
            response.append_header(SET_COOKIE, cookie)?;
        }
        for (name, value) in tls.iter().flat_map(|tls| &tls.told) {
            if !response.headers.contains_key(name) {
                response.insert_header(name.clone(), value.clone())?;
            }
        }
        Ok(())
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut Ctx) -> FailToProxy {
        let status = match error.etype() {
            ErrorType::HTTPStatus(status) => *status,
            _ if is_malformed(error) => 400,
            // The client's side is gone: nobody is there to be answered.
            _ if *error.esource() == pingora_core::ErrorSource::Downstream => 0,
            ErrorType::ReadTimedout | ErrorType::WriteTimedout => 504,
            _ => 502,
        };
        // Behind the beginning of an answer there is room for the rest of it alone.
        if status > 0 && session.response_written().is_none_or(|answer| answer.status.is_informational()) {
            let retry_after = ctx.exhausted.map(|e| e.retry_after);
            let response = crate::answer::response(status, retry_after);
            let (parts, body) = response.into_parts();
            if let Ok(mut header) = ResponseHeader::build(parts.status, Some(4)) {
                for (name, value) in &parts.headers {
                    let _valid_already = header.insert_header(name, value);
                }
                let _valid_already = header.insert_header("content-length", body.len().to_string());
                // Whatever went wrong, nothing that the client has sent behind it is to be taken for a request.
                let _valid_already = header.insert_header(CONNECTION, "close");
                let written = session.write_response_header(Box::new(header), false).await;
                if written.is_ok() {
                    let _client_gone = session.write_response_body(Some(body), true).await;
                }
                session.downstream_session.shutdown().await;
            }
        }
        FailToProxy { error_code: status, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Ctx) {
        let status = session.response_written().map_or(0, |r| r.status.as_u16());
        let Some(Passage { access, route, .. }) = &ctx.passage else { return };
        self.metrics.request(&route.name, status, access.transport());
        let cause = match (error, ctx.exhausted) {
            (Some(error), _) if *error.etype() == ErrorType::HTTPStatus(413) => "body_size",
            (Some(error), _) if is_malformed(error) => "malformed_body",
            (_, Some(exhausted)) => exhausted.cause,
            (Some(_), None) => "error",
            (None, None) => "done",
        };
        access
            .log("request", End { status, bytes: Some((ctx.sent, session.body_bytes_sent() as u64)), cause });
    }

    fn suppress_error_log(&self, _: &Session, _: &Ctx, _: &Error) -> bool {
        true // the access log has it
    }

    /// For Pingora's own log, which knows no more of a request than ours may: a query may hold a token.
    fn request_summary(&self, session: &Session, _: &Ctx) -> String {
        let head = session.req_header();
        format!("{} {}", head.method, head.uri.path())
    }
}

/// Whether the client's body is no body.
fn is_malformed(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<std::io::Error>();
    cause.and_then(|error| error.get_ref()).is_some_and(|inner| inner.is::<http1::Malformed>())
}
