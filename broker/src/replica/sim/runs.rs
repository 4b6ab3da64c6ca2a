//! The runs: many seeds without a fault in the code, and each planted fault until it is found.

use super::super::faults::Fault;
use super::Setup;
use super::world::{Outcome, World};
use rand::SeedableRng;
use rand::rngs::SmallRng;

/// Lines of the trace in a failure's text.
const TRACE: usize = 40;
/// In how many seeds a planted fault must be found.
const FOUND_WITHIN: u64 = 400;

fn run(seed: u64, change: &dyn Fn(&mut Setup)) -> Result<Outcome, String> {
    let mut setup = Setup::draw(seed, &mut SmallRng::seed_from_u64(seed));
    change(&mut setup);
    World::new(setup).run()
}

/// The same once more, with its trace.
fn explain(seed: u64, change: &dyn Fn(&mut Setup)) -> String {
    let mut setup = Setup::draw(seed, &mut SmallRng::seed_from_u64(seed));
    change(&mut setup);
    setup.trace = true;
    let mut world = World::new(setup);
    let failure = world.run().err().unwrap_or_else(|| "went well this time".into());
    let lines: usize = std::env::var("WEIR_SIM_TRACE").ok().and_then(|t| t.parse().ok()).unwrap_or(TRACE);
    let from = world.trace.len().saturating_sub(lines);
    format!("{:?}\n{}\nseed {seed}: {failure}", world.setup, world.trace[from..].join("\n"))
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn nothing_acknowledged_is_lost_whatever_fails() {
    let seeds = match (number("WEIR_SIM_SEED"), number("WEIR_SIM_SEEDS")) {
        (Some(seed), count) => seed..seed + count.unwrap_or(1),
        (None, count) => 0..count.unwrap_or(250),
    };
    let started = std::time::Instant::now();
    let mut sum = Outcome::default();
    for seed in seeds.clone() {
        match run(seed, &|_| {}) {
            Err(_) => panic!("{}", explain(seed, &|_| {})),
            Ok(o) => {
                sum.steps += o.steps;
                sum.committed += o.committed;
                sum.acked += o.acked;
                sum.epochs += o.epochs;
                sum.installs += o.installs;
                sum.resets += o.resets;
                sum.healed_in = sum.healed_in.max(o.healed_in);
            }
        }
    }
    println!("{seeds:?}: {sum:?} in {:?}", started.elapsed());
    // A simulation in which nothing happens proves nothing.
    if seeds.end - seeds.start >= 100 {
        let runs = seeds.end - seeds.start;
        assert!(sum.acked > runs * 100 && sum.epochs > runs * 4 && sum.installs > runs, "{sum:?}");
        assert!(sum.resets > 0, "{sum:?}");
    }
}

fn find(name: &str, from: u64, change: &dyn Fn(&mut Setup)) {
    let found = (from..from + FOUND_WITHIN).find_map(|seed| run(seed, change).err().map(|e| (seed, e)));
    let Some((seed, failure)) = found else {
        panic!("{name}: not found in {FOUND_WITHIN} seeds from {from}")
    };
    println!("{name}: seed {seed}: {failure}");
}

#[test]
fn each_planted_fault_is_found() {
    for fault in [
        Fault::CommitAlone,
        Fault::NoLease,
        Fault::ServeTooSoon,
        Fault::GrowCarelessly,
        Fault::NoTruncate,
        Fault::EarlyAck,
        Fault::NoFence,
        Fault::ReuseEpoch,
        Fault::InstallOverTail,
        Fault::RetireBlindly,
        Fault::AnySession,
    ] {
        // The rarest: the search begins not far from where it shows, for the sake of time.
        let from = if fault == Fault::AnySession { 650 } else { 0 };
        find(&format!("{fault:?}"), from, &|setup| setup.fault = Some(fault));
    }
    find("promotion of one not in sync", 0, &|setup| setup.promote_anyone = true);
}
