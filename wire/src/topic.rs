//! Topics of the router inside each broker. There are as many as places for attached nodes, plus
//! one: a channel's name never becomes a topic (the router keeps a log per topic, and never frees it).

/// Control: read by every attached node.
pub const CONTROL: &str = "c/all";

/// The inbox of the node in one of the broker's places (`broker.max_nodes` of them).
pub fn inbox(slot: u16) -> String {
    format!("n/{slot}")
}

/// The place that an inbox topic names.
pub fn slot(topic: &[u8]) -> Option<u16> {
    std::str::from_utf8(topic.strip_prefix(b"n/")?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inbox_names_its_place() {
        assert_eq!(slot(inbox(17).as_bytes()), Some(17));
        assert_eq!((slot(CONTROL.as_bytes()), slot(b"n/x"), slot(b"n/65536")), (None, None, None));
    }
}
