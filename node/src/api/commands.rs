//! Methods that act on connections, wherever in the cluster they are.

use super::methods::{bus, failed, options};
use super::params::{self, payload};
use super::{Answer, Failure};
use crate::shared::Shared;
use weir_wire::close::Close;
use weir_wire::code::ErrorCode;
use weir_wire::envelope::{Control, Target};

pub async fn subscribe(shared: &Shared, params: params::Subscribe<'_>) -> Answer {
    options(shared, &params.channel)?;
    let command = Control::Subscribe {
        target: target(params.user, params.client)?,
        info: payload(params.info, &params.b64info)?,
        data: payload(params.data, &params.b64data)?,
        channel: params.channel,
        recover_since: params.recover_since.map(|s| s.position()),
        expire_at: params.expire_at,
    };
    send(shared, command).await
}

/// Without a channel: from all of them.
pub async fn unsubscribe(shared: &Shared, params: params::Whom) -> Answer {
    let target = target(params.user, params.client)?;
    send(shared, Control::Unsubscribe { target, channel: params.channel }).await
}

pub async fn disconnect(shared: &Shared, params: params::Whom) -> Answer {
    let default = Close::FORCE_DISCONNECT;
    let (code, reason) = match params.disconnect {
        None => (default.code, default.reason.into_owned()),
        Some(d) if (3000..=4999).contains(&d.code) && d.reason.len() <= 123 => (d.code, d.reason),
        Some(_) => return Err(ErrorCode::BAD_REQUEST.into()),
    };
    let target = target(params.user, params.client)?;
    send(shared, Control::Disconnect { target, whitelist: params.whitelist, code, reason }).await
}

pub async fn refresh(shared: &Shared, params: params::Refresh<'_>) -> Answer {
    let command = Control::Refresh {
        target: target(params.user, params.client)?,
        expired: params.expired,
        expire_at: params.expire_at,
        info: payload(params.info, "")?,
    };
    send(shared, command).await
}

/// A command for nobody in particular would be one for all who have no name.
fn target(user: String, client: String) -> Result<Target, Failure> {
    if user.is_empty() && client.is_empty() {
        return Err(ErrorCode::BAD_REQUEST.into());
    }
    Ok(Target { user, client })
}

async fn send(shared: &Shared, command: Control) -> Answer {
    bus(shared)?.control(command).await.map_err(failed)?;
    Ok("{}".to_owned())
}
