//! One connected client as the rest of the node sees it: its outbox, its channels, its mail.

use crate::frame;
use crate::hub::Channel;
use crate::outbox::Outbox;
use crate::protocol::Format;
use crate::rates::Meter;
use crate::session::{Event, Ticket};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use weir_core::accept::{NoDatagram, Session};
use weir_core::sync::lock;
use weir_wire::close::Close;

/// Events that may wait for one client. They come from operators and backends, not from traffic;
/// whoever has more waiting is not being served any more.
const MAIL_SIZE: usize = 1024;

pub struct Client {
    pub id: Arc<str>,
    pub format: Format,
    pub outbox: Outbox,
    /// `None`: whatever it asks for (in tests of parts).
    pub meter: Option<Arc<Meter>>,
    /// Bytes on their way to it that the outbox does not count.
    beside: AtomicUsize,
    /// `Some`: takes datagrams, by its own wish.
    datagrams: Option<Arc<dyn Session>>,
    user: OnceLock<Arc<str>>,
    mail: Mutex<VecDeque<Event>>,
    /// What this client has in the hub, pending ones included: what a sudden end must undo.
    pub(crate) subs: Mutex<Vec<SubRef>>,
}

pub(crate) struct SubRef {
    pub channel: Arc<Channel>,
    pub slot: u32,
    pub ticket: Ticket,
    /// A membership was asked for at the broker.
    pub member: bool,
}

impl Client {
    pub fn new(id: Arc<str>, format: Format, outbox_size: usize) -> Client {
        Client {
            id,
            format,
            outbox: Outbox::new(outbox_size),
            meter: None,
            beside: AtomicUsize::new(0),
            datagrams: None,
            user: OnceLock::new(),
            mail: Mutex::default(),
            subs: Mutex::default(),
        }
    }

    pub fn with_datagrams(self, datagrams: Option<Arc<dyn Session>>) -> Client {
        Client { datagrams, ..self }
    }

    pub fn with_meter(self, meter: Arc<Meter>) -> Client {
        Client { meter: Some(meter), ..self }
    }

    pub fn takes_datagrams(&self) -> bool {
        self.datagrams.is_some()
    }

    /// The message of a finished push, past the outbox. Never waits, and keeps nothing here.
    pub fn send_datagram(&self, push: &Bytes) -> Result<(), NoDatagram> {
        let session = self.datagrams.as_ref().ok_or(NoDatagram::Unsupported)?;
        session.send_datagram(frame::datagram(push, self.format))
    }

    pub fn beside(&self) -> usize {
        self.beside.load(Ordering::Relaxed)
    }

    /// By its connection's task alone, as below.
    pub fn add_beside(&self, bytes: usize) {
        self.beside.fetch_add(bytes, Ordering::Relaxed);
    }

    pub fn took_beside(&self, bytes: usize) {
        self.beside.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Known once connected.
    pub fn user(&self) -> Option<&Arc<str>> {
        self.user.get()
    }

    pub(crate) fn set_user(&self, user: Arc<str>) {
        let _ = self.user.set(user);
    }

    pub fn post(&self, event: Event) {
        let mut mail = lock(&self.mail);
        match mail.len() {
            0..MAIL_SIZE => mail.push_back(event),
            _ => *mail = VecDeque::from([Event::Disconnect(Close::SLOW)]),
        }
        drop(mail);
        self.outbox.wake();
    }

    pub fn take_mail(&self) -> Option<Event> {
        lock(&self.mail).pop_front()
    }
}
