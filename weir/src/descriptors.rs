//! The process's limit of open descriptors: raised as far as it goes, told to whoever counts by it, and compared
//! with what the conf asks for.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use weir_conf::Config;
use weir_core::descriptors;

/// Before anything is bound.
pub fn prepare(conf: &Config) {
    let Some(limit) = raise() else { return };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    descriptors::set_limit(limit);
    let (wanted, keys) = wanted(conf);
    let needed = descriptors::needed(wanted);
    if limit < needed {
        let keys = keys.join(", ");
        tracing::warn!(
            limit,
            needed,
            keys,
            "too few open descriptors for what the conf allows: limits and shares are lowered to fit. Raise \
             LimitNOFILE of the service (ulimit -Hn of the shell), or lower these keys"
        );
    }
}

/// The soft limit of most systems (1,024) is far below the hard one. `None`: it is not known.
fn raise() -> Option<u64> {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            tracing::warn!(%error, "the limit of open descriptors is not known");
            return None;
        }
    };
    if soft == hard {
        return Some(soft);
    }
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => {
            tracing::info!(from = soft, to = hard, "the limit of open descriptors is raised");
            Some(hard)
        }
        Err(error) => {
            tracing::warn!(soft, hard, %error, "the limit of open descriptors could not be raised");
            Some(soft)
        }
    }
}

/// What strangers may open by the conf, and the keys that say so. A key that is 0 asks for nothing: it has no
/// limit but this one.
fn wanted(conf: &Config) -> (usize, Vec<&'static str>) {
    let (mut proxy, mut node, mut keys) = (0, 0, Vec::new());
    if conf.roles.proxy {
        proxy = conf.proxy.max_connections.saturating_add(conf.proxy.max_requests);
        keys.extend(["proxy.max_connections", "proxy.max_requests"]);
    }
    if conf.roles.node {
        node = conf.node.max_connections;
        keys.push("node.max_connections");
    }
    // Where both are here, the clients of the node are mostly those of the proxy.
    (proxy.max(node), keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_conf_fits_the_usual_limit_of_a_process() {
        let conf = Config::default();
        let (wanted, keys) = wanted(&conf);
        assert_eq!(keys.len(), 3);
        assert!(descriptors::needed(wanted) <= 20_000, "{wanted}");
    }

    #[test]
    fn a_tier_asks_for_what_it_may_have() {
        let mut conf = Config::default();
        (conf.proxy.max_connections, conf.proxy.max_requests, conf.node.max_connections) = (10, 20, 40);
        assert_eq!(wanted(&conf).0, 40);
        conf.roles.node = false;
        assert_eq!(wanted(&conf), (30, vec!["proxy.max_connections", "proxy.max_requests"]));
        (conf.roles.node, conf.roles.proxy) = (true, false);
        assert_eq!(wanted(&conf), (40, vec!["node.max_connections"]));
    }
}
