//! `weir broker …`: the cluster, as one of its brokers sees it, and what can be done about it.

use super::{Target, done, list, ordered};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::process::ExitCode;

#[derive(Args)]
pub struct BrokerArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// The cluster as this broker sees it, as JSON; exit code 1 while not all is well
    Status(Target),
    /// The members, one a line
    List(Target),
    /// Which broker owns and holds which shard, one a line
    Shards(Target),
    /// Begin a new cluster with this broker; once, on one broker
    Bootstrap(Target),
    /// Join the cluster of the broker at this address
    Join {
        #[command(flatten)]
        target: Target,
        seed: String,
    },
    /// Hand over everything that this broker holds, and leave the cluster
    Leave(Target),
    /// Hand over what this broker owns, before a restart; it stays a member
    Drain(Target),
    /// Have the owner of a shard hand it to another broker that is in sync
    Move {
        #[command(flatten)]
        target: Target,
        shard: u16,
        /// Its name in the list of members
        to: String,
    },
    /// Begin a shard anew without what the brokers in sync hold: for those that will never return
    GiveUp {
        #[command(flatten)]
        target: Target,
        shard: u16,
    },
}

pub fn broker(args: &BrokerArgs) -> ExitCode {
    match &args.what {
        What::Status(target) => done(async {
            let status = target.process()?.order("broker", Value::Null).await?;
            println!("{status:#}");
            match status["healthy"].as_bool() {
                Some(true) => Ok(()),
                _ => Err("not all is well: see healthy, shards and peers".into()),
            }
        }),
        What::List(target) => ordered(target, "broker", Value::Null, |status| {
            status["members"].as_array().into_iter().flatten().for_each(|m| member(m, &status));
        }),
        What::Shards(target) => ordered(target, "broker/shards", Value::Null, |shards| {
            shards.as_array().into_iter().flatten().for_each(shard);
        }),
        What::Bootstrap(target) => ordered(target, "broker/bootstrap", Value::Null, |answer| {
            println!("cluster {}", answer["cluster"].as_str().unwrap_or_default());
        }),
        What::Join { target, seed } => ordered(target, "broker/join", json!({ "seed": seed }), |answer| {
            println!("joined cluster {}", answer["cluster"].as_str().unwrap_or_default());
        }),
        What::Leave(target) => ordered(target, "broker/leave", Value::Null, |_| {
            println!("left the cluster; the process can be stopped");
        }),
        What::Drain(target) => ordered(target, "broker/drain", Value::Null, |_| {
            println!("owns nothing any more; the process can be restarted");
        }),
        What::Move { target, shard, to } => {
            ordered(target, "broker/move", json!({ "shard": shard, "to": to }), |answer| {
                println!("shard {shard}: {}", answer["owner"].as_str().unwrap_or_default());
            })
        }
        What::GiveUp { target, shard } => {
            ordered(target, "broker/give_up", json!({ "shard": shard }), |_| {
                println!("shard {shard}: given up; another broker begins it anew");
            })
        }
    }
}

fn member(member: &Value, status: &Value) {
    let text = |key: &str| member[key].as_str().unwrap_or_default();
    let leads = status["leader"].as_str() == Some(text("name"));
    let marks = [
        (member["me"].as_bool() == Some(true), "this one"),
        (leads, "leader"),
        (member["voter"].as_bool() == Some(true), "voter"),
        (member["linked"].as_bool() == Some(false), "no link"),
    ];
    let marks: Vec<&str> = marks.into_iter().filter(|(is, _)| *is).map(|(_, mark)| mark).collect();
    println!(
        "{:<24} {:<24} {:<9} owns {:>3}, holds {:>3}  {}",
        text("name"),
        text("addr"),
        text("state"),
        member["owned"],
        member["held"],
        marks.join(", ")
    );
}

fn shard(shard: &Value) {
    let joining = list(&shard["catching_up"]).join(" ");
    println!(
        "{:>4}  epoch {:<4} owner {:<20} in sync: {}{}{}",
        shard["shard"],
        shard["epoch"],
        shard["owner"].as_str().unwrap_or("-"),
        list(&shard["in_sync"]).join(" "),
        if joining.is_empty() { "" } else { "; catching up: " },
        joining
    );
}
