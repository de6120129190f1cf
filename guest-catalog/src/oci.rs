//! Addresses of container images in registries: `docker://HOST/NAME[:TAG][@DIGEST]`, as skopeo(1) writes them.
//!
//! Names and tags are those of the OCI Distribution Specification 1.1, "Pulling manifests". The host is always named.
use crate::format;

const SECURE: &str = "docker://";
const PLAIN: &str = "docker+http://";
/// Longest host with name: what clients agree on.
const MAX_NAME_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OciReference {
    /// Host, with a port if it has one.
    pub host: String,
    /// The repository, e.g. `library/nginx`.
    pub name: String,
    /// The tag, `latest` where none is said.
    pub tag: String,
    /// Digest of the manifest or list, `sha256:` and 64 hexadecimal digits; it counts more than the tag.
    pub digest: Option<String>,
    /// Whether the registry is asked without TLS: `docker+http://`.
    pub plain_http: bool,
}

impl OciReference {
    /// Whether `image` of a definition means a registry, not a file.
    #[must_use]
    pub fn is_meant(image: &str) -> bool {
        image.starts_with(SECURE) || image.starts_with(PLAIN)
    }

    /// Reads a reference; `None` if it is not one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (rest, plain_http) = match text.strip_prefix(SECURE) {
            Some(rest) => (rest, false),
            None => (text.strip_prefix(PLAIN)?, true),
        };
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.to_owned())),
            None => (rest, None),
        };
        let (host, path) = rest.split_once('/')?;
        let (name, tag) = path.split_once(':').unwrap_or((path, "latest"));
        let is_good = rest.len() <= MAX_NAME_BYTES + MAX_TAG_BYTES
            && is_host(host)
            && host.len() + name.len() < MAX_NAME_BYTES
            && name.split('/').all(is_component)
            && is_tag(tag)
            && digest
                .as_ref()
                .is_none_or(|digest| format::check("oci-digest", digest).is_ok());
        is_good.then(|| Self {
            host: host.to_owned(),
            name: name.to_owned(),
            tag: tag.to_owned(),
            digest,
            plain_http,
        })
    }

    /// The same image, held to `digest`, without its tag.
    #[must_use]
    pub fn pinned(&self, digest: &str) -> String {
        let scheme = if self.plain_http { PLAIN } else { SECURE };
        format!("{scheme}{}/{}@{digest}", self.host, self.name)
    }

    /// Whether the registry is on this host: then it is asked without TLS.
    #[must_use]
    pub fn is_here(&self) -> bool {
        let host = match self.host.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => host,
            _ => &self.host,
        };
        matches!(host, "127.0.0.1" | "localhost" | "[::1]")
    }
}

impl std::fmt::Display for OciReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.digest {
            Some(digest) => f.write_str(&self.pinned(digest)),
            None => {
                let scheme = if self.plain_http { PLAIN } else { SECURE };
                write!(f, "{scheme}{}/{}:{}", self.host, self.name, self.tag)
            }
        }
    }
}

/// A name with a dot, `localhost`, or anything with a port: otherwise `docker://nginx/x` would be a host called `nginx`.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    let is_v6 = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok());
    let is_name = host
        .split('.')
        .all(|label| format::check("host-name", label).is_ok())
        && (port.is_some() || host.contains('.') || host == "localhost");
    (is_v6 || is_name) && port.is_none_or(is_port)
}

/// Letters and digits, between them one `.`, one or two `_`, or any number of `-`.
fn is_component(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(is_word)
        && text.ends_with(is_word)
        && text
            .split(is_word)
            .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=MAX_TAG_BYTES).contains(&text.len())
        && text.starts_with(is_word)
        && text.chars().all(|c| is_word(c) || ".-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_and_written() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, again) in [
            (
                "docker://registry.example/web",
                "docker://registry.example/web:latest",
            ),
            (
                "docker://registry.example:5000/a/b_c-d.e:1.0-x",
                "docker://registry.example:5000/a/b_c-d.e:1.0-x",
            ),
            (
                "docker+http://localhost/web:1",
                "docker+http://localhost/web:1",
            ),
            ("docker://[::1]:5000/web:1", "docker://[::1]:5000/web:1"),
        ] {
            let reference = OciReference::parse(text).unwrap();
            assert_eq!(reference.to_string(), again);
        }
        let pinned = format!("docker://registry.example/web:1@{digest}");
        let reference = OciReference::parse(&pinned).unwrap();
        assert_eq!(reference.digest.as_deref(), Some(digest.as_str()));
        assert_eq!(
            reference.to_string(),
            format!("docker://registry.example/web@{digest}")
        );
        let is_here = |text| OciReference::parse(text).unwrap().is_here();
        assert!(
            is_here("docker://127.0.0.1:5000/a")
                && is_here("docker://[::1]/a")
                && is_here("docker://localhost/a")
        );
        assert!(
            !is_here("docker://127.0.0.1.example/a") && !is_here("docker://localhost.example:1/a")
        );
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in [
            "registry.example/web",
            "https://registry.example/web",
            "docker://nginx",
            "docker://nginx/web",
            "docker:///web",
            "docker://registry.example/",
            "docker://registry.example/Web",
            "docker://registry.example/a//b",
            "docker://registry.example/../b",
            "docker://registry.example/a..b",
            "docker://registry.example/web:",
            "docker://registry.example/web:a/b",
            "docker://registry.example/web:.a",
            "docker://registry.example/web?x",
            "docker://user:pw@registry.example/web",
            "docker://registry.example:0/web",
            "docker://registry.example:99999/web",
            "docker://[::g]/web",
            "docker://registry.example/web@sha256:0",
            "docker://registry.example/web\n",
        ] {
            assert!(OciReference::parse(text).is_none(), "{text}");
        }
        let long = format!("docker://registry.example/{}", "a".repeat(255));
        assert!(OciReference::parse(&long).is_none());
    }
}
