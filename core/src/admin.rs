//! Placeholder: `/health`, `/ready`, `/metrics`.
