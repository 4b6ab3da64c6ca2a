//! One order, from the names to the certificate (RFC 8555 §7.4).

use super::certificate::Certificate;
use super::challenges::{Challenges, Shown};
use super::problem::{Cause, Failure, told};
use instant_acme::{
    Account, AuthorizationHandle, AuthorizationStatus, CertificateIdentifier, ChallengeType, Identifier,
    NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Each of the two waits: for the challenges to be looked at, and for the signature.
const PATIENCE: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(500))
    .backoff(1.5)
    .timeout(Duration::from_secs(90));

pub struct Wanted<'a> {
    pub names: &'a [String],
    pub challenge: ChallengeType,
    /// The certificate that this one is in place of, for an authority that likes to know.
    pub replaces: Option<CertificateIdentifier<'static>>,
}

/// As it is kept, and as it is used.
pub struct Obtained {
    pub pem: String,
    pub certificate: Certificate,
}

pub async fn obtain(
    account: &Account,
    wanted: Wanted<'_>,
    challenges: &Arc<Challenges>,
) -> Result<Obtained, Failure> {
    let identifiers: Vec<_> = wanted.names.iter().cloned().map(Identifier::Dns).collect();
    let mut order = NewOrder::new(&identifiers);
    if let Some(replaces) = wanted.replaces {
        order = order.replaces(replaces);
    }
    let mut order = account.new_order(&order).await?;
    let shown = answer(&mut order, &wanted.challenge, challenges).await?;
    if order.state().status != OrderStatus::Ready {
        let status = order.poll_ready(&PATIENCE).await;
        if !matches!(status, Ok(OrderStatus::Ready)) {
            return Err(why_not(&mut order, status).await);
        }
    }
    drop(shown);
    let (key, request) = signing_request(wanted.names)?;
    order.finalize_csr(&request).await?;
    let chain = order.poll_certificate(&PATIENCE).await?;
    let pem = format!("{}{chain}", key.serialize_pem());
    let certificate = Certificate::read(pem.as_bytes(), wanted.names, SystemTime::now());
    let certificate = certificate.map_err(|why| {
        Failure::new(Cause::Unusable, format!("the authority gave a certificate of no use: {why}"))
    })?;
    Ok(Obtained { pem, certificate })
}

/// Shows what the authority wants to see for each name, and says that it may look.
async fn answer(
    order: &mut Order,
    kind: &ChallengeType,
    challenges: &Arc<Challenges>,
) -> Result<Vec<Shown>, Failure> {
    let mut shown = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        let name = authorization.identifier().to_string();
        match authorization.status {
            // It looked not long ago.
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            _ => return Err(Failure::new(Cause::Refused, refusal(&name, &authorization))),
        }
        let Some(mut challenge) = authorization.challenge(kind.clone()) else {
            let text = format!("{name}: the authority does not offer the challenge of proxy.acme.challenge");
            return Err(Failure::new(Cause::Refused, text));
        };
        shown.push(challenges.show(&name, &challenge).map_err(|why| Failure::new(Cause::Internal, why))?);
        challenge.set_ready().await?;
    }
    Ok(shown)
}

/// An order that failed does not say why; the challenges of its names do.
async fn why_not(order: &mut Order, status: Result<OrderStatus, instant_acme::Error>) -> Failure {
    let failure = match status {
        Err(error) => Failure::from(error),
        Ok(_) => Failure::new(Cause::Refused, "the authority refused the order"),
    };
    if failure.cause != Cause::Refused {
        return failure;
    }
    let mut reasons = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let Ok(mut authorization) = authorization else { break };
        if authorization.refresh().await.is_ok() && authorization.status == AuthorizationStatus::Invalid {
            let name = authorization.identifier().to_string();
            reasons.push(refusal(&name, &authorization));
        }
    }
    if reasons.is_empty() { failure } else { Failure::new(Cause::Refused, reasons.join("; ")) }
}

fn refusal(name: &str, authorization: &AuthorizationHandle<'_>) -> String {
    let problem = authorization.challenges.iter().find_map(|challenge| challenge.error.as_ref());
    let why = problem.map_or_else(|| format!("{:?}", authorization.status).to_lowercase(), told);
    format!("{name}: {why}")
}

fn signing_request(names: &[String]) -> Result<(KeyPair, Vec<u8>), Failure> {
    let failed =
        |error: rcgen::Error| Failure::new(Cause::Internal, format!("cannot make a request: {error}"));
    let mut params = CertificateParams::new(names).map_err(failed)?;
    params.distinguished_name = DistinguishedName::new();
    let key = KeyPair::generate().map_err(failed)?;
    let request = params.serialize_request(&key).map_err(failed)?;
    Ok((key, request.der().to_vec()))
}
