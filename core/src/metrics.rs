//! Placeholder: metrics of the process.
