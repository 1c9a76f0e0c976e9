//! Where checkpoints are: a directory, or a URL.

use crate::args::UsageError;
use std::fmt;
use std::path::PathBuf;
use url::Url;

/// What a place may be.
const ALLOWED: &str = "it is a directory, or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or \
                       file:///DIRECTORY, without credentials, query or fragment";

/// Where checkpoints are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory.
    Directory(PathBuf),
    /// Below a URL of an object store.
    Store(Url),
}

impl Place {
    /// Reads a path, or a URL of an object store. `option` is where it was given.
    ///
    /// # Errors
    /// A URL of another kind, or one with more in it than a place. Secrets in it are not repeated.
    pub fn parse(option: &'static str, text: &str) -> Result<Place, UsageError> {
        if !text.contains("://") {
            return match text.is_empty() {
                true => Err(UsageError::new(option, "empty", ALLOWED)),
                false => Ok(Place::Directory(text.into())),
            };
        }
        let url = Url::parse(text).ok().filter(|url| {
            let is_known = match url.scheme() {
                "s3" | "gs" | "az" => url.host_str().is_some_and(|host| !host.is_empty()),
                "file" => url.host_str().is_none() && url.to_file_path().is_ok(),
                _ => false,
            };
            let has_secrets = !url.username().is_empty() || url.password().is_some();
            is_known
                && !has_secrets
                && url.port().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
        });
        url.map(Place::Store).ok_or_else(|| UsageError::new(option, shown(text), ALLOWED))
    }
}

/// A URL without what may be secret in it.
fn shown(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    match (text.find("://"), text.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://…{}", &text[..scheme], &text[at..]),
        _ => text.to_string(),
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Directory(path) => path.display().fmt(out),
            Place::Store(url) => url.as_str().trim_end_matches('/').fmt(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_path_or_a_url_of_a_store() {
        let parse = |text| Place::parse("--checkpoint-dir", text);
        assert_eq!(parse("a/b").unwrap(), Place::Directory("a/b".into()));
        for url in ["s3://bucket/run/7", "gs://bucket", "az://container/a", "file:///tmp/a"] {
            assert_eq!(parse(url).unwrap().to_string(), url);
        }
        for url in ["ftp://a/b", "s3:///b", "file://host/a", "https://s3.amazonaws.com/a", "s3://a/b?c=d"] {
            let error = parse(url).unwrap_err().to_string();
            let value = url.split('?').next().unwrap();
            let start = format!("--checkpoint-dir is {value}; it is a directory, or s3://BUCKET/PREFIX, ");
            assert!(error.starts_with(&start), "{error}");
        }
    }

    #[test]
    fn what_is_secret_in_a_url_is_not_repeated() {
        for url in
            ["s3://key:hidden@bucket/a", "s3://bucket/a?sig=hidden", "https://hidden@a/b", "az://a/b#hidden"]
        {
            let error = Place::parse("--checkpoint-dir", url).unwrap_err().to_string();
            assert!(!error.contains("hidden") && error.contains("without credentials"), "{error}");
        }
    }
}
