//! Placeholder for the frames between node and broker.
