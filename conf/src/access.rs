//! Who else may read a file that holds a secret.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

/// Who else may do what with it, in words for an operator that a file's name follows; `None`: nobody anything.
///
/// As PostgreSQL has it for its keys: a file of root's may be read by a group, since that is how a service gets
/// one that it does not own (`root:ssl-cert`, a secret of Kubernetes); one of its own needs no group.
pub fn exposed(about: &Metadata) -> Option<&'static str> {
    let mode = about.permissions().mode() & 0o777;
    let shared = if about.uid() == 0 { 0o040 } else { 0 };
    match mode & 0o066 & !shared {
        0 => None,
        wide if wide & 0o004 != 0 => Some("every user of this machine can read"),
        wide if wide & 0o022 != 0 => Some("others can change"),
        _ => Some("a whole group can read"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_else_may_read_a_file_is_said() {
        let file = std::env::temp_dir().join(format!("weir-exposed-{}", std::process::id()));
        std::fs::write(&file, "x").unwrap();
        let of_root = std::fs::metadata(&file).unwrap().uid() == 0;
        let group = if of_root { None } else { Some("a whole group") };
        for (mode, said) in [
            (0o600, None),
            (0o400, None),
            (0o700, None),
            (0o711, None),
            (0o640, group),
            (0o440, group),
            (0o644, Some("every user")),
            (0o604, Some("every user")),
            (0o666, Some("every user")),
            (0o660, Some("others can change")),
            (0o602, Some("others can change")),
        ] {
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
            let found = exposed(&std::fs::metadata(&file).unwrap());
            assert_eq!(found.is_some(), said.is_some(), "{mode:o}: {found:?}");
            assert!(found.unwrap_or_default().contains(said.unwrap_or_default()), "{mode:o}");
        }
        std::fs::remove_file(&file).unwrap();
    }
}
