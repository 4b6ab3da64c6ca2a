//! `[proxy.tunnel]`: what open WebSockets may do and how long; `[proxy.route.tunnel]` says otherwise for
//! one route, key by key.

use crate::section::{Field, Keys, Reader, Section, Value};
use crate::tree::Item;
use crate::units::{Bytes, BytesPerSecond, Rate};
use crate::write::{Writer, quote};
use std::time::Duration;

/// Each key once: in the section, where it has a default, and in a route, where it may be absent.
macro_rules! tunnel {
    ($($(#[$doc:meta])* $field:ident: $type:ty as $unit:ty),* $(,)?) => {
        #[derive(Clone, Debug, PartialEq)]
        pub struct Tunnel { $($(#[$doc])* pub $field: $type,)* }

        /// What a route says in place of `[proxy.tunnel]`.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct TunnelOverride { $(pub $field: Option<$type>,)* }

        impl Tunnel {
            /// As one route has it.
            pub fn with(&self, route: &TunnelOverride) -> Tunnel {
                Tunnel { $($field: route.$field.clone().unwrap_or_else(|| self.$field.clone()),)* }
            }
        }

        impl Keys for Tunnel {
            fn read_keys(section: &mut Section<'_, '_>) -> Tunnel {
                Tunnel { $($field: section.get::<$unit>(stringify!($field)).into(),)* }
            }

            fn write_keys(&self, writer: &mut Writer<'_>) {
                $(writer.value(stringify!($field), Value::write(&<$unit>::from(self.$field.clone())));)*
            }
        }

        impl Keys for TunnelOverride {
            fn read_keys(section: &mut Section<'_, '_>) -> TunnelOverride {
                TunnelOverride { $($field: section.find::<$unit>(stringify!($field)).map(Into::into),)* }
            }

            fn write_keys(&self, writer: &mut Writer<'_>) {
                $(if let Some(value) = &self.$field {
                    writer.value(stringify!($field), Value::write(&<$unit>::from(value.clone())));
                })*
            }
        }
    };
}

tunnel! {
    /// Without a byte in either direction for so long: closed. Zero: never.
    idle_timeout: Duration as Duration,
    /// A client that was silent for so long is pinged by the proxy. Zero: never.
    ping_interval: Duration as Duration,
    /// For a sign of life after a ping.
    ping_timeout: Duration as Duration,
    /// A tunnel that is so old is closed. Zero: never.
    max_age: Duration as Duration,
    /// By up to so many percent of `max_age` it is closed earlier, at random.
    max_age_jitter: u8 as u8,
    /// The largest frame from a client. Zero: no limit.
    max_frame_size: usize as Bytes,
    /// From the first byte of a client's message to its last. Zero: no limit.
    message_timeout: Duration as Duration,
    /// Bytes from one client per second. Zero: no limit.
    bytes_rate: usize as BytesPerSecond,
    /// Frames from one client per second. `None`: no limit ("0/s").
    frames_rate: Option<Rate> as Option<Rate>,
    /// What happens to a client that is over one of the two.
    over: Over as Over,
    /// A side that takes not one byte of what waits for it for so long: closed.
    write_timeout: Duration as Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// It is read from more slowly, and TCP passes that on.
    Slow,
    /// Closed with 1008.
    Close,
}

impl Value for Over {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Over> {
        match item.as_text() {
            Some("slow") => Some(Over::Slow),
            Some("close") => Some(Over::Close),
            _ => reader.refuse(item, path, "a way to treat a client over its rate", "\"slow\", \"close\""),
        }
    }

    fn write(&self) -> String {
        quote(match self {
            Over::Slow => "slow",
            Over::Close => "close",
        })
    }
}

macro_rules! field {
    ($section:ty) => {
        impl Field for $section {
            fn read_field(section: &mut Section<'_, '_>, key: &'static str) -> $section {
                section.section(key, Keys::read_keys)
            }

            fn write_field(&self, writer: &mut Writer<'_>, key: &str) {
                writer.section(key, |writer| self.write_keys(writer));
            }
        }
    };
}
field!(Tunnel);
field!(TunnelOverride);

impl Value for BytesPerSecond {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<BytesPerSecond> {
        match item.as_text().and_then(BytesPerSecond::parse) {
            Some(rate) => Some(rate),
            None => reader.refuse(
                item,
                path,
                "bytes per second",
                "\"64KiB/s\", \"1MB/s\", or \"0B/s\" for no limit",
            ),
        }
    }

    fn write(&self) -> String {
        quote(&self.to_string())
    }
}
