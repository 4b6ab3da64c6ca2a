//! The account with the authority: made once, kept in the store, shared by all orders.

use super::client::Http;
use super::policy::{Now, Schedule};
use super::problem::{Cause, Failure};
use super::store::Store;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use instant_acme::{Account, AccountCredentials, ExternalAccountKey, NewAccount};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use weir_conf::proxy::Acme as Conf;

const FILE: &str = "account.json";

pub struct Accounts {
    conf: Conf,
    store: Arc<Store>,
    http: Http,
    known: Mutex<Known>,
}

struct Known {
    account: Option<Account>,
    /// Of accounts that could not be had: all orders need one, and are not to ask one by one.
    tries: Schedule,
    last: Option<Failure>,
}

impl Accounts {
    pub fn new(conf: &Conf, store: Arc<Store>, http: Http) -> Accounts {
        let known = Known { account: None, tries: Schedule::new(Duration::ZERO), last: None };
        Accounts { conf: conf.clone(), store, http, known: Mutex::new(known) }
    }

    /// From memory, else from the store, else a new one.
    pub async fn get(&self) -> Result<Account, Failure> {
        let mut known = self.known.lock().await;
        if let Some(account) = &known.account {
            return Ok(account.clone());
        }
        let wait = known.tries.wait(Now::read());
        if let Some(last) = known.last.clone().filter(|_| !wait.is_zero()) {
            return Err(Failure { retry_after: Some(wait), ..last });
        }
        match self.restore_or_create().await {
            Ok(account) => {
                known.account = Some(account.clone());
                known.tries = Schedule::new(Duration::ZERO);
                Ok(account)
            }
            Err(failure) => {
                // Nonces are tried again at once by whoever asked.
                if failure.cause != Cause::Nonce {
                    known.tries.failed(Now::read(), failure.retry_after, rand::random());
                    known.last = Some(failure.clone());
                }
                Err(failure)
            }
        }
    }

    async fn restore_or_create(&self) -> Result<Account, Failure> {
        let stored = self.stored().map_err(|why| Failure::new(Cause::Internal, why))?;
        if let Some(stored) = stored {
            match self.restore(stored).await {
                Err(failure) if failure.cause == Cause::Account => self.put_aside(),
                outcome => return outcome,
            }
        }
        self.create().await
    }

    /// The authority does not know this one: it began anew, or somebody closed the account.
    pub async fn forget(&self, id: &str) {
        let mut known = self.known.lock().await;
        if known.account.as_ref().is_some_and(|account| account.id() == id) {
            known.account = None;
            self.put_aside();
        }
    }

    fn put_aside(&self) {
        match self.store.set_aside(FILE) {
            Ok(()) => tracing::warn!("the authority does not know our account; a new one is made"),
            Err(error) => {
                tracing::warn!(%error, "the account that the authority does not know cannot be put aside")
            }
        }
    }

    /// One that is bound to another external account is none of ours.
    fn stored(&self) -> Result<Option<Value>, String> {
        let path = self.store.path(FILE);
        let read =
            self.store.read(FILE).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let Some(bytes) = read else { return Ok(None) };
        match serde_json::from_slice::<Value>(&bytes) {
            Ok(stored) if stored["eab_key_id"] == json!(self.conf.eab_key_id) => return Ok(Some(stored)),
            Ok(_) => tracing::info!("a new account: proxy.acme.eab_key_id has changed"),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the account cannot be read; a new one is made")
            }
        }
        self.store.set_aside(FILE).map_err(|error| format!("cannot move {}: {error}", path.display()))?;
        Ok(None)
    }

    async fn restore(&self, mut stored: Value) -> Result<Account, Failure> {
        let credentials = serde_json::from_value::<AccountCredentials>(stored["credentials"].clone());
        let credentials = credentials.map_err(|error| {
            let path = self.store.path(FILE);
            Failure::new(Cause::Internal, format!("the account in {} is broken: {error}", path.display()))
        })?;
        let account =
            Account::builder_with_http(Box::new(self.http.clone())).from_credentials(credentials).await?;
        let contact = json!(self.conf.contact);
        if stored["contact"] != contact {
            let contacts = self.contacts();
            let contacts: Vec<&str> = contacts.iter().map(String::as_str).collect();
            match account.update_contacts(&contacts).await.map_err(Failure::from) {
                Ok(()) => {
                    stored["contact"] = contact;
                    self.keep(stored).await?;
                }
                Err(failure) if failure.cause == Cause::Account => return Err(failure),
                // The account is as good as before; the next start tries again.
                Err(failure) => tracing::warn!(why = failure.text, "proxy.acme.contact could not be changed"),
            }
        }
        Ok(account)
    }

    async fn create(&self) -> Result<Account, Failure> {
        let external = self.external()?;
        let contacts = self.contacts();
        let contact: Vec<&str> = contacts.iter().map(String::as_str).collect();
        let wanted = NewAccount {
            contact: &contact,
            terms_of_service_agreed: self.conf.agree_to_terms,
            only_return_existing: false,
        };
        let builder = Account::builder_with_http(Box::new(self.http.clone()));
        let (account, credentials) =
            builder.create(&wanted, self.conf.directory.clone(), external.as_ref()).await?;
        tracing::info!(directory = %self.conf.directory, account = %super::problem::printable(account.id()), "account with the certificate authority made");
        let kept = json!({
            "contact": self.conf.contact,
            "eab_key_id": self.conf.eab_key_id,
            "credentials": credentials,
        });
        self.keep(kept).await?;
        Ok(account)
    }

    /// An account that is not kept would be made again with each start.
    async fn keep(&self, account: Value) -> Result<(), Failure> {
        let store = self.store.clone();
        let write = move || store.write(FILE, account.to_string().as_bytes());
        let written = tokio::task::spawn_blocking(write).await.map_err(|error| error.to_string());
        let written = written.and_then(|written| written.map_err(|error| error.to_string()));
        written
            .map_err(|error| Failure::new(Cause::Internal, format!("the account cannot be written: {error}")))
    }

    fn contacts(&self) -> Vec<String> {
        let address = self.conf.contact.strip_prefix("mailto:").unwrap_or(&self.conf.contact);
        if address.is_empty() { Vec::new() } else { vec![format!("mailto:{address}")] }
    }

    fn external(&self) -> Result<Option<ExternalAccountKey>, Failure> {
        if self.conf.eab_key_id.is_empty() {
            return Ok(None);
        }
        let key = BASE64_URL_SAFE_NO_PAD.decode(self.conf.eab_hmac.reveal().trim_end_matches('='));
        let key = key.map_err(|_| Failure::new(Cause::Internal, "proxy.acme.eab_hmac is not base64url"))?;
        Ok(Some(ExternalAccountKey::new(self.conf.eab_key_id.clone(), &key)))
    }
}
