//! What it takes to be let in by an etcd: certificates, and a user with a password.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aquifer_scheduler::store::{Address, EtcdAccess};

use crate::output::Failure;
use crate::settings::{self, Settings};

/// Flags of whoever opens a store.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "A store in etcd")]
pub struct EtcdArgs {
    /// File with the certificates of authorities, in PEM, one of which must have signed the certificates of etcd's
    /// members; TLS is spoken then. Default: no TLS
    #[arg(long, env = "AQUIFER_ETCD_CA", value_name = "FILE")]
    pub etcd_ca: Option<PathBuf>,
    /// File with the certificate that etcd is shown, in PEM; needs --etcd-ca. Default: none
    #[arg(long, env = "AQUIFER_ETCD_CERT", value_name = "FILE")]
    pub etcd_cert: Option<PathBuf>,
    /// File with the key of that certificate, in PEM
    #[arg(long, env = "AQUIFER_ETCD_KEY", value_name = "FILE")]
    pub etcd_key: Option<PathBuf>,
    /// User of etcd, who may read and write all keys below the prefix. Default: none
    #[arg(long, env = "AQUIFER_ETCD_USER", value_name = "NAME")]
    pub etcd_user: Option<String>,
    /// File with that user's password
    #[arg(long, env = "AQUIFER_ETCD_PASSWORD_FILE", value_name = "FILE")]
    pub etcd_password_file: Option<PathBuf>,
}

impl EtcdArgs {
    /// With what the file of settings says beside the flags.
    ///
    /// # Errors
    /// As [`Settings::take`].
    pub fn settled(&self, settings: &mut Settings) -> Result<EtcdArgs, Failure> {
        let mut file = |name, flag| settings::file(settings, name, flag);
        Ok(EtcdArgs {
            etcd_ca: file("etcd-ca", &self.etcd_ca)?,
            etcd_cert: file("etcd-cert", &self.etcd_cert)?,
            etcd_key: file("etcd-key", &self.etcd_key)?,
            etcd_password_file: file("etcd-password-file", &self.etcd_password_file)?,
            etcd_user: settings.take_optional("etcd-user", self.etcd_user.as_ref(), |it| Ok(it.into()))?,
        })
    }

    /// The address of a store, with what it takes to be let in if it is in etcd.
    ///
    /// # Errors
    /// A file cannot be read, or one goes without another.
    pub fn enter(&self, address: Address) -> Result<Address, Failure> {
        let Address::Etcd(mut etcd) = address else { return Ok(address) };
        let identity = match both(["--etcd-cert", "--etcd-key"], &self.etcd_cert, &self.etcd_key)? {
            None => None,
            Some((certificate, key)) => Some((read("--etcd-cert", certificate)?, read("--etcd-key", key)?)),
        };
        let names = ["--etcd-user", "--etcd-password-file"];
        let user = match both(names, &self.etcd_user, &self.etcd_password_file)? {
            None => None,
            Some((user, file)) => Some((user.clone(), read(names[1], file)?.trim_end().into())),
        };
        let ca = self.etcd_ca.as_deref().map(|file| read("--etcd-ca", file)).transpose()?;
        if ca.is_none() && identity.is_some() {
            return Err(Failure::usage(
                "--etcd-cert is given without --etcd-ca",
                "Give it as well: certificates are shown only where TLS is spoken.",
            ));
        }
        if ca.is_none() && user.is_some() && !etcd.members.iter().all(|member| is_here(member)) {
            return Err(Failure::usage(
                format!("{etcd}: a password would travel in clear text"),
                "Name the authority of etcd's certificates with --etcd-ca.",
            ));
        }
        etcd.access = EtcdAccess { ca, identity, user };
        Ok(Address::Etcd(etcd))
    }
}

/// What goes together, if it is given.
fn both<'a, A, B>(
    [one, other]: [&str; 2],
    a: &'a Option<A>,
    b: &'a Option<B>,
) -> Result<Option<(&'a A, &'a B)>, Failure> {
    match (a, b) {
        (None, None) => Ok(None),
        (Some(a), Some(b)) => Ok(Some((a, b))),
        _ => Err(Failure::usage(format!("of {one} and {other} only one is given"), "Give both, or neither.")),
    }
}

/// Whether `host:port` is of this machine.
fn is_here(member: &str) -> bool {
    let host = member.rsplit_once(':').map_or(member, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

fn read(flag: &str, file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file).map_err(|error| {
        Failure::usage(format!("{flag} {}: {error}", file.display()), "Name a file that can be read.")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_belongs_together_is_given_together_and_no_password_in_clear_text() {
        let file = std::env::temp_dir().join(format!("aquifer-etcd-{}", std::process::id()));
        fs::write(&file, "secret\n").expect("a file");
        let some = || Some(file.clone());
        let enter = |store: &str, args: EtcdArgs| args.enter(store.parse().expect("a store"));
        let sentence = |args: EtcdArgs| enter("etcd://10.0.0.1:2379", args).expect_err("refused").sentence;
        let none = EtcdArgs::default;
        assert!(enter("/a/file", EtcdArgs { etcd_cert: some(), ..none() }).is_ok(), "no etcd");
        let lonely = "of --etcd-cert and --etcd-key only one is given";
        assert_eq!(sentence(EtcdArgs { etcd_cert: some(), ..none() }), lonely);
        let user = || EtcdArgs { etcd_user: Some("a".into()), etcd_password_file: some(), ..none() };
        let clear = "etcd://10.0.0.1:2379/aquifer: a password would travel in clear text";
        assert_eq!(sentence(user()), clear);
        let bare = EtcdArgs { etcd_cert: some(), etcd_key: some(), ..none() };
        assert_eq!(sentence(bare), "--etcd-cert is given without --etcd-ca");
        for store in ["etcd://127.0.0.1:1", "etcd://[::1]:1,localhost:2"] {
            let Address::Etcd(etcd) = enter(store, user()).expect("it stays here") else { unreachable!() };
            assert_eq!(etcd.access.user, Some(("a".into(), "secret".into())));
            assert!(!format!("{etcd:?}").contains("secret"), "{etcd:?}");
        }
        fs::remove_file(file).expect("it is there");
    }
}
