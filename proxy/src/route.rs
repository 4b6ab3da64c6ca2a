//! Which requests are whose, and what a route does with them. Pure. The first route that matches wins.

pub mod affinity;
pub mod edit;
pub mod path;
mod reply;
mod rewrite;
pub mod sticky;

use crate::access::key_hash;
use crate::admit::gate::Gate;
use crate::tunnel::greet::Deadlines;
use crate::upstream::Upstream;
use affinity::Affinity;
use edit::Edits;
use http::HeaderMap;
use http::header::{HOST, HeaderName};
use http::request::Parts;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use sticky::{Key, Known, Pick};
use weir_conf::proxy::{Answer, HeaderTest, HostHeader, Redirect, Rewrite, Sticky, Tunnel};
use weir_core::accept::Acceptor;

/// Where a request goes.
#[derive(Clone)]
pub enum Target {
    /// Servers over the network.
    Upstream(Arc<Upstream>),
    /// The node tier of this process: WebSockets are handed over, all else goes to its listener.
    Node { acceptor: Arc<dyn Acceptor>, listener: Arc<Upstream> },
}

impl Target {
    /// The servers that plain requests go to.
    pub fn upstream(&self) -> &Arc<Upstream> {
        match self {
            Target::Upstream(upstream) => upstream,
            Target::Node { listener, .. } => listener,
        }
    }
}

pub enum Action {
    Forward(Target),
    Answer(Answer),
    Redirect(Redirect),
}

impl Action {
    /// Whether there will be a socket to a server.
    pub fn goes_to_server(&self, websocket: bool) -> bool {
        match self {
            Action::Forward(Target::Upstream(_)) => true,
            Action::Forward(Target::Node { .. }) => !websocket,
            Action::Answer(_) | Action::Redirect(_) => false,
        }
    }
}

/// What the routes look at in a request.
pub struct Asked<'a> {
    pub head: &'a Parts,
    /// Tidied, see [`path::tidy`].
    pub path: &'a [u8],
    pub websocket: bool,
}

pub struct Route {
    /// In logs and metrics.
    pub name: Arc<str>,
    pub action: Action,
    pub deadlines: Deadlines,
    pub read_timeout: Duration,
    pub write_timeout: Duration,
    pub tunnel: Arc<Tunnel>,
    /// 0: no limit.
    pub max_body_size: u64,
    pub access_log: bool,
    pub host_header: HostHeader,
    pub request_headers: Edits,
    pub response_headers: Edits,
    hosts: Vec<Host>,
    path: Option<String>,
    path_exact: Option<String>,
    path_regex: Option<weir_conf::proxy::Pattern>,
    headers: Vec<(HeaderName, HeaderTest)>,
    methods: Vec<String>,
    websocket: Option<bool>,
    rewrite: Option<Rewrite>,
    key: Key,
    /// Whom it lets in.
    pub gate: Gate,
}

enum Host {
    Exact(String),
    /// What a name below it ends with: `.example.com`.
    Below(String),
}

pub struct Routes(Vec<Arc<Route>>);

impl Routes {
    pub fn new(routes: Vec<Route>) -> Routes {
        Routes(routes.into_iter().map(Arc::new).collect())
    }

    pub fn find(&self, asked: &Asked<'_>) -> Option<&Arc<Route>> {
        let host = bare(host(&asked.head.headers));
        self.0.iter().find(|route| route.matches(host, asked))
    }
}

impl Route {
    pub fn new(
        index: usize,
        conf: &weir_conf::proxy::Route,
        proxy: &weir_conf::proxy::Proxy,
        action: Action,
        gate: Gate,
    ) -> Route {
        let name = conf.name.clone().unwrap_or_else(|| format!("route[{index}]"));
        let max_body_size = conf.max_body_size.unwrap_or(proxy.max_body_size);
        let headers = conf.header.iter().filter_map(|h| Some((h.name.parse().ok()?, h.test.clone())));
        Route {
            name: name.into(),
            deadlines: Deadlines {
                connect: conf.connect_timeout.unwrap_or(proxy.connect_timeout),
                handshake: conf.handshake_timeout.unwrap_or(proxy.handshake_timeout),
            },
            read_timeout: conf.read_timeout.unwrap_or(proxy.read_timeout),
            write_timeout: conf.write_timeout.unwrap_or(proxy.write_timeout),
            tunnel: Arc::new(proxy.tunnel.with(&conf.tunnel)),
            max_body_size: u64::try_from(max_body_size).unwrap_or(u64::MAX),
            access_log: conf.access_log,
            host_header: conf.host_header.clone(),
            request_headers: Edits::new(&conf.request_headers),
            response_headers: Edits::new(&conf.response_headers),
            hosts: conf.host.iter().map(|host| Host::new(host)).collect(),
            path: conf.path.clone(),
            path_exact: conf.path_exact.clone(),
            path_regex: conf.path_regex.clone(),
            headers: headers.collect(),
            methods: conf.method.clone(),
            websocket: conf.websocket,
            rewrite: conf.rewrite.clone(),
            key: key(conf, proxy, &action),
            action,
            gate,
        }
    }

    /// `host` without port and closing dot.
    fn matches(&self, host: &str, asked: &Asked<'_>) -> bool {
        let path = asked.path;
        (self.hosts.is_empty() || self.hosts.iter().any(|h| h.matches(host)))
            && self.websocket.is_none_or(|wanted| wanted == asked.websocket)
            && self.path.as_deref().is_none_or(|prefix| path::is_under(prefix, path))
            && self.path_exact.as_deref().is_none_or(|exact| exact.as_bytes() == path)
            && (self.methods.is_empty() || self.methods.iter().any(|m| asked.head.method == m.as_str()))
            && self.headers.iter().all(|(name, test)| passes(test, name, &asked.head.headers))
            && self.path_regex.as_ref().is_none_or(|regex| regex.is_match(path))
    }

    /// The sticky key that a request brings itself; `None`: it goes by its address.
    pub fn key_of(&self, known: &Known<'_>) -> Option<Vec<u8>> {
        self.key.given(known)
    }

    /// Which server, and how the next request of this client finds it again.
    pub fn pick(&self, known: &Known<'_>, upstream: &Upstream, now: SystemTime) -> (Pick, u32) {
        let pick = self.key.pick(known, upstream.servers(), now);
        let hash = key_hash(&pick.key);
        (pick, hash)
    }
}

fn key(conf: &weir_conf::proxy::Route, proxy: &weir_conf::proxy::Proxy, action: &Action) -> Key {
    match (&conf.sticky, action) {
        // The node of this process is one server: there is nothing to be told apart.
        (Sticky::Affinity(affinity), Action::Forward(Target::Upstream(upstream))) => {
            Key::Affinity(Arc::new(Affinity::new(affinity, proxy, &upstream.name)))
        }
        (Sticky::Group(group), _) => match &conf.path_regex {
            Some(regex) => Key::Group(regex.clone(), regex.group(group).unwrap_or_default()),
            None => Key::Of(Sticky::Ip),
        },
        (sticky, _) => Key::Of(sticky.clone()),
    }
}

impl Host {
    fn new(conf: &str) -> Host {
        match conf.strip_prefix('*') {
            Some(domain) => Host::Below(domain.to_owned()),
            None => Host::Exact(conf.to_owned()),
        }
    }

    /// As nginx has it: `*.example.com` is one or more labels before `.example.com`.
    fn matches(&self, host: &str) -> bool {
        match self {
            Host::Exact(name) => name.eq_ignore_ascii_case(host),
            Host::Below(domain) => {
                let start = host.len().checked_sub(domain.len()).filter(|start| *start > 0);
                start.and_then(|s| host.get(s..)).is_some_and(|end| end.eq_ignore_ascii_case(domain))
            }
        }
    }
}

fn passes(test: &HeaderTest, name: &HeaderName, headers: &HeaderMap) -> bool {
    match test {
        HeaderTest::Present(wanted) => headers.contains_key(name) == *wanted,
        HeaderTest::Value(value) => headers.get_all(name).iter().any(|v| v.as_bytes() == value.as_bytes()),
        HeaderTest::Regex(regex) => headers.get_all(name).iter().any(|v| regex.is_match(v.as_bytes())),
    }
}

/// The host that was asked for, without its port.
pub fn host(headers: &HeaderMap) -> &str {
    let host = headers.get(HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
    let after_v6 = host.rfind(']').map_or(0, |i| i + 1);
    host[after_v6..].find(':').map_or(host, |colon| &host[..after_v6 + colon])
}

/// `example.com.` is `example.com`, and must not be a way around its routes.
fn bare(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_conf::proxy::{Action as ConfAction, HeaderMatch, Pattern, Route as Conf};

    fn request(method: &str, uri: &str, fields: &[(&'static str, &str)]) -> Parts {
        let mut builder = http::Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn hosts_lose_their_port() {
        for (header, expected) in
            [("a.b:80", "a.b"), ("a.b", "a.b"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("", "")]
        {
            assert_eq!(host(&request("GET", "/", &[("host", header)]).headers), expected);
        }
    }

    fn routes(changes: Vec<fn(&mut Conf)>) -> Routes {
        let proxy = crate::testing::conf();
        let routes = changes.into_iter().enumerate().map(|(i, change)| {
            let mut conf = Conf::to("app");
            change(&mut conf);
            let answer = Answer {
                status: 200,
                body: String::new(),
                content_type: "text/plain".into(),
                headers: Default::default(),
            };
            conf.action = ConfAction::Answer(answer.clone());
            Route::new(i, &conf, &proxy, Action::Answer(answer), Gate::open())
        });
        Routes::new(routes.collect())
    }

    fn header(name: &str, test: HeaderTest) -> Vec<HeaderMatch> {
        vec![HeaderMatch { name: name.into(), test }]
    }

    #[test]
    fn the_first_route_wins_of_which_all_fits() {
        let routes = routes(vec![
            |c| c.host = vec!["Exact.example".into(), "other.example".into()],
            |c| c.host = vec!["*.example".into()],
            |c| c.path_exact = Some("/only".into()),
            |c| (c.path, c.method) = (Some("/api".into()), vec!["POST".into(), "PUT".into()]),
            |c| c.path_regex = Some(Pattern::parse("/rooms/[0-9]+").unwrap()),
            |c| c.header = header("x-canary", HeaderTest::Value("yes".into())),
            |c| c.header = header("x-v", HeaderTest::Regex(Pattern::parse("v[12]").unwrap())),
            |c| c.websocket = Some(true),
            |c| {
                c.header = header("x-none", HeaderTest::Present(false));
                c.path = Some("/api".into());
            },
        ]);
        type Fields = &'static [(&'static str, &'static str)];
        let table: [(&str, &str, Fields, bool, Option<usize>); 21] = [
            ("GET", "/", &[("host", "exact.EXAMPLE:80")], false, Some(0)),
            ("GET", "/", &[("host", "exact.example.")], false, Some(0)),
            ("GET", "/", &[("host", "a.b.example")], false, Some(1)),
            ("GET", "/", &[("host", "A.Example.")], false, Some(1)),
            ("GET", "/", &[("host", "example")], false, None),
            ("GET", "/", &[("host", "aexample")], false, None),
            ("GET", "/", &[("host", ".example")], false, None),
            ("GET", "/only", &[], false, Some(2)),
            ("GET", "/only/", &[], false, None),
            ("GET", "//%6fnly;x", &[], false, Some(2)),
            ("POST", "/api/x", &[], false, Some(3)),
            ("GET", "/api/x", &[], false, Some(8)),
            ("GET", "/api/x", &[("x-none", "")], false, None),
            ("GET", "/rooms/42", &[], false, Some(4)),
            ("GET", "/rooms/42/x", &[], false, None),
            ("GET", "/", &[("x-canary", "no"), ("x-canary", "yes")], false, Some(5)),
            ("GET", "/", &[("x-canary", "yes!")], false, None),
            ("GET", "/", &[("x-v", "v2")], false, Some(6)),
            ("GET", "/", &[("x-v", "v23")], false, None),
            ("GET", "/", &[], true, Some(7)),
            ("GET", "/", &[], false, None),
        ];
        for (method, uri, fields, websocket, expected) in table {
            let head = request(method, uri, fields);
            let path = path::tidy(uri).unwrap();
            let found = routes.find(&Asked { head: &head, path: &path, websocket });
            let expected = expected.map(|n| format!("route[{n}]"));
            assert_eq!(found.map(|r| r.name.to_string()), expected, "{method} {uri} {fields:?}");
        }
    }
}
