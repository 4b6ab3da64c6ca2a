//! The group in one process: several brokers over an in-memory network, on a held clock.

mod cluster;
mod decisions;
mod failover;
mod harness;
mod rules;
mod storage;
