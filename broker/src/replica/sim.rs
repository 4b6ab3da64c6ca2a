//! Simulation of one shard on a few brokers: everything that can go wrong between them, from one
//! seed. A virtual clock, a network that loses, doubles, delays, reorders and cuts, processes that
//! stop and go on, crash and come back; a model of the metadata group (`group`), and publishers
//! (`client`). What must always hold is looked at after each step (`check`).
//!
//! One seed again, with its trace: `WEIR_SIM_SEED=17 cargo test -p weir-broker sim -- --nocapture`.
//! More of them: `WEIR_SIM_SEEDS=5000 cargo test -p weir-broker sim -- --nocapture` (40 a second),
//! from another one on with both.

mod check;
mod client;
mod disk;
mod group;
mod host;
mod nemesis;
mod runs;
mod world;

use super::Limits;
use super::faults::Fault;
use rand::Rng;
use rand::rngs::SmallRng;
use std::time::Duration;

/// Microseconds of virtual time.
type Micros = u64;

const MS: Micros = 1000;
/// How long faults are made, and how long may then pass until all is well.
const FAULTS_FOR: Micros = 2500 * MS;
const HEAL_WITHIN: Micros = 4000 * MS;
/// Clocks run this much too fast or too slow at most.
const DRIFT: f64 = 0.01;
const LEASE: Micros = 150 * MS;

/// What one run is like; all of it follows from the seed.
#[derive(Clone, Debug)]
struct Setup {
    seed: u64,
    hosts: usize,
    copies: usize,
    limits: Limits,
    loss: f64,
    doubled: f64,
    /// Delays differ from message to message, so that they overtake each other.
    reorder: bool,
    /// Out of order also whatever one link carries (TCP would not).
    unclean: bool,
    fault: Option<Fault>,
    promote_anyone: bool,
    trace: bool,
}

impl Setup {
    fn draw(seed: u64, rng: &mut SmallRng) -> Setup {
        let disk = rng.random_bool(0.5);
        Setup {
            seed,
            hosts: rng.random_range(3..=5),
            copies: rng.random_range(2..=3),
            limits: Limits {
                disk,
                tail_entries: rng.random_range(8..64),
                tail_bytes: rng.random_range(2000..20_000),
                kept_entries: rng.random_range(4..64),
                kept_bytes: rng.random_range(1000..20_000),
                batch_entries: rng.random_range(2..16),
                batch_bytes: rng.random_range(200..2000),
                flight_entries: rng.random_range(8..40),
                flight_bytes: rng.random_range(600..4000),
                chunk_bytes: rng.random_range(2000..16_000),
                chunk_window: rng.random_range(2000..32_000),
                snapshot_bytes: 1 << 20,
                replica_timeout: Duration::from_millis(rng.random_range(30..120)),
                resend: Duration::from_millis(rng.random_range(10..30)),
            },
            loss: if rng.random_bool(0.5) { 0.0 } else { rng.random_range(0.0..0.1) },
            doubled: if rng.random_bool(0.5) { 0.0 } else { rng.random_range(0.0..0.1) },
            reorder: rng.random_bool(0.5),
            unclean: !disk,
            fault: None,
            promote_anyone: false,
            trace: false,
        }
    }
}
