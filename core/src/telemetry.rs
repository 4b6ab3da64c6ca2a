//! Sets up `tracing` once for the process: filter, format, standard error as the place.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use weir_conf::telemetry::{Format, Telemetry};

/// Installs the process's subscriber. Says what is wrong with the filter, if anything; a second
/// call in one process (tests) changes nothing.
pub fn init(conf: &Telemetry) -> Result<(), String> {
    let filter = EnvFilter::try_new(&conf.filter).map_err(|e| format!("telemetry.filter: {e}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _already_set = match conf.format {
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
