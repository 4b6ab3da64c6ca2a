//! Addresses of servers' names: looked up at the start, and again whenever an answer expires.

use super::Upstream;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A start and a reload wait for lookups no longer than this; those that are late go on as if nothing was found.
const AT_START: Duration = Duration::from_secs(3);

/// What a lookup found, and until when that holds.
#[derive(Clone, Debug)]
pub struct Found {
    pub addrs: Vec<IpAddr>,
    pub until: Instant,
}

/// Asks these, or those of the system; to be made in the runtime that it is used in.
fn resolver(servers: &[SocketAddr]) -> io::Result<TokioResolver> {
    let mut builder = if servers.is_empty() {
        match TokioResolver::builder_tokio() {
            Ok(builder) => builder,
            // No resolv.conf: what is left is /etc/hosts.
            Err(_) => TokioResolver::builder_with_config(
                ResolverConfig::from_parts(None, Vec::new(), Vec::new()),
                TokioRuntimeProvider::default(),
            ),
        }
    } else {
        let one = |addr: &SocketAddr| {
            let mut server = NameServerConfig::udp_and_tcp(addr.ip());
            server.connections.iter_mut().for_each(|connection| connection.port = addr.port());
            server
        };
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(one).collect());
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let options = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // We ask when an answer has expired, and then want a new one.
    options.cache_size = 0;
    builder.build().map_err(io::Error::other)
}

async fn lookup(resolver: &TokioResolver, host: &str) -> io::Result<Found> {
    let answer = resolver.lookup_ip(host).await.map_err(io::Error::other)?;
    let mut addrs: Vec<IpAddr> = answer.iter().collect();
    addrs.sort();
    addrs.dedup();
    if addrs.is_empty() {
        return Err(io::Error::other("the name has no address"));
    }
    Ok(Found { addrs, until: answer.valid_until() })
}

/// Looks up all of them at once, and waits; may be called inside of a runtime and outside.
pub fn lookup_all(hosts: &[String], servers: &[SocketAddr]) -> io::Result<Vec<io::Result<Found>>> {
    if hosts.is_empty() {
        return Ok(Vec::new());
    }
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let resolver = Arc::new(resolver(servers)?);
            let start = |host: &String| {
                let (resolver, host) = (resolver.clone(), host.clone());
                tokio::spawn(async move {
                    let late = |_| Err(io::Error::other("no answer in time"));
                    timeout(AT_START, lookup(&resolver, &host)).await.unwrap_or_else(late)
                })
            };
            let under_way: Vec<_> = hosts.iter().map(start).collect();
            let mut found = Vec::with_capacity(hosts.len());
            for one in under_way {
                found.push(one.await.unwrap_or_else(|error| Err(io::Error::other(error))));
            }
            Ok(found)
        })
    };
    // A runtime cannot be waited for inside of another one's task.
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(found) => found,
        Err(_) => Err(io::Error::other("the lookup has panicked")),
    })
}

/// Keeps the names of an upstream up to date, until it is gone.
pub async fn watch(upstream: Weak<Upstream>) {
    let resolver = {
        let Some(upstream) = upstream.upgrade().filter(|upstream| upstream.has_names()) else { return };
        match resolver(&upstream.settings.dns_servers) {
            Ok(resolver) => Arc::new(resolver),
            Err(error) => {
                return tracing::error!(upstream = &*upstream.name, %error, "names are not looked up again");
            }
        }
    };
    loop {
        let next = {
            let Some(upstream) = upstream.upgrade() else { return };
            upstream.next_lookup()
        };
        tokio::time::sleep(next.saturating_duration_since(Instant::now())).await;
        let due = {
            let Some(upstream) = upstream.upgrade() else { return };
            upstream.due_lookups(Instant::now())
        };
        let mut lookups = JoinSet::new();
        for host in due {
            let resolver = resolver.clone();
            lookups.spawn(async move { (lookup(&resolver, &host).await, host) });
        }
        while let Some(done) = lookups.join_next().await {
            let Some(upstream) = upstream.upgrade() else { return };
            match done {
                Ok((found, host)) => upstream.looked_up(&host, found, Instant::now()),
                Err(error) => tracing::error!(%error, "a lookup has panicked"),
            }
        }
    }
}

/// When to ask again.
pub fn due(until: Instant, asked: Instant, bounds: (Duration, Duration)) -> Instant {
    asked + until.saturating_duration_since(asked).clamp(bounds.0, bounds.1.max(bounds.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_asked_for_again_within_the_bounds() {
        let (now, s) = (Instant::now(), Duration::from_secs);
        let bounds = (s(5), s(300));
        for (ttl, after) in [(0, 5), (30, 30), (86_400, 300)] {
            assert_eq!(due(now + s(ttl), now, bounds), now + s(after));
        }
    }

    #[test]
    fn the_hosts_file_counts_and_a_lookup_waits_inside_of_a_runtime_too() {
        let hosts = ["localhost".to_owned()];
        let outside = lookup_all(&hosts, &[]).unwrap().remove(0).unwrap();
        assert!(outside.addrs.iter().all(IpAddr::is_loopback), "{outside:?}");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let inside = runtime.block_on(async { lookup_all(&hosts, &[]) }).unwrap().remove(0).unwrap();
        assert_eq!(inside.addrs, outside.addrs);
    }
}
