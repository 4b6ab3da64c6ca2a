//! QUIC: times, windows, and ids for load balancers.

use super::Rules;
use crate::proxy::MAX_SERVER_ID;
use crate::units::duration_text;

impl Rules<'_> {
    pub(super) fn quic(&mut self) {
        let quic = &self.config.proxy.quic;
        if !quic.keep_alive.is_zero() && quic.keep_alive >= quic.idle_timeout {
            let text = format!(
                "is not shorter than idle_timeout, so it keeps nothing alive; accepted: less than {}, or 0s",
                duration_text(quic.idle_timeout)
            );
            self.mistake(&["proxy.quic.keep_alive", "proxy.quic.idle_timeout"], text);
        }
        if quic.stream_window > quic.connection_window {
            let text =
                "is larger than connection_window, which counts all streams; accepted: as much, or less";
            self.mistake(&["proxy.quic.stream_window", "proxy.quic.connection_window"], text);
        }
        if quic.max_handshakes != 0 && quic.retry_above >= quic.max_handshakes {
            let text = "is not below max_handshakes, so a flood from made-up addresses shuts everybody out";
            self.warn(&["proxy.quic.retry_above", "proxy.quic.max_handshakes"], text);
        }
        if quic.server_id_bytes().is_none() {
            let text = format!(
                "{:?} is not a server id; accepted: 1 to {MAX_SERVER_ID} bytes in hex, such as \"0a01\", or \"\"",
                quic.server_id
            );
            self.mistake(&["proxy.quic.server_id"], text);
        }
    }
}
