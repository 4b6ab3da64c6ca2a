//! `weir cert self-signed`: a certificate for development, and what a page needs to trust it over WebTransport.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use weir_core::private;
use weir_proxy::{MAX_PINNED_DAYS, SelfSigned, self_signed};

#[derive(Args)]
pub struct CertArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write cert.pem and key.pem for development, signed by nobody
    SelfSigned(SelfSignedArgs),
}

#[derive(Args)]
struct SelfSignedArgs {
    /// Names and addresses that it is for
    #[arg(long, value_delimiter = ',', default_values = ["localhost", "127.0.0.1", "::1"])]
    names: Vec<String>,
    /// How long it is valid; browsers take no more than 14 days for serverCertificateHashes
    #[arg(long, default_value_t = 13, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Where to write the two files
    #[arg(long, default_value = ".", value_name = "DIR")]
    out: PathBuf,
    /// Overwrite files that are there
    #[arg(long)]
    force: bool,
}

pub fn main(args: &CertArgs) -> ExitCode {
    let Command::SelfSigned(args) = &args.command;
    match write(args) {
        Ok(text) => {
            // A closed pipe is the reader's choice; the files are there.
            let _closed = io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("weir: {why}");
            ExitCode::FAILURE
        }
    }
}

fn write(args: &SelfSignedArgs) -> Result<String, String> {
    if args.names.iter().any(String::is_empty) {
        return Err("--names: an empty name; accepted: localhost,127.0.0.1".to_owned());
    }
    let made = self_signed(&args.names, args.days).map_err(|why| format!("no certificate: {why}"))?;
    let (cert, key) = (args.out.join("cert.pem"), args.out.join("key.pem"));
    let there = |file: &&PathBuf| file.symlink_metadata().is_ok();
    if let (false, Some(file)) = (args.force, [&cert, &key].into_iter().find(there)) {
        return Err(format!("{} is there already; --force overwrites it", file.display()));
    }
    let told = |file: &Path, error: io::Error| format!("cannot write {}: {error}", file.display());
    std::fs::create_dir_all(&args.out).map_err(|error| told(&args.out, error))?;
    for (file, text, mode) in [(&key, &made.key_pem, 0o600), (&cert, &made.cert_pem, 0o644)] {
        put(file, text, mode, args.force).map_err(|error| told(file, error))?;
    }
    if args.days > MAX_PINNED_DAYS {
        eprintln!(
            "weir: warning: {} days: browsers take {MAX_PINNED_DAYS} at most for serverCertificateHashes",
            args.days
        );
    }
    Ok(report(args, &cert, &key, &made))
}

/// Nobody else may read the key at any moment, be it by a file that was open before, and a file that came meanwhile
/// is not overwritten.
fn put(file: &Path, text: &str, mode: u32, force: bool) -> io::Result<()> {
    if !force {
        private::options().write(true).create_new(true).open(file)?;
    }
    private::replace(file, text.as_bytes(), mode)
}

fn report(args: &SelfSignedArgs, cert: &Path, key: &Path, made: &SelfSigned) -> String {
    let hex: Vec<String> = made.sha256.iter().map(|byte| format!("{byte:02X}")).collect();
    let base64 = STANDARD.encode(made.sha256);
    let host = match &args.names[0] {
        name if name.parse::<std::net::Ipv6Addr>().is_ok() => format!("[{name}]"),
        name => name.trim_start_matches("*.").to_owned(),
    };
    let page = format!(
        "\n\
         In a page, for WebTransport:\n\
         \n\
         new WebTransport(\"https://{host}:8443/connection/webtransport\", {{\n\
         \x20 serverCertificateHashes: [{{\n\
         \x20   algorithm: \"sha-256\",\n\
         \x20   value: Uint8Array.from(atob(\"{base64}\"), c => c.charCodeAt(0)),\n\
         \x20 }}],\n\
         }});\n",
    );
    // Browsers would refuse it there.
    let page = if args.days > MAX_PINNED_DAYS { "" } else { &page };
    format!(
        "wrote     {}, {}\n\
         for       {}\n\
         valid     {} days\n\
         SHA-256   {}\n\
         base64    {base64}\n\
         \n\
         In the conf:\n\
         \n\
         [proxy.tls]\n\
         listen = \"127.0.0.1:8443\"\n\
         certificates = [{{ cert = {:?}, key = {:?} }}]\n\
         {page}",
        cert.display(),
        key.display(),
        args.names.join(", "),
        args.days,
        hex.join(":"),
        cert.display().to_string(),
        key.display().to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    fn args(out: &Path) -> SelfSignedArgs {
        let names = vec!["a.example".to_owned(), "127.0.0.1".to_owned()];
        SelfSignedArgs { names, days: 13, out: out.to_owned(), force: false }
    }

    #[test]
    fn two_files_and_never_over_others() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("certs");
        let told = write(&args(&out)).unwrap();
        assert!(told.contains("https://a.example:8443/"), "{told}");
        let mode = |name: &str| out.join(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("key.pem"), mode("cert.pem")), (0o600, 0o644));
        let read = || std::fs::read_to_string(out.join("key.pem")).unwrap();
        let first = read();
        assert!(write(&args(&out)).unwrap_err().contains("--force"));
        assert_eq!(read(), first);
        // A key that everybody could read is narrowed before the new one is in it.
        std::fs::set_permissions(out.join("key.pem"), Permissions::from_mode(0o644)).unwrap();
        write(&SelfSignedArgs { force: true, ..args(&out) }).unwrap();
        assert_ne!(read(), first);
        assert_eq!(mode("key.pem"), 0o600);
    }

    #[test]
    fn what_cannot_be_a_name_is_said() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["", "bücher.example"] {
            let named = SelfSignedArgs { names: vec![name.to_owned()], ..args(folder.path()) };
            assert!(write(&named).is_err(), "{name:?}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
