//! Sets up `tracing` once for the process: filter, format, standard error as the place.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use weir_conf::telemetry::{Format, Telemetry};

/// At `trace` these write out what clients send, tokens included; no filter of an operator is meant to ask for that.
const NEVER_TRACED: [&str; 2] = ["tungstenite=debug", "tokio_tungstenite=debug"];

/// Installs the process's subscriber. Says what is wrong with the filter, if anything; a second
/// call in one process (tests) changes nothing.
pub fn init(conf: &Telemetry) -> Result<(), String> {
    let mut filter = EnvFilter::try_new(&conf.filter).map_err(|e| format!("telemetry.filter: {e}"))?;
    for directive in NEVER_TRACED {
        filter = filter.add_directive(directive.parse().map_err(|e| format!("{directive}: {e}"))?);
    }
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _already_set = match conf.format {
        Format::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    Ok(())
}
