//! `[telemetry]`: what is logged, and how.

#[derive(Clone, Debug, PartialEq)]
pub struct Telemetry {
    /// A `tracing` filter: `"info,rumqttd=off,pingora=warn"`.
    pub filter: String,
    pub format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}
