//! A stream that the client opened, up to its head: which it is, and who takes it.

use super::shared::{Headless, Shared, abort};
use super::{H3Stream, Handler};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use quinn::{RecvStream, SendStream};
use std::sync::Arc;
use tokio::time::{Instant, timeout_at};
use tokio_util::task::task_tracker::TaskTrackerToken;
use weir_h3::stream::{self, Bidi};
use weir_h3::{Code, EarlyData, Protocol, qpack, webtransport};

/// `is_late`: GOAWAY excluded it, if it is a request.
pub async fn take<H: Handler>(
    shared: Arc<Shared>,
    handler: Arc<H>,
    mut send: SendStream,
    mut recv: RecvStream,
    is_late: bool,
    busy: TaskTrackerToken,
) {
    let deadline = Instant::now() + shared.limits.head_timeout;
    let headless = Headless::new(&shared);
    let mut ahead = Bytes::new();
    match timeout_at(deadline, kind(&mut recv, &mut ahead)).await {
        Ok(Some(Bidi::Request)) if is_late => {
            shared.count("request after GOAWAY");
            abort(Code::H3_REQUEST_REJECTED, &mut send, &mut recv);
        }
        Ok(Some(Bidi::Request)) => {
            let stream = H3Stream::new(shared, send, recv, ahead, busy);
            request(handler, stream, deadline, headless).await;
        }
        Ok(Some(Bidi::WebTransport(session))) => {
            // The session is what a drain waits for.
            drop((busy, headless));
            shared.sessions.stream(&shared, session, (send, recv, ahead), deadline).await;
        }
        Ok(None) => {
            shared.cancelled();
            abort(Code::H3_REQUEST_INCOMPLETE, &mut send, &mut recv);
        }
        Err(_) => {
            shared.count("no head in time");
            abort(Code::H3_REQUEST_REJECTED, &mut send, &mut recv);
        }
    }
}

/// `None`: it ended, or was reset, before.
async fn kind(recv: &mut RecvStream, ahead: &mut Bytes) -> Option<Bidi> {
    loop {
        if let Some(kind) = stream::bidi(ahead) {
            return Some(kind);
        }
        let chunk = recv.read_chunk(usize::MAX, true).await.ok()??;
        *ahead = if ahead.is_empty() { chunk.bytes } else { [&ahead[..], &chunk.bytes].concat().into() };
    }
}

async fn request<H: Handler>(handler: Arc<H>, mut stream: H3Stream, deadline: Instant, headless: Headless) {
    let mut head = match timeout_at(deadline, stream.read_head()).await {
        Ok(Ok(head)) => head,
        Ok(Err(Some(error))) if error == qpack::TOO_LARGE => {
            stream.shared().count(error.reason);
            return answer(stream, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE).await;
        }
        Ok(Err(Some(error))) => return stream.fail(error),
        // It went away.
        Ok(Err(None)) => return,
        Err(_) => {
            stream.shared().count("no head in time");
            return stream.abort(Code::H3_REQUEST_REJECTED);
        }
    };
    drop(headless);
    if stream.is_early() {
        if !matches!(head.method, Method::GET | Method::HEAD) {
            stream.shared().count("early data with an unsafe method");
            return answer(stream, StatusCode::TOO_EARLY).await;
        }
        head.extensions.insert(EarlyData);
    }
    let is_session = head.extensions.get::<Protocol>().is_some_and(webtransport::is_session);
    if is_session && stream.shared().limits.max_sessions > 0 && !stream.begin_session(&head.headers) {
        stream.shared().count("too many sessions");
        return stream.abort(Code::H3_REQUEST_REJECTED);
    }
    handler.request(head, stream).await;
}

/// An answer of ours, without content. Who does not take it has gone.
async fn answer(mut stream: H3Stream, status: StatusCode) {
    let _gone = stream.send_head(status, &HeaderMap::new(), true).await;
}
