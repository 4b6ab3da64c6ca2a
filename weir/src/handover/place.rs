//! Where predecessor and successor meet: a socket in a folder that nobody else may write to. Elsewhere somebody
//! could be there first, so that neither finds the other.

use rustix::io::Errno;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use weir_conf::admin::Admin;
use weir_core::private;

const NAME: &str = "upgrade.sock";

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Predecessor,
    Successor,
}

/// As the conf has it, or in a folder of this user's; that one is made by the successor, and is not used if it is
/// somebody else's.
pub fn socket(conf: &Admin, side: Side) -> Result<PathBuf, String> {
    let path = of(conf);
    let usual = conf.upgrade_socket.is_empty();
    match check(&path, usual && side == Side::Successor) {
        Ok(()) => Ok(path),
        Err(why) if usual => {
            Err(format!("admin.upgrade_socket = \"\": {why}; give a path in another folder"))
        }
        // Both sides look at each other's user: the worst is that they do not meet.
        Err(why) => {
            tracing::warn!(why, "admin.upgrade_socket is where others may be first");
            Ok(path)
        }
    }
}

/// What is to be said of a path of the operator's own, if its folder is there already.
pub fn judge(conf: &Admin) -> Option<String> {
    let path = of(conf);
    let there = !conf.upgrade_socket.is_empty() && path.parent().is_some_and(Path::exists);
    let why = check(&path, false).err().filter(|_| there)?;
    Some(format!("{why}, and could be first at the socket; better: \"\", or a folder of Weir's user alone"))
}

fn of(conf: &Admin) -> PathBuf {
    match conf.upgrade_socket.as_str() {
        "" => usual_folder(user(), &std::env::temp_dir()).join(NAME),
        path => PathBuf::from(path),
    }
}

/// The same for both processes, whatever session or service each of them is in.
fn usual_folder(user: u32, temporary: &Path) -> PathBuf {
    match user {
        0 => PathBuf::from("/run/weir"),
        user => temporary.join(format!("weir-{user}")),
    }
}

/// The folder of the socket is there, and nobody else may write to it. `make`: it is made if it is not there.
fn check(socket: &Path, make: bool) -> Result<(), String> {
    let folder = match socket.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if make {
        match std::fs::DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.raw_os_error() != Some(Errno::EXIST.raw_os_error()) => {
                return Err(format!("{}: {error}", folder.display()));
            }
            _ => {}
        }
    }
    let is_link = |at: &Path| at.symlink_metadata().is_ok_and(|about| about.file_type().is_symlink());
    if make && is_link(folder) {
        return Err(format!("{} is a link, which somebody else may have made", folder.display()));
    }
    private::is_kept_from_others(folder, user())
}

/// To be connected to by this user alone.
pub fn close_to_others(socket: &Path) -> std::io::Result<()> {
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
}

fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(path: &Path, mode: u32) {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    #[test]
    fn without_a_path_it_is_in_a_folder_of_the_user() {
        let admin = weir_conf::Config::default().admin;
        assert!(admin.upgrade_socket.is_empty() && of(&admin).ends_with(NAME));
        assert_eq!(usual_folder(0, Path::new("/tmp")), Path::new("/run/weir"));
        assert_eq!(usual_folder(1000, Path::new("/tmp")), Path::new("/tmp/weir-1000"));
        let own = Admin { upgrade_socket: "/run/edge/x.sock".into(), ..admin };
        assert_eq!(of(&own), Path::new("/run/edge/x.sock"));
    }

    #[test]
    fn a_folder_where_others_may_write_is_none() {
        let home = tempfile::tempdir().unwrap();
        let made = home.path().join("weir-1/upgrade.sock");
        assert!(check(&made, false).is_err(), "it is not there");
        check(&made, true).unwrap();
        check(&made, true).unwrap();
        check(&made, false).unwrap();
        let folder = made.parent().unwrap();
        assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        for mode in [0o777, 0o1777, 0o770, 0o702] {
            set(folder, mode);
            let why = check(&made, true).unwrap_err();
            assert!(why.contains("others may write"), "{mode:o}: {why}");
        }
        set(folder, 0o755);
        check(&made, true).unwrap();
        let link = home.path().join("weir-2");
        std::os::unix::fs::symlink(folder, &link).unwrap();
        assert!(check(&link.join(NAME), true).unwrap_err().contains("is a link"));
        // One of the operator's own is warned of, and used.
        let conf = |path: &Path| Admin {
            upgrade_socket: path.display().to_string(),
            ..weir_conf::Config::default().admin
        };
        let open = conf(Path::new("/tmp/weir-upgrade.sock"));
        assert!(judge(&open).unwrap().contains("others may write to /tmp"));
        assert_eq!(socket(&open, Side::Predecessor).unwrap(), Path::new("/tmp/weir-upgrade.sock"));
        assert_eq!(judge(&conf(&made)), None);
        assert_eq!(judge(&weir_conf::Config::default().admin), None);
    }
}
