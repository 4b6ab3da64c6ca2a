//! The claims of both kinds of token, as they stand in them, and what they come to.

use super::{Grant, Identity, TokenError, invalid};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

#[derive(Deserialize)]
pub struct ConnectionToken {
    #[serde(flatten)]
    pub registered: Registered,
    info: Option<serde_json::Value>,
    #[serde(default)]
    b64info: String,
    #[serde(default)]
    channels: Vec<String>,
    #[serde(default)]
    subs: BTreeMap<String, RawSub>,
    /// Only in subscription tokens: such a one does not open a connection.
    channel: Option<serde_json::Value>,
}

#[derive(Deserialize)]
pub struct SubscriptionToken {
    #[serde(flatten)]
    pub registered: Registered,
    channel: Option<String>,
    #[serde(default)]
    client: String,
    info: Option<serde_json::Value>,
    #[serde(default)]
    b64info: String,
    data: Option<serde_json::Value>,
    #[serde(default)]
    b64data: String,
    #[serde(default, rename = "override")]
    overrides: RawOverrides,
}

/// RFC 7519, section 4.1, and `expire_at`.
#[derive(Deserialize)]
pub struct Registered {
    #[serde(default)]
    sub: String,
    exp: Option<f64>,
    nbf: Option<f64>,
    iat: Option<f64>,
    aud: Option<Audience>,
    iss: Option<String>,
    expire_at: Option<i64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

/// A server-side subscription that a token brings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerSub {
    pub info: Bytes,
    pub data: Bytes,
    pub overrides: Overrides,
}

/// Options of the namespace that a token sets otherwise for its holder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    pub presence: Option<bool>,
    pub join_leave: Option<bool>,
    pub force_push_join_leave: Option<bool>,
    pub force_positioning: Option<bool>,
    pub force_recovery: Option<bool>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawSub {
    info: Option<serde_json::Value>,
    b64info: String,
    data: Option<serde_json::Value>,
    b64data: String,
    #[serde(rename = "override")]
    overrides: RawOverrides,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct RawOverrides {
    presence: Option<Flag>,
    join_leave: Option<Flag>,
    force_push_join_leave: Option<Flag>,
    force_positioning: Option<Flag>,
    force_recovery: Option<Flag>,
}

#[derive(Deserialize)]
struct Flag {
    value: bool,
}

/// What a token has to say to be for us, and by how much clocks may differ.
pub struct Terms {
    pub audience: String,
    pub issuer: String,
    /// Seconds.
    pub leeway: f64,
}

impl Registered {
    pub fn check(&self, now: i64, terms: &Terms) -> Result<(), TokenError> {
        // Everything else first: a token out of its time that is also wrong is wrong.
        let Terms { audience, issuer, leeway } = terms;
        let for_us = match &self.aud {
            _ if audience.is_empty() => true,
            None => false,
            Some(Audience::One(one)) => one == audience,
            Some(Audience::Many(many)) => many.iter().any(|a| a == audience),
        };
        if !for_us {
            return Err(invalid("wrong audience (aud)"));
        }
        if !issuer.is_empty() && self.iss.as_deref() != Some(issuer) {
            return Err(invalid("wrong issuer (iss)"));
        }
        let times = [self.exp, self.nbf, self.iat];
        if times.into_iter().flatten().any(|time| !time.is_finite()) {
            return Err(invalid("exp, nbf or iat is no time"));
        }
        let now = now as f64;
        let ahead = |time: Option<f64>| time.is_some_and(|time| time - leeway > now);
        // Without leeway for the end: a connection of it would have ended in the same moment.
        let is_over = self.exp.is_some_and(|exp| exp <= now);
        match is_over {
            true => Err(TokenError::Expired),
            false if ahead(self.nbf) || ahead(self.iat) => Err(TokenError::Early),
            false => Ok(()),
        }
    }

    /// `expire_at` goes over `exp`, and 0 there means never.
    fn expiry(&self) -> Option<i64> {
        match self.expire_at {
            Some(at) if at <= 0 => None,
            Some(at) => Some(at),
            None => self.exp.map(|exp| exp as i64),
        }
    }
}

impl ConnectionToken {
    pub fn into_identity(self) -> Result<Identity, TokenError> {
        if self.channel.is_some() {
            return Err(invalid("a subscription token, used to connect"));
        }
        let mut subs = BTreeMap::new();
        for channel in self.channels {
            subs.insert(channel, ServerSub::default());
        }
        for (channel, raw) in self.subs {
            let info = payload(raw.info.as_ref(), &raw.b64info)?;
            let data = payload(raw.data.as_ref(), &raw.b64data)?;
            subs.insert(channel, ServerSub { info, data, overrides: raw.overrides.into() });
        }
        Ok(Identity {
            expire_at: self.registered.expiry(),
            user: self.registered.sub,
            info: payload(self.info.as_ref(), &self.b64info)?,
            subs: subs.into_iter().collect(),
        })
    }
}

impl SubscriptionToken {
    pub fn into_grant(self) -> Result<Grant, TokenError> {
        let channel = self.channel.ok_or_else(|| invalid("no channel claim"))?;
        Ok(Grant {
            expire_at: self.registered.expiry(),
            user: self.registered.sub,
            channel,
            client: self.client,
            info: payload(self.info.as_ref(), &self.b64info)?,
            data: payload(self.data.as_ref(), &self.b64data)?,
            overrides: self.overrides.into(),
        })
    }
}

impl From<RawOverrides> for Overrides {
    fn from(raw: RawOverrides) -> Overrides {
        let value = |flag: Option<Flag>| flag.map(|f| f.value);
        Overrides {
            presence: value(raw.presence),
            join_leave: value(raw.join_leave),
            force_push_join_leave: value(raw.force_push_join_leave),
            force_positioning: value(raw.force_positioning),
            force_recovery: value(raw.force_recovery),
        }
    }
}

/// JSON given as such, or in base64; either way it is JSON, since it goes to JSON clients.
fn payload(json: Option<&serde_json::Value>, base64: &str) -> Result<Bytes, TokenError> {
    match json {
        _ if !base64.is_empty() => {
            let bytes = STANDARD.decode(base64).map_err(|_| invalid("b64info or b64data is no base64"))?;
            serde_json::from_slice::<&RawValue>(&bytes)
                .map(crate::protocol::json::compact)
                .map_err(|_| invalid("b64info or b64data holds no JSON"))
        }
        None | Some(serde_json::Value::Null) => Ok(Bytes::new()),
        Some(value) => Ok(Bytes::from(value.to_string())),
    }
}
