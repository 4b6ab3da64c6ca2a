//! Automatic certificates: asks an authority for them (RFC 8555), keeps them in a folder, renews them in time.
//!
//! What handshakes are shown is in `tls/certs.rs`; here it is put in and replaced. Each certificate has a
//! keeper (`acme/keeper.rs`), so what fails for one name stays with that name.

mod account;
mod certificate;
mod challenges;
mod client;
mod keeper;
mod order;
mod policy;
mod problem;
mod store;

use crate::error::BindError;
use crate::metrics::Metrics;
use crate::tls::certs::Certs;
use account::Accounts;
use bytes::Bytes;
use certificate::Certificate;
use challenges::Challenges;
use client::Http;
use http::Response;
use http::header::{CONTENT_TYPE, HeaderValue};
use keeper::Keeper;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;
use store::Store;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{AbortHandle, JoinSet};
use weir_conf::proxy::{Acme as Conf, Domains};
use weir_core::sync::lock;

/// Bundles of all authorities there are have some hundreds of KiB.
const MAX_CA: u64 = 4 << 20;
/// Orders under way at once.
const ORDERS: usize = 4;

/// Outlives confs.
pub struct Acme {
    certs: Arc<Certs>,
    challenges: Arc<Challenges>,
    metrics: Metrics,
    /// Held while certificates are put in force: what a reload took out does not come back.
    plan: Mutex<Arc<Plan>>,
    planned: Notify,
}

/// What one conf asks for.
#[derive(Default)]
pub struct Plan {
    /// `None`: nothing is asked for.
    authority: Option<Arc<Authority>>,
    /// With what the store had of them when they were planned.
    wanted: Vec<(Domains, Option<Certificate>)>,
}

/// All that orders with one authority share.
struct Authority {
    conf: Conf,
    /// What `conf.ca` names.
    ca: Option<Vec<u8>>,
    store: Arc<Store>,
    accounts: Accounts,
    orders: Semaphore,
}

impl Acme {
    pub fn new(certs: Arc<Certs>, metrics: Metrics) -> Acme {
        let challenges = Arc::new(Challenges::new(certs.clone()));
        Acme { certs, challenges, metrics, plan: Mutex::default(), planned: Notify::new() }
    }

    /// What this conf asks for; nothing has changed yet. Reads and writes the store, and asks nobody.
    pub fn plan(&self, conf: &Conf) -> Result<Plan, BindError> {
        if conf.domains.is_empty() {
            return Ok(Plan::default());
        }
        let ca = read_ca(&conf.ca).map_err(|reason| BindError::Acme { key: "ca", reason })?;
        let before = lock(&self.plan).clone();
        let same = before.authority.clone().filter(|authority| authority.is_of(conf, ca.as_ref()));
        let authority = match same {
            Some(authority) => authority,
            None => Arc::new(Authority::new(conf, ca)?),
        };
        let now = SystemTime::now();
        let wanted = conf.domains.iter().map(|domains| (domains.clone(), authority.stored(domains, now)));
        Ok(Plan { wanted: wanted.collect(), authority: Some(authority) })
    }

    /// Puts it in force: what the store has is shown from now on, names that are not asked for any more are
    /// not. Those that are keep what they have until there is something new.
    pub fn apply(&self, plan: Plan) {
        let plan = Arc::new(plan);
        let mut current = lock(&self.plan);
        let before = std::mem::replace(&mut *current, plan.clone());
        for (domains, found) in &plan.wanted {
            if before.is_kept(&plan, domains) {
                continue;
            }
            if let Some(found) = found {
                self.show(domains, found);
            }
        }
        let names = |plan: &Plan| -> BTreeSet<String> {
            plan.wanted.iter().flat_map(|(domains, _)| domains.0.iter().cloned()).collect()
        };
        for name in names(&before).difference(&names(&plan)) {
            self.certs.remove_dynamic(name);
        }
        let labels = |plan: &Plan| -> BTreeSet<String> {
            plan.wanted.iter().map(|(domains, _)| domains.label().to_owned()).collect()
        };
        for label in labels(&before).difference(&labels(&plan)) {
            self.metrics.tls.gone(label);
        }
        self.planned.notify_one();
    }

    /// Obtains and renews what is planned, now and after each reload, until it is dropped.
    pub async fn run(self: Arc<Acme>) {
        let mut keepers = JoinSet::new();
        let mut running: BTreeMap<Domains, AbortHandle> = BTreeMap::new();
        let mut before = Arc::new(Plan::default());
        loop {
            let plan = lock(&self.plan).clone();
            for (domains, keeper) in &running {
                if !before.is_kept(&plan, domains) {
                    keeper.abort();
                }
            }
            // Two must never be at work on one file.
            running.retain(|domains, _| before.is_kept(&plan, domains));
            while keepers.len() > running.len() && keepers.join_next().await.is_some() {}
            for (domains, found) in &plan.wanted {
                if let (Some(authority), false) = (&plan.authority, running.contains_key(domains)) {
                    let keeper = Keeper::new(self.clone(), authority.clone(), domains.clone(), found.clone());
                    running.insert(domains.clone(), keepers.spawn(keeper.run()));
                }
            }
            before = plan;
            self.planned.notified().await;
        }
    }

    /// The answer to a GET of this path while an authority may ask for it. Whoever sits in front may have sent
    /// it on to a listener with TLS, where it is as good. `None`: it is none of ours, and goes its usual way.
    pub fn http_challenge(&self, path: &str) -> Option<Response<Bytes>> {
        let answer = self.challenges.http(path)?;
        let mut response = Response::new(Bytes::copy_from_slice(answer.as_bytes()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        Some(response)
    }

    /// A certificate that a keeper obtained; not if it was not asked for any more.
    fn publish(&self, authority: &Arc<Authority>, domains: &Domains, certificate: &Certificate) {
        let plan = lock(&self.plan);
        if plan.is_of(authority) && plan.has(domains) {
            self.show(domains, certificate);
        }
    }

    fn show(&self, domains: &Domains, certificate: &Certificate) {
        for name in &domains.0 {
            self.certs.set_dynamic(name, certificate.cert.key.clone());
        }
        self.metrics.tls.not_after(domains.label(), certificate.cert.names.not_after);
    }
}

impl Plan {
    fn is_of(&self, authority: &Arc<Authority>) -> bool {
        self.authority.as_ref().is_some_and(|own| Arc::ptr_eq(own, authority))
    }

    /// Whether the keeper of this certificate goes on under the next plan.
    fn is_kept(&self, next: &Plan, domains: &Domains) -> bool {
        let same = self.authority.as_ref().is_some_and(|authority| next.is_of(authority));
        same && self.has(domains) && next.has(domains)
    }

    fn has(&self, domains: &Domains) -> bool {
        self.wanted.iter().any(|(known, _)| known == domains)
    }
}

impl Authority {
    fn new(conf: &Conf, ca: Option<Vec<u8>>) -> Result<Authority, BindError> {
        let failed = |error: std::io::Error| BindError::Acme {
            key: "store",
            reason: format!("cannot use the folder {:?}: {error}", conf.store),
        };
        let store = Arc::new(Store::open(Path::new(&conf.store), &conf.directory).map_err(failed)?);
        let http = Http::new(ca.as_deref()).map_err(|reason| BindError::Acme { key: "ca", reason })?;
        let accounts = Accounts::new(conf, store.clone(), http);
        Ok(Authority { conf: conf.clone(), ca, store, accounts, orders: Semaphore::new(ORDERS) })
    }

    /// All but the domains.
    fn is_of(&self, conf: &Conf, ca: Option<&Vec<u8>>) -> bool {
        let without = |conf: &Conf| Conf { domains: Vec::new(), ..conf.clone() };
        self.ca.as_ref() == ca && without(&self.conf) == without(conf)
    }

    fn stored(&self, domains: &Domains, now: SystemTime) -> Option<Certificate> {
        let file = store::certificate(&domains.0);
        let read = match self.store.read(&file) {
            Ok(None) => return None,
            Ok(Some(pem)) => Certificate::read(&pem, &domains.0, now),
            Err(error) => Err(error.to_string()),
        };
        let path = self.store.path(&file);
        let told =
            |why: String| tracing::warn!(path = %path.display(), why, "a stored certificate is not used");
        read.map_err(told).ok()
    }
}

fn read_ca(path: &str) -> Result<Option<Vec<u8>>, String> {
    if path.is_empty() {
        return Ok(None);
    }
    let mut pem = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_CA).read_to_end(&mut pem));
    read.map(|_| Some(pem)).map_err(|error| format!("cannot read the file {path:?}: {error}"))
}

/// What a certificate is called in metrics and logs.
trait Label {
    fn label(&self) -> &str;
}

impl Label for Domains {
    fn label(&self) -> &str {
        self.0.first().map_or("unnamed", String::as_str)
    }
}

#[cfg(test)]
mod pebble_tests;
