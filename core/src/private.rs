//! Files and folders that are nobody else's business: how they are made, and narrowed where they are there.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Rights of the group and of all others.
const OTHERS: u32 = 0o077;

/// Makes a folder with all above it that are missing, for this user alone; one that is there is narrowed. One of
/// another user's stays as it is, and is said: that is how some systems hand out their volumes.
pub fn folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    narrow(path)
}

/// Takes the rights of all others from a file or folder.
pub fn narrow(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode() & 0o7777;
    if mode & OTHERS == 0 {
        return Ok(());
    }
    match fs::set_permissions(path, Permissions::from_mode(mode & !OTHERS)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let mode = format!("{mode:04o}");
            tracing::warn!(path = %path.display(), mode, "others may look into what is another user's, and it cannot be narrowed");
            Ok(())
        }
        outcome => outcome,
    }
}

/// Narrows the files of a folder, as an earlier version may have left them; links are left alone.
pub fn narrow_files(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type() {
            Ok(kind) if kind.is_file() => match narrow(&entry.path()) {
                // Gone meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                outcome => outcome?,
            },
            _ => {}
        }
    }
    Ok(())
}

/// How files are opened that are made by it: for this user alone.
pub fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// A file that is written whole or not at all, in place of what was there; its mode is the given one from its
/// first moment on.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    // One that a crash left behind may have any mode, or be open elsewhere.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    // Whatever the process's mask leaves of it.
    file.set_permissions(Permissions::from_mode(mode))?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// Whether all of this can be reached by this user and root alone: `path` is a folder, and nobody else can put
/// anything into it, or put another folder in its place. The error says what is not so.
pub fn is_kept_from_others(path: &Path, user: u32) -> Result<(), String> {
    let real = fs::canonicalize(path).map_err(|error| format!("{}: {error}", path.display()))?;
    for (depth, folder) in real.ancestors().enumerate() {
        let about = fs::metadata(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let mode = about.permissions().mode();
        let shown = folder.display();
        if !about.is_dir() {
            return Err(format!("{shown} is no folder"));
        }
        if about.uid() != user && about.uid() != 0 {
            return Err(format!("{shown} belongs to another user ({})", about.uid()));
        }
        // In a folder like /tmp others may put things, and not touch what is ours.
        let sticky = depth > 0 && mode & 0o1000 != 0;
        if mode & 0o022 != 0 && !sticky {
            return Err(format!("others may write to {shown} (mode {:04o})", mode & 0o7777));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// A folder of this test's, gone with it.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("weir-private-{name}-{}", std::process::id()));
            let _leftover = fs::remove_dir_all(&path);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _gone = fs::remove_dir_all(&self.0);
        }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_is_made_and_what_was_there_is_for_us_alone() {
        let home = Folder::new("made");
        let inner = home.0.join("a/b");
        folder(&inner).unwrap();
        assert_eq!((mode(&inner), mode(&home.0.join("a"))), (0o700, 0o700));
        let (wide, link) = (inner.join("wide"), inner.join("link"));
        fs::write(&wide, "x").unwrap();
        set(&wide, 0o664);
        let elsewhere = home.0.join("elsewhere");
        fs::write(&elsewhere, "x").unwrap();
        set(&elsewhere, 0o644);
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        set(&inner, 0o2775);
        folder(&inner).unwrap();
        narrow_files(&inner).unwrap();
        assert_eq!((mode(&inner), mode(&wide), mode(&elsewhere)), (0o2700, 0o600, 0o644));
        replace(&wide, b"next", 0o640).unwrap();
        assert_eq!((mode(&wide), fs::read(&wide).unwrap()), (0o640, b"next".to_vec()));
    }

    #[test]
    fn a_folder_is_ours_with_all_that_is_above_it() {
        let home = Folder::new("ours");
        let user = fs::metadata(&home.0).unwrap().uid();
        let inner = home.0.join("run");
        fs::create_dir(&inner).unwrap();
        for (outer, own, good) in [
            (0o700, 0o700, true),
            (0o755, 0o755, true),
            (0o1777, 0o700, true),
            (0o777, 0o700, false),
            (0o755, 0o1777, false),
            (0o755, 0o770, false),
            (0o755, 0o702, false),
        ] {
            set(&home.0, outer);
            set(&inner, own);
            assert_eq!(is_kept_from_others(&inner, user).is_ok(), good, "{outer:o} {own:o}");
        }
        set(&home.0, 0o700);
        set(&inner, 0o700);
        let stranger = is_kept_from_others(&inner, user + 1);
        assert_eq!(stranger.is_ok(), user == 0, "{stranger:?}");
        assert!(is_kept_from_others(&home.0.join("none"), user).is_err());
    }
}
