//! Where a store is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Names a store: a file, or a prefix of keys in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The embedded store.
    File(PathBuf),
    /// etcd.
    Etcd(EtcdAddress),
}

/// Members of an etcd cluster, and where in it the pool's keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdAddress {
    /// `host:port` of each.
    pub members: Vec<String>,
    /// All keys of the pool begin with it and a `/`.
    pub prefix: String,
    /// What it takes to be let in.
    pub access: EtcdAccess,
}

/// Certificates, in PEM, and a password. They are never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct EtcdAccess {
    /// Of authorities that sign the members' certificates; `None`: there is no TLS.
    pub ca: Option<String>,
    /// What the members are shown, and its key.
    pub identity: Option<(String, String)>,
    /// A user, and the password.
    pub user: Option<(String, String)>,
}

impl fmt::Debug for EtcdAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = self.user.as_ref().map(|(name, _)| name);
        f.debug_struct("EtcdAccess").field("tls", &self.ca.is_some()).field("user", &user).finish()
    }
}

impl FromStr for Address {
    type Err = String;

    /// Reads `etcd://HOST:PORT[,HOST:PORT…][/PREFIX]`, or the path of a file.
    fn from_str(text: &str) -> Result<Address, String> {
        let Some(rest) = text.strip_prefix("etcd://") else {
            return match text.split_once("://") {
                Some((scheme, _)) => Err(format!("{scheme}:// is not known: expected etcd:// or a file")),
                None => {
                    std::path::absolute(text).map(Address::File).map_err(|error| format!("no path: {error}"))
                }
            };
        };
        let (members, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_member = |member: &str| {
            let port = member.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            port.is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port != 0))
        };
        let members: Vec<String> = members.split(',').map(Into::into).collect();
        if let Some(member) = members.iter().find(|member| !is_member(member)) {
            return Err(format!("{member:?} is no member of etcd: expected HOST:PORT"));
        }
        let prefix = prefix.trim_matches('/');
        let is_fine = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if !prefix.chars().all(is_fine) {
            return Err(format!("prefix {prefix:?}: expected letters, digits and -_./"));
        }
        let prefix = format!("/{}", if prefix.is_empty() { "aquifer" } else { prefix });
        Ok(Address::Etcd(EtcdAddress { members, prefix, access: EtcdAccess::default() }))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::File(path) => path.display().fmt(f),
            Address::Etcd(etcd) => etcd.fmt(f),
        }
    }
}

impl fmt::Display for EtcdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd://{}{}", self.members.join(","), self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_they_are_written() {
        for (text, reads_as) in [
            ("etcd://a:2379", "etcd://a:2379/aquifer"),
            (
                "etcd://a:2379,10.0.0.1:1,[::1]:2379/pools/one/",
                "etcd://a:2379,10.0.0.1:1,[::1]:2379/pools/one",
            ),
            ("/var/lib/store.redb", "/var/lib/store.redb"),
        ] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()), Ok(reads_as.into()));
            assert_eq!(reads_as.parse::<Address>(), text.parse());
        }
        for (text, why) in [
            ("etcd://", "\"\" is no member of etcd: expected HOST:PORT"),
            ("etcd://a", "\"a\" is no member of etcd: expected HOST:PORT"),
            ("etcd://a:1,b:0", "\"b:0\" is no member of etcd: expected HOST:PORT"),
            ("etcd://a:1/x y", "prefix \"x y\": expected letters, digits and -_./"),
            ("redis://a:1", "redis:// is not known: expected etcd:// or a file"),
        ] {
            assert_eq!(text.parse::<Address>(), Err(why.into()));
        }
    }
}
