//! Placeholder: tracing set-up.
