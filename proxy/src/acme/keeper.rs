//! The task of one certificate: waits until it is due, orders it, puts it in force, keeps it; and asks the
//! authority now and then whether it should be sooner.

use super::certificate::Certificate;
use super::order::{self, Obtained, Wanted};
use super::policy::{Now, Schedule};
use super::problem::{Cause, Failure, printable};
use super::{Acme, Authority, Label, store};
use futures_util::FutureExt;
use instant_acme::ChallengeType;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, sleep, timeout};
use weir_conf::proxy::{AcmeChallenge, Domains};

/// For one order: its parts have deadlines of their own, of which there may be many.
const DEADLINE: Duration = Duration::from_secs(300);
/// The calendar may be set, and machines sleep: nobody waits longer without looking at it again.
const LOOK: Duration = Duration::from_secs(3600);
/// While another process orders the same.
const BUSY: Duration = Duration::from_secs(10);
/// A nonce or an account that is not known says nothing about the order, which is made again at once.
const TRIES: usize = 5;
/// How often the authority is asked for its window, whatever it says (RFC 9773 §4.3.2).
const ASK: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(24 * 3600));
const ASK_AGAIN: Duration = Duration::from_secs(6 * 3600);

pub struct Keeper {
    acme: Arc<Acme>,
    authority: Arc<Authority>,
    domains: Domains,
    file: String,
    held: Option<Certificate>,
    schedule: Schedule,
    /// When the authority is asked for its window.
    ask_at: Instant,
    /// It knows of windows, and has nothing against being told what is replaced.
    windows: bool,
    /// In force, but not on the disk yet.
    unsaved: Option<String>,
}

impl Keeper {
    pub fn new(
        acme: Arc<Acme>,
        authority: Arc<Authority>,
        domains: Domains,
        held: Option<Certificate>,
    ) -> Keeper {
        let mut schedule = Schedule::new(authority.conf.renew_before);
        if let Some(held) = &held {
            schedule.found(held.validity, rand::random());
        }
        let file = store::certificate(&domains.0);
        let ask_at = Instant::now();
        Keeper { acme, authority, domains, file, held, schedule, ask_at, windows: false, unsaved: None }
    }

    pub async fn run(mut self) {
        loop {
            let now = Now::read();
            let wait = self.schedule.wait(now);
            if wait.is_zero() {
                self.renew().await;
                continue;
            }
            if let Some(pem) = self.unsaved.take() {
                self.save(pem).await;
            }
            if self.held.is_some() && self.ask_at <= now.clock {
                self.ask().await;
                continue;
            }
            let ask = self.held.as_ref().map(|_| self.ask_at.saturating_duration_since(now.clock));
            sleep(wait.min(LOOK).min(ask.unwrap_or(LOOK))).await;
        }
    }

    async fn renew(&mut self) {
        let authority = self.authority.clone();
        let Ok(_place) = authority.orders.acquire().await else { return };
        let _lock = match self.authority.store.lock(&self.file) {
            Ok(Some(lock)) => lock,
            Ok(None) => return self.schedule.postponed(Now::read(), BUSY),
            Err(error) => {
                return self.failed(Failure::new(Cause::Internal, format!("cannot lock the store: {error}")));
            }
        };
        if self.adopt() {
            return;
        }
        let outcome = match timeout(DEADLINE, AssertUnwindSafe(self.order()).catch_unwind()).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Failure::new(Cause::Internal, "a mistake in Weir: it panicked")),
            Err(_) => {
                Err(Failure::new(Cause::Unreachable, format!("not done within {} s", DEADLINE.as_secs())))
            }
        };
        match outcome {
            Ok(obtained) => self.obtained(obtained).await,
            Err(failure) => self.failed(failure),
        }
    }

    /// Another process with the same store may have renewed it meanwhile.
    fn adopt(&mut self) -> bool {
        let now = Now::read();
        let Some(found) = self.authority.stored(&self.domains, now.calendar) else { return false };
        if self.held.as_ref().is_some_and(|held| held.is(&found)) {
            return false;
        }
        let mut schedule = Schedule::new(self.authority.conf.renew_before);
        schedule.found(found.validity, rand::random());
        if schedule.wait(now).is_zero() {
            return false;
        }
        self.schedule = schedule;
        self.take(found);
        tracing::info!(certificate = self.domains.label(), "certificate taken from the store");
        true
    }

    async fn order(&self) -> Result<Obtained, Failure> {
        let accounts = &self.authority.accounts;
        let mut tries = 1;
        loop {
            let outcome = match accounts.get().await {
                Ok(account) => {
                    let outcome = order::obtain(&account, self.wanted(), &self.acme.challenges).await;
                    if outcome.as_ref().is_err_and(|failure| failure.cause == Cause::Account) {
                        accounts.forget(account.id()).await;
                    }
                    outcome
                }
                Err(failure) => Err(failure),
            };
            match outcome {
                Err(failure) if failure.is_fleeting() && tries < TRIES => tries += 1,
                outcome => return outcome,
            }
        }
    }

    fn wanted(&self) -> Wanted<'_> {
        let challenge = match self.authority.conf.challenge {
            AcmeChallenge::Http01 => ChallengeType::Http01,
            AcmeChallenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
        };
        let replaces = self.held.as_ref().filter(|_| self.windows).and_then(|held| held.id.clone());
        Wanted { names: &self.domains.0, challenge, replaces }
    }

    async fn obtained(&mut self, Obtained { pem, certificate }: Obtained) {
        let outcome = if self.held.is_some() { "renewed" } else { "issued" };
        let now = Now::read();
        self.schedule.issued(certificate.validity, now, rand::random());
        tracing::info!(
            certificate = self.domains.label(),
            names = self.domains.0.len(),
            valid_for_s = certificate.validity.left(now.calendar).as_secs(),
            renew_in_s = self.schedule.wait(now).as_secs(),
            "certificate {outcome}"
        );
        self.acme.metrics.acme_order(outcome);
        self.take(certificate);
        self.save(pem).await;
    }

    fn take(&mut self, certificate: Certificate) {
        self.acme.publish(&self.authority, &self.domains, &certificate);
        self.held = Some(certificate);
        self.ask_at = Instant::now() + ASK.0;
    }

    async fn save(&mut self, pem: String) {
        let (store, file, copy) = (self.authority.store.clone(), self.file.clone(), pem.clone());
        let written = tokio::task::spawn_blocking(move || store.write(&file, copy.as_bytes())).await;
        let error = match written {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        let path = self.authority.store.path(&self.file);
        tracing::warn!(certificate = self.domains.label(), path = %path.display(), error, "a certificate is in force that cannot be kept");
        self.unsaved = Some(pem);
    }

    fn failed(&mut self, failure: Failure) {
        let now = Now::read();
        let wait = self.schedule.failed(now, failure.retry_after, rand::random());
        self.windows = false;
        self.acme.metrics.acme_order(failure.cause.outcome());
        let left = self.held.as_ref().map(|held| held.validity.left(now.calendar).as_secs());
        tracing::warn!(
            certificate = self.domains.label(),
            why = failure.text,
            failures = self.schedule.failures(),
            again_in_s = wait.as_secs(),
            valid_for_s = left,
            "no certificate from the authority"
        );
    }

    /// RFC 9773. What goes wrong here is no more than a wish that is not known.
    async fn ask(&mut self) {
        self.ask_at = Instant::now() + ASK_AGAIN;
        let Some(id) = self.held.as_ref().and_then(|held| held.id.clone()) else { return };
        let asked = async {
            let account = self.authority.accounts.get().await?;
            Ok::<_, Failure>(account.renewal_info(&id).await?)
        };
        let (info, again) = match timeout(DEADLINE, asked).await {
            Ok(Ok(told)) => told,
            Ok(Err(failure)) => {
                return tracing::debug!(certificate = self.domains.label(), why = failure.text, "no window");
            }
            Err(_) => return,
        };
        self.windows = true;
        self.ask_at = Instant::now() + again.clamp(ASK.0, ASK.1);
        let window = info.suggested_window;
        let (start, end) = (SystemTime::from(window.start), SystemTime::from(window.end));
        self.schedule.suggested(start, end, rand::random());
        if self.schedule.wait(Now::read()).is_zero() {
            let why = info.explanation_url.as_deref().map(printable).unwrap_or_default();
            tracing::info!(certificate = self.domains.label(), why, "the authority asks for a renewal now");
        }
    }
}
