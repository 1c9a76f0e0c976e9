//! Names of images of containers.

use aquifer_core::Name;

use super::{Checked, Invalid};

/// Checks the name of an image: `[HOST[:PORT]/]PATH[:TAG][@ALGORITHM:DIGEST]`, as engines and registries read it.
/// It is an argument of the engine's: so it begins with no hyphen.
///
/// Source: distribution/reference, `reference.go`.
pub(super) fn image(field: &str, value: &str) -> Checked<Name> {
    let is_image = || {
        let (name, digest) = split_last(value, '@');
        let (path, tag) = match split_last(name, ':') {
            (path, Some(tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (name, None),
        };
        let (host, path) = match path.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), path),
            _ => (None, path),
        };
        host.is_none_or(is_host)
            && path.split('/').all(|part| is_word(part, |c| c.is_ascii_lowercase() || c.is_ascii_digit()))
            && tag.is_none_or(is_tag)
            && digest.is_none_or(is_digest)
    };
    match value.len() <= 512 && is_image() {
        true => Ok(value.into()),
        false => {
            let allowed =
                "expected the name of an image, like registry.example.com/team/app:1.2 or app@sha256:…";
            Err(Invalid::new(field, format!("{value:?}"), allowed))
        }
    }
}

fn split_last(text: &str, at: char) -> (&str, Option<&str>) {
    text.rsplit_once(at).map_or((text, None), |(before, after)| (before, Some(after)))
}

/// Begins and ends with such characters, with `.`, `_` and `-` between them.
fn is_word(text: &str, own: impl Fn(char) -> bool) -> bool {
    text.starts_with(&own) && text.ends_with(&own) && text.chars().all(|c| own(c) || "._-".contains(c))
}

fn is_host(text: &str) -> bool {
    let (name, port) = text.split_once(':').unwrap_or((text, "443"));
    is_word(name, |c| c.is_ascii_alphanumeric()) && port.parse::<u16>().is_ok_and(|port| port != 0)
}

fn is_tag(text: &str) -> bool {
    let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.len() <= 128 && text.starts_with(first) && text.chars().all(|c| first(c) || ".-".contains(c))
}

fn is_digest(text: &str) -> bool {
    text.split_once(':').is_some_and(|(algorithm, digest)| {
        is_word(algorithm, |c| c.is_ascii_alphanumeric())
            && 32 <= digest.len()
            && digest.chars().all(|c| c.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_that_engines_take() {
        let digest = format!("app@sha256:{}", "0f".repeat(32));
        for name in [
            "app",
            "team/app:1.2",
            "localhost/app",
            "localhost:5000/a/b-c_d.e:V1_x",
            "docker.io/app",
            &digest,
        ] {
            assert_eq!(image("image", name).as_deref(), Ok(name), "{name}");
        }
    }

    #[test]
    fn names_are_refused_that_are_none_or_that_an_engine_would_take_for_a_flag() {
        let long = "a".repeat(513);
        for name in [
            "",
            "--privileged",
            "-v/:/x",
            "App",
            "app:",
            "app:-1",
            "a b",
            "a//b",
            "/a",
            "a/",
            "app@sha256:12",
            "a\n",
            "reg.example.com:x/app",
            "reg.example.com:0/app",
            ":1",
            "-a.b/app",
            "app:1:2",
            &long,
        ] {
            let refused = image("roles[0].request.image", name).expect_err(name).to_string();
            assert!(refused.starts_with("roles[0].request.image is \""), "{refused}");
        }
    }
}
