//! CPU time, memory and descriptors of a process, from `/proc`.

use std::fs;
use std::io;
use std::time::Duration;

/// Ticks per second in `/proc/<pid>/stat`: `USER_HZ`, which Linux fixes at 100 for user space.
const USER_HZ: u64 = 100;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// User and system time of all threads.
    pub cpu: Duration,
    pub rss_bytes: u64,
}

/// Of this process.
pub fn own() -> io::Result<Usage> {
    usage("self")
}

/// Descriptors that this process has open. Apart from [`own`], since it lists them one by one.
pub fn own_open_fds() -> io::Result<u64> {
    Ok(fs::read_dir("/proc/self/fd")?.count() as u64)
}

/// Of the process with this id.
pub fn of(pid: u32) -> io::Result<Usage> {
    usage(&pid.to_string())
}

fn usage(pid: &str) -> io::Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let cpu = cpu_ticks(&stat).ok_or_else(|| malformed("stat"))?;
    let rss_kib = rss_kib(&status).ok_or_else(|| malformed("status"))?;
    Ok(Usage { cpu: Duration::from_millis(cpu * 1000 / USER_HZ), rss_bytes: rss_kib * 1024 })
}

/// Fields 14 and 15 of `stat` (proc(5)). The second field is a name that may hold spaces and
/// parentheses, so counting starts after the last `)`.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn rss_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

fn malformed(file: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected contents of /proc/<pid>/{file}"))
}

/// Of this machine; empty if it is not known.
pub fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_is_skipped() {
        let stat = "42 (a) b) (c) S 1 1 1 0 -1 4194560 100 0 0 0 7 5 0 0 20 0 1 0 100 0 0";
        assert_eq!(cpu_ticks(stat), Some(12));
        assert_eq!(cpu_ticks("garbage"), None);
    }

    #[test]
    fn this_process_uses_memory_and_descriptors() {
        assert!(own().unwrap().rss_bytes > 100_000 && own_open_fds().unwrap() > 0);
    }
}
