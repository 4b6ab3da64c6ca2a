//! Which tiers a process runs.

use crate::section::{Reader, Value};
use crate::tree::{Item, Raw};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    pub proxy: bool,
    pub node: bool,
    pub broker: bool,
}

impl Value for Roles {
    fn read(item: &Item, path: &str, reader: &mut Reader<'_>) -> Option<Roles> {
        let accepted = "a list of \"proxy\", \"node\", \"broker\", such as [\"proxy\", \"node\"]";
        let items = match &item.value {
            Raw::List(items) => items.as_slice(),
            _ => std::slice::from_ref(item),
        };
        if items.is_empty() {
            reader.mistake(&item.place, path, format!("is empty; accepted: {accepted}"));
            return None;
        }
        let mut roles = Roles { proxy: false, node: false, broker: false };
        let mut sound = true;
        for item in items {
            let role = match item.as_text() {
                Some("proxy") => &mut roles.proxy,
                Some("node") => &mut roles.node,
                Some("broker") => &mut roles.broker,
                _ => {
                    sound = false;
                    let _: Option<()> = reader.refuse(item, path, "a role", accepted);
                    continue;
                }
            };
            if std::mem::replace(role, true) {
                sound = false;
                reader.mistake(
                    &item.place,
                    path,
                    format!("{} is listed twice; accepted: once", item.shown()),
                );
            }
        }
        sound.then_some(roles)
    }

    fn write(&self) -> String {
        let roles = [(self.proxy, "\"proxy\""), (self.node, "\"node\""), (self.broker, "\"broker\"")];
        let listed: Vec<&str> = roles.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
        format!("[{}]", listed.join(", "))
    }
}
