//! Placeholder for the frame codec.
/// Version of the frames between processes.
pub const VERSION: u8 = 1;
