//! What a conf comes to on this machine: the files that it names are looked at as the start would, so that `weir
//! check`, a start and a reload say the same, each thing at the place in the conf that it is about.

use crate::handover;
use weir_conf::{Config, Errors, Loaded, Mistake, Sources};
use weir_proxy::judge::{NO_NAMES, Part, Weight, authorities, files, pair};

/// What for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// `weir check`: maybe on another machine than the one that it is for, so a missing file is a warning.
    Check,
    /// A start or a reload, here and now.
    Use,
}

/// As [`weir_conf::load`], and with what is wrong with files.
pub fn load(sources: &Sources, what_for: For) -> Result<Loaded, Errors> {
    let mut loaded = weir_conf::load(sources)?;
    let mut found = Found { what_for, wrong: Vec::new(), odd: Vec::new() };
    if loaded.config.roles.proxy {
        found.proxy(&loaded.config);
    }
    if loaded.config.roles.node {
        found.node(&loaded.config);
    }
    if loaded.config.roles.broker {
        found.broker(&loaded.config);
    }
    if let Some(text) = handover::judge(&loaded.config.admin) {
        found.say(Weight::Odd, "admin.upgrade_socket", text);
    }
    let placed = |(key, text): (String, String)| Mistake { place: loaded.place(&key), key, text };
    if let Some(errors) = Errors::new(found.wrong.into_iter().map(placed).collect()) {
        return Err(errors);
    }
    let warnings: Vec<Mistake> = found.odd.into_iter().map(placed).collect();
    loaded.warnings.extend(warnings);
    loaded.warnings.sort();
    loaded.warnings.dedup();
    Ok(loaded)
}

/// Each with the key that it is about.
struct Found {
    what_for: For,
    /// A start would fail.
    wrong: Vec<(String, String)>,
    odd: Vec<(String, String)>,
}

impl Found {
    fn say(&mut self, weight: Weight, key: impl Into<String>, text: String) {
        let list = match weight {
            Weight::Wrong => &mut self.wrong,
            Weight::Missing if self.what_for == For::Use => &mut self.wrong,
            Weight::Missing | Weight::Odd => &mut self.odd,
        };
        list.push((key.into(), text));
    }

    fn proxy(&mut self, config: &Config) {
        let tls = &config.proxy.tls;
        for (i, certificate) in tls.certificates.iter().enumerate() {
            let at = format!("proxy.tls.certificates[{i}]");
            let others: Vec<(String, &str)> = tls
                .certificates
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != i)
                .map(|(other, of)| (format!("proxy.tls.certificates[{other}]"), of.cert.as_str()))
                .collect();
            let keys = (format!("{at}.cert"), format!("{at}.key"));
            self.pair((&keys.0, &certificate.cert), (&keys.1, &certificate.key), &others);
        }
        if !tls.client_ca.is_empty() {
            self.authorities("proxy.tls.client_ca", &tls.client_ca);
        }
        self.wrong.extend(files(&config.proxy));
    }

    fn node(&mut self, config: &Config) {
        if let Err((key, text)) = weir_node::judge_token(&config.node.token) {
            self.say(Weight::Wrong, format!("node.token.{key}"), text);
        }
        let node = &config.node;
        if !config.roles.broker && !node.broker_tls_cert.is_empty() {
            let (cert, key) = (&node.broker_tls_cert, &node.broker_tls_key);
            self.pair(("node.broker_tls_cert", cert), ("node.broker_tls_key", key), &[]);
            self.authorities("node.broker_tls_ca", &node.broker_tls_ca);
        }
    }

    fn broker(&mut self, config: &Config) {
        let broker = &config.broker;
        if broker.has_tls() {
            self.pair(("broker.tls_cert", &broker.tls_cert), ("broker.tls_key", &broker.tls_key), &[]);
            self.authorities("broker.tls_ca", &broker.tls_ca);
        }
    }

    fn pair(&mut self, cert: (&str, &str), key: (&str, &str), others: &[(String, &str)]) {
        // A node shows its certificate as a client.
        let is_client = cert.0.starts_with("node.");
        for remark in pair(cert.1, key.1, others) {
            if is_client && remark.text == NO_NAMES {
                continue;
            }
            let at = if remark.part == Part::Cert { cert.0 } else { key.0 };
            self.say(remark.weight, at, remark.text);
        }
    }

    fn authorities(&mut self, key: &str, file: &str) {
        for (text, weight) in authorities(file) {
            self.say(weight, key, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn put(folder: &Path, name: &str) -> (String, String) {
        let made = weir_proxy::self_signed(&[format!("{name}.example")], 10).unwrap();
        let at = |end: &str| folder.join(format!("{name}.{end}")).to_str().unwrap().to_owned();
        for (path, text) in [(at("pem"), &made.cert_pem), (at("key"), &made.key_pem)] {
            write(&path, text).unwrap();
            set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        }
        (at("pem"), at("key"))
    }

    /// Each line that is said of a conf, with whether it stops a start.
    fn said(folder: &Path, text: &str) -> Vec<(bool, String)> {
        let file = folder.join("weir.toml");
        write(&file, text).unwrap();
        set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
        let short = |m: &Mistake| m.to_string().replace(&*folder.to_string_lossy(), "");
        match load(&Sources::new().file(&file), For::Use) {
            Ok(loaded) => loaded.warnings.iter().map(|m| (false, short(m))).collect(),
            Err(errors) => errors.iter().map(|m| (true, short(m))).collect(),
        }
    }

    #[test]
    fn what_is_wrong_with_a_pair_is_said_at_its_key() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path();
        let ((a_cert, a_key), (b_cert, b_key)) = (put(folder, "a"), put(folder, "b"));
        let (wide, both, none) = (folder.join("wide.key"), folder.join("both.pem"), folder.join("none.pem"));
        let [wide, both, none] = [&wide, &both, &none].map(|path| path.to_str().unwrap().to_owned());
        std::fs::copy(&a_key, &wide).unwrap();
        set_permissions(&wide, Permissions::from_mode(0o644)).unwrap();
        let read = |file: &str| std::fs::read_to_string(file).unwrap();
        write(&both, read(&b_cert) + &read(&a_cert)).unwrap();
        let conf = |pairs: &[(&str, &str)]| {
            let pairs: Vec<String> =
                pairs.iter().map(|(cert, key)| format!("{{ cert = {cert:?},\n key = {key:?} }}")).collect();
            format!(
                "roles = [\"proxy\"]\n[[proxy.route]]\nanswer = {{ status = 204 }}\n[proxy.tls]\nlisten = \"127.0.0.1:0\"\ncertificates = [{}]\n",
                pairs.join(", ")
            )
        };
        for (pairs, stops, key, line, text) in [
            (vec![(&*a_cert, &*a_key)], false, "", 0, ""),
            (vec![(&none, &*a_key)], true, "[0].cert", 6, "No such file"),
            (vec![(&*a_cert, &none)], true, "[0].key", 7, "No such file"),
            (vec![(&*a_key, &*a_cert)], true, "[0].cert", 6, "the certificate is where the key should be"),
            (vec![(&*a_cert, &*a_cert)], true, "[0].key", 7, "there is no private key in it"),
            (vec![(&*a_cert, &*b_key)], true, "[0].key", 7, "does not belong to the certificate"),
            (
                vec![(&*a_cert, &*b_key), (&*b_cert, &*a_key)],
                true,
                "[0].key",
                7,
                "it belongs to proxy.tls.certificates[1]",
            ),
            (vec![(&both, &*a_key)], true, "[0].key", 7, "it belongs to certificate 2 of the file"),
            (vec![(&both, &*b_key)], false, "[0].cert", 6, "out of order"),
            (vec![(&*a_cert, &wide)], false, "[0].key", 7, "every user of this machine can read"),
        ] {
            let got = said(folder, &conf(&pairs));
            let at = format!("/weir.toml:{line}:");
            let hit = |(stopped, said): &(bool, String)| {
                *stopped == stops && said.starts_with(&at) && said.contains(key) && said.contains(text)
            };
            assert!(if line == 0 { got.is_empty() } else { got.iter().any(hit) }, "{pairs:?}: {got:?}");
        }
    }

    #[test]
    fn a_secret_that_others_can_read_is_said_at_its_key() {
        let home = tempfile::tempdir().unwrap();
        let (secret, conf) = (home.path().join("secret"), home.path().join("conf.toml"));
        write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
        let text = format!(
            "[node.token]\nhmac_secret = \"file:{}\"\n[admin]\ntoken = \"x0123456789abcdefx\"\n",
            secret.display()
        );
        for (of_secret, of_conf, keys) in [
            (0o600, 0o600, vec![]),
            (0o644, 0o600, vec!["node.token.hmac_secret"]),
            (0o600, 0o644, vec!["admin.token"]),
            (0o666, 0o664, vec!["node.token.hmac_secret", "admin.token"]),
        ] {
            write(&conf, &text).unwrap();
            set_permissions(&secret, Permissions::from_mode(of_secret)).unwrap();
            set_permissions(&conf, Permissions::from_mode(of_conf)).unwrap();
            let loaded = load(&Sources::new().file(&conf), For::Use).unwrap();
            let hit = |m: &&Mistake| m.text.contains("can read");
            let found: Vec<&str> = loaded.warnings.iter().filter(hit).map(|m| &*m.key).collect();
            assert_eq!(found, keys, "{of_secret:o} {of_conf:o}");
            let lines = loaded.warnings.iter().map(ToString::to_string).collect::<String>();
            assert!(!lines.contains("0123456789"), "{lines}");
        }
        let told = load(&Sources::new().set("admin.token", "x0123456789abcdefx"), For::Use).unwrap().warnings;
        assert!(told.iter().any(|m| m.to_string().contains("command line")), "{told:?}");
    }

    #[test]
    fn keys_that_verify_nothing_and_sockets_for_everybody_are_said() {
        let home = tempfile::tempdir().unwrap();
        let stops = said(home.path(), "[node.token]\nrsa_public_key = \"no pem\"\n");
        assert!(
            stops.iter().any(|(stops, m)| *stops && m.contains(":2:18: node.token.rsa_public_key")),
            "{stops:?}"
        );
        let warned = said(home.path(), "[admin]\nupgrade_socket = \"/tmp/weir-upgrade.sock\"\n");
        assert!(
            warned.iter().any(|(stops, m)| !stops && m.contains(":2:18: admin.upgrade_socket")),
            "{warned:?}"
        );
        let own = home.path().join("upgrade.sock");
        let fine = said(home.path(), &format!("[admin]\nupgrade_socket = {:?}\n", own.display().to_string()));
        assert!(fine.is_empty(), "{fine:?}");
    }
}
