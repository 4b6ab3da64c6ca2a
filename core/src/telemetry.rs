//! Sets up `tracing` once for the process: filter, format, standard error as the place.

use std::io::IsTerminal;
use tracing::Metadata;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, registry};
use weir_conf::telemetry::{Format, Telemetry};

/// Installs the process's subscriber. Says what is wrong with the filter, if anything; a second
/// call in one process (tests) changes nothing.
pub fn init(conf: &Telemetry) -> Result<(), String> {
    let filter = EnvFilter::try_new(&conf.filter).map_err(|e| format!("telemetry.filter: {e}"))?;
    let registry = registry().with(filter).with(filter_fn(is_worth_it));
    let lines = fmt::layer().with_writer(std::io::stderr);
    let _already_set = match conf.format {
        Format::Text => registry.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init(),
        Format::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    Ok(())
}

/// rumqttd opens three spans for each message, at a level that no filter leaves out; making them costs more
/// than what it does in them. Its events stay.
fn is_worth_it(metadata: &Metadata<'_>) -> bool {
    !(metadata.is_span() && metadata.target().starts_with("rumqttd"))
}
