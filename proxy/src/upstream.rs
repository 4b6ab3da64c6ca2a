//! Servers by the name of their upstream, and the order in which one request tries them: its
//! key's server first, then on along the ring, past those whose breaker refuses.

pub mod health;
pub mod ring;

use crate::error::BindError;
use crate::metrics::Metrics;
use health::{Attempt, Server};
use ring::Ring;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A connection to a server.
pub type ServerStream = tokio::net::TcpStream;

/// What the next client is told when every server was tried and none could be reached.
const RETRY_UNREACHABLE: Duration = Duration::from_secs(1);

pub struct Upstream {
    pub name: Arc<str>,
    servers: Vec<Arc<Server>>,
    ring: Ring,
    tries: u32,
}

impl Upstream {
    /// The upstream of this name in the conf. `before` is what it was until now, if it was: what has
    /// not changed is kept.
    pub fn build(
        name: &str,
        conf: &weir_conf::proxy::Proxy,
        metrics: &Metrics,
        _before: Option<&Arc<Upstream>>,
    ) -> Result<Arc<Upstream>, BindError> {
        let servers = conf.upstream.get(name).map(|u| u.servers.as_slice()).unwrap_or_default();
        Upstream::resolve(name, servers, conf, metrics).map(Arc::new)
    }

    /// The listener of the node in this process.
    pub fn of_node(addr: SocketAddr, conf: &weir_conf::proxy::Proxy, metrics: &Metrics) -> Upstream {
        Upstream::new("node", vec![vec![addr]], conf, metrics)
    }

    /// Resolves the servers' names. A name with several addresses stands for as many servers;
    /// one with an address of each family is one server that can be reached both ways.
    pub fn resolve(
        name: &str,
        servers: &[String],
        conf: &weir_conf::proxy::Proxy,
        metrics: &Metrics,
    ) -> Result<Upstream, BindError> {
        let mut all: Vec<Vec<SocketAddr>> = Vec::new();
        for server in servers {
            let fail = |source| BindError::Resolve { upstream: name.into(), server: server.clone(), source };
            let found = group(server.to_socket_addrs().map_err(fail)?.collect());
            if found.is_empty() {
                return Err(fail(std::io::Error::other("the name has no address")));
            }
            all.extend(found);
        }
        all.sort();
        all.dedup_by(|a, b| a[0] == b[0]);
        if all.is_empty() {
            return Err(BindError::NoServers { upstream: name.into() });
        }
        Ok(Upstream::new(name, all, conf, metrics))
    }

    /// Each server by its addresses, the preferred one first.
    pub fn new(
        name: &str,
        servers: Vec<Vec<SocketAddr>>,
        conf: &weir_conf::proxy::Proxy,
        metrics: &Metrics,
    ) -> Upstream {
        let ring = Ring::new(servers.iter().map(|addrs| addrs[0]));
        let servers = servers.into_iter().map(|addrs| Arc::new(Server::new(name, addrs, conf, metrics)));
        Upstream { name: name.into(), servers: servers.collect(), ring, tries: conf.connect_tries.max(1) }
    }

    /// The names of its servers.
    pub fn servers(&self) -> impl Iterator<Item = String> {
        self.servers.iter().map(|server| server.name().to_string())
    }

    /// The way of one request through the servers: `prefer` first, if there is a server of this name.
    pub fn plan(self: &Arc<Self>, key: &[u8], prefer: Option<&str>) -> Plan {
        let prefer = prefer.and_then(|name| self.servers().position(|server| server == name));
        let mut walk = self.ring.walk(key);
        if let Some(index) = prefer {
            walk.skip(index);
        }
        Plan { upstream: self.clone(), prefer, walk, tries_left: self.tries, soonest: None, tried: false }
    }
}

/// One server or several, see [`Upstream::resolve`]. IPv4 goes first where both are there.
fn group(found: Vec<SocketAddr>) -> Vec<Vec<SocketAddr>> {
    let (v4, v6): (Vec<_>, Vec<_>) = found.into_iter().partition(SocketAddr::is_ipv4);
    match (v4.len(), v6.len()) {
        (1, 1) => vec![vec![v4[0], v6[0]]],
        (0, _) => v6.into_iter().map(|addr| vec![addr]).collect(),
        _ => v4.into_iter().map(|addr| vec![addr]).collect(),
    }
}

pub struct Plan {
    upstream: Arc<Upstream>,
    prefer: Option<usize>,
    walk: ring::Walk,
    tries_left: u32,
    soonest: Option<Duration>,
    tried: bool,
}

/// No server is left for this request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted {
    pub retry_after: Duration,
    /// Whether any server was tried at all; if not, their breakers refused at once.
    pub tried: bool,
}

impl Plan {
    /// The next server to try, with its breaker's leave.
    pub fn next(&mut self, now: Instant) -> Result<Attempt, Exhausted> {
        while self.tries_left > 0 {
            let next = self.prefer.take().or_else(|| self.walk.next(&self.upstream.ring));
            let Some(index) = next else { break };
            match Server::attempt(&self.upstream.servers[index], now) {
                Ok(attempt) => {
                    (self.tries_left, self.tried) = (self.tries_left - 1, true);
                    return Ok(attempt);
                }
                Err(wait) => self.soonest = Some(self.soonest.map_or(wait, |s| s.min(wait))),
            }
        }
        let unknown = if self.tried { RETRY_UNREACHABLE } else { Duration::ZERO };
        Err(Exhausted {
            retry_after: self.soonest.unwrap_or(unknown).max(RETRY_UNREACHABLE),
            tried: self.tried,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::conf;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 1], port))
    }

    #[test]
    fn a_request_walks_on_past_failed_servers_and_comes_back() {
        let conf = weir_conf::proxy::Proxy { connect_tries: 2, ..conf() };
        let metrics = Metrics::default();
        let upstream =
            Arc::new(Upstream::new("app", (1..=3).map(|p| vec![addr(p)]).collect(), &conf, &metrics));
        let now = Instant::now();
        let first = |now| {
            upstream.plan(b"key", None).next(now).map(|mut a| {
                a.give_up(now);
                a.addr()
            })
        };
        let home = first(now).unwrap();

        let mut plan = upstream.plan(b"key", None);
        let mut seen = Vec::new();
        while let Ok(mut attempt) = plan.next(now) {
            seen.push(attempt.addr());
            attempt.fail(now, "refused");
        }
        assert_eq!(seen.len(), 2, "connect_tries counts the first");
        assert!(seen[0] == home && seen[1] != home);

        for _ in 1..conf.breaker.failures {
            upstream.plan(b"key", None).next(now).unwrap().fail(now, "refused");
        }
        assert_eq!(first(now).unwrap(), seen[1], "its breaker is open");
        let later = now + conf.breaker.open_for;
        upstream.plan(b"key", None).next(later).unwrap().succeed();
        assert_eq!(first(later).unwrap(), home, "the probe brought it back");
    }

    #[test]
    fn a_preferred_server_is_first_and_once() {
        let conf = conf();
        let servers = (1..=3).map(|p| vec![addr(p)]).collect();
        let upstream = Arc::new(Upstream::new("app", servers, &conf, &Metrics::default()));
        for (prefer, first) in
            [(Some("10.0.0.1:1"), Some(1)), (Some("10.0.0.1:3"), Some(3)), (Some("x"), None)]
        {
            let mut plan = upstream.plan(b"key", prefer);
            let ports = std::iter::from_fn(|| plan.next(Instant::now()).ok().map(|a| a.addr().port()));
            let mut ports: Vec<_> = ports.collect();
            assert!(first.is_none_or(|first| ports[0] == first), "{prefer:?} {ports:?}");
            ports.sort();
            assert_eq!(ports, [1, 2, 3], "{prefer:?}");
        }
    }

    #[test]
    fn with_every_breaker_open_the_wait_is_told_at_once() {
        let conf = conf();
        let upstream =
            Arc::new(Upstream::new("app", vec![vec![addr(1)], vec![addr(2)]], &conf, &Metrics::default()));
        let now = Instant::now();
        for _ in 0..2 * conf.breaker.failures {
            if let Ok(mut attempt) = upstream.plan(b"key", None).next(now) {
                attempt.fail(now, "refused");
            }
        }
        let Err(exhausted) = upstream.plan(b"other", None).next(now) else { panic!("a server was left") };
        assert_eq!(exhausted, Exhausted { retry_after: conf.breaker.open_for, tried: false });
    }

    #[test]
    fn names_with_both_families_are_one_server() {
        let (a, b, c): (SocketAddr, SocketAddr, SocketAddr) =
            ("127.0.0.1:1".parse().unwrap(), "[::1]:1".parse().unwrap(), "127.0.0.2:1".parse().unwrap());
        assert_eq!(group(vec![b, a]), [[a, b]]);
        assert_eq!(group(vec![b, a, c]), [[a], [c]]);
        assert_eq!(group(vec![b]), [[b]]);
    }
}
