//! A conf for unit tests.

/// The shipped defaults.
pub fn conf() -> weir_conf::proxy::Proxy {
    weir_conf::Config::default().proxy
}
