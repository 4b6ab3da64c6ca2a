//! Publishers. Two wait for each answer before they go on, one sends in bursts. A publication
//! whose outcome is unknown is sent again; so it may be there twice, but never be missing.

use super::world::{Event as WorldEvent, HostEvent, World};
use super::{MS, Micros};
use rand::Rng;
use std::collections::BTreeMap;

const ANSWER_WITHIN: Micros = 120 * MS;

#[derive(Clone, Debug)]
pub enum Event {
    Next(usize),
    Reply { client: usize, token: u64, reply: Reply },
    Timeout { client: usize, token: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Done,
    Refused,
    Unknown,
}

#[derive(Default)]
pub struct Clients {
    clients: Vec<Client>,
    /// What each token published; `None` again once somebody was told of it.
    tokens: BTreeMap<u64, u64>,
    next_token: u64,
    /// Payloads in the order of their acknowledgements.
    pub acknowledged: Vec<u64>,
    pub answered: u64,
}

#[derive(Default)]
struct Client {
    target: usize,
    made: u64,
    open: BTreeMap<u64, u64>,
    again: Vec<u64>,
}

impl Clients {
    pub fn new(count: usize) -> Clients {
        Clients { clients: (0..count).map(|_| Client::default()).collect(), ..Clients::default() }
    }

    /// From here on it is promised.
    pub fn committed(&mut self, token: u64) {
        if let Some(payload) = self.tokens.get(&token) {
            self.acknowledged.push(*payload);
        }
    }

    pub fn acked(&self) -> u64 {
        self.acknowledged.len() as u64
    }
}

impl World {
    pub fn client_event(&mut self, event: Event) {
        match event {
            Event::Next(client) => self.publish(client),
            Event::Timeout { client, token } => self.answered(client, token, Reply::Unknown),
            Event::Reply { client, token, reply } => self.answered(client, token, reply),
        }
    }

    pub fn reply(&mut self, _host: usize, client: usize, token: u64, reply: Reply) {
        let after = self.delay();
        self.at(after, WorldEvent::Client(Event::Reply { client, token, reply }));
    }

    fn answered(&mut self, n: usize, token: u64, reply: Reply) {
        let client = &mut self.clients.clients[n];
        let Some(payload) = client.open.remove(&token) else { return };
        if reply == Reply::Done {
            self.clients.answered += 1;
        } else {
            client.again.push(payload);
            let hosts = self.setup.hosts;
            self.clients.clients[n].target = self.rng.random_range(0..hosts);
        }
        if n > 0 {
            let after = self.rng.random_range(0..5 * MS);
            self.at(after, WorldEvent::Client(Event::Next(n)));
        }
    }

    fn publish(&mut self, n: usize) {
        let burst = if n == 0 { self.rng.random_range(1..12) } else { 1 };
        for _ in 0..burst {
            let clients = &mut self.clients;
            // Tokens tell whose they are.
            clients.next_token += 4;
            let token = clients.next_token + n as u64;
            let client = &mut clients.clients[n];
            let payload = client.again.pop().unwrap_or_else(|| {
                client.made += 1;
                (n as u64) << 32 | client.made
            });
            client.open.insert(token, payload);
            clients.tokens.insert(token, payload);
            let target = client.target;
            let after = self.delay() / 4;
            self.to(after, target, HostEvent::Propose { client: n, token, payload });
            self.at(ANSWER_WITHIN, WorldEvent::Client(Event::Timeout { client: n, token }));
        }
        if n == 0 {
            let after = self.rng.random_range(5 * MS..40 * MS);
            self.at(after, WorldEvent::Client(Event::Next(0)));
        }
    }
}
