//! The demo page, compiled in, and the figures it shows.

use crate::listener::json;
use crate::process;
use crate::shared::Shared;
use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};

/// Path, content type, content.
const FILES: &[(&str, &str, &[u8])] = &[
    ("/", "text/html; charset=utf-8", include_bytes!("../demo/index.html")),
    ("/demo/app.js", "text/javascript; charset=utf-8", include_bytes!("../demo/app.js")),
    ("/demo/style.css", "text/css; charset=utf-8", include_bytes!("../demo/style.css")),
    ("/demo/centrifuge.js", "text/javascript; charset=utf-8", include_bytes!("../demo/centrifuge.js")),
];

pub fn serve(path: &str, shared: &Shared) -> Option<Response<Bytes>> {
    if path == "/demo/stats" {
        return Some(uncached(json(StatusCode::OK, stats(shared).into())));
    }
    let (_, kind, content) = FILES.iter().find(|(name, ..)| *name == path)?;
    let mut response = Response::new(Bytes::from_static(content));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Some(uncached(response))
}

fn uncached(mut response: Response<Bytes>) -> Response<Bytes> {
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Counters since the start: the page makes rates of them.
fn stats(shared: &Shared) -> String {
    let m = &shared.metrics;
    serde_json::json!({
        "node": shared.name,
        "connections": shared.live(),
        "clients": shared.hub.clients(),
        "users": shared.hub.users(),
        "subscriptions": m.subscriptions.get(),
        "channels": m.channels.get(),
        "messages_in": m.messages_in.get(),
        "messages_out": m.messages_out.get(),
        "bytes_in": m.bytes_in.get(),
        "bytes_out": m.bytes_out.get(),
        "publications": m.publications.get(),
        "deliveries": m.deliveries.get(),
        "uptime_s": shared.started.elapsed().as_secs(),
        "rss_bytes": process::rss_bytes(),
        "broker_up": shared.hub.bus_is_up(),
    })
    .to_string()
}
