//! Which tiers a process runs.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles {
    pub proxy: bool,
    pub node: bool,
    pub broker: bool,
}
