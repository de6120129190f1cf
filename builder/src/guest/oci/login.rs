//! Who we are to a registry: the user's own log-ins, and the tokens that registries ask for.
//!
//! In: docker's configuration file (`auths` of `config.json`, as `docker login` and `skopeo login` write it) and a registry's challenge
//! (RFC 9110 §11.6.1; RFC 6750 §3; Distribution's token specification). Out: a value of `Authorization`. Programs that keep
//! credentials (`credHelpers`) are not started.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use gasthaus_debian::fetch::Fetcher;
use guest_catalog::OciReference;
use headers::authorization::Credentials as _;
use http_auth::ChallengeRef;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::registry::{RegistryError, printable};

/// Most bytes of the configuration file, of a token's answer and of a token.
const MAX_CONFIG_BYTES: u64 = 1 << 20;
const MAX_ANSWER_BYTES: u64 = 64 << 10;
const MAX_TOKEN_BYTES: usize = 16 << 10;

#[derive(Debug, Default, Deserialize)]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

/// Nothing prints a password.
impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Auth")
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// `Authorization: Basic …` of the user for the registry, if the user has logged in there.
pub(super) fn of_user(reference: &OciReference) -> Result<Option<String>, RegistryError> {
    let folder = match std::env::var_os("DOCKER_CONFIG") {
        Some(folder) if !folder.is_empty() => PathBuf::from(folder),
        _ => match std::env::var_os("HOME") {
            Some(home) => PathBuf::from(home).join(".docker"),
            None => return Ok(None),
        },
    };
    let path = folder.join("config.json");
    let failed = |problem: String| RegistryError::Config {
        path: path.clone(),
        problem,
    };
    let mut text = Vec::new();
    let read =
        File::open(&path).and_then(|file| file.take(MAX_CONFIG_BYTES).read_to_end(&mut text));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
        Ok(_) => {}
    }
    // serde's words show no values but of the wrong type; positions say enough.
    let config: Config = serde_json::from_slice(&text)
        .map_err(|error| failed(format!("line {} is not as it should be", error.line())))?;
    from_config(&config, reference).map_err(failed)
}

fn from_config(config: &Config, reference: &OciReference) -> Result<Option<String>, String> {
    let host = &reference.host;
    let names = [host.clone(), format!("https://{host}")];
    let Some((name, auth)) = names
        .iter()
        .find_map(|name| config.auths.get_key_value(name))
    else {
        return Ok(None);
    };
    let is_base64 = |b: u8| b.is_ascii_alphanumeric() || b"+/=".contains(&b);
    match auth {
        Auth {
            auth: Some(auth), ..
        } if !auth.is_empty() => match auth.bytes().all(is_base64) {
            true => Ok(Some(format!("Basic {auth}"))),
            false => Err(format!("`auth` of `{name}` is no base64")),
        },
        Auth {
            username: Some(user),
            password: Some(password),
            ..
        } => {
            let basic = headers::Authorization::basic(user, password).0.encode();
            Ok(basic.to_str().ok().map(str::to_owned))
        }
        // Kept by a program, as an empty entry shows.
        _ => Ok(None),
    }
}

/// What answers the registry's challenges: `user` where it asks for a name and a password, else a token.
pub(super) fn answer(
    challenges: &[String],
    reference: &OciReference,
    user: Option<&str>,
    fetcher: &Fetcher,
) -> Result<String, RegistryError> {
    let denied = |problem: &str| RegistryError::Denied {
        image: reference.to_string(),
        host: reference.host.clone(),
        problem: problem.to_owned(),
    };
    let parsed: Vec<ChallengeRef<'_>> = challenges
        .iter()
        .flat_map(|text| http_auth::parser::ChallengeParser::new(text))
        .filter_map(Result::ok)
        .collect();
    let of_scheme = |scheme: &str| {
        let mut all = parsed.iter();
        all.find(|challenge| challenge.scheme.eq_ignore_ascii_case(scheme))
    };
    if let Some(bearer) = of_scheme("Bearer") {
        return token(bearer, reference, user, fetcher);
    }
    match (of_scheme("Basic"), user) {
        (Some(_), Some(user)) => Ok(user.to_owned()),
        (Some(_), None) => Err(denied("it asks for a name and a password")),
        (None, _) => Err(denied("it asks for a kind of log-in that is not known")),
    }
}

fn token(
    challenge: &ChallengeRef<'_>,
    reference: &OciReference,
    user: Option<&str>,
    fetcher: &Fetcher,
) -> Result<String, RegistryError> {
    let parameter = |name: &str| {
        let found = challenge
            .params
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_unescaped())
    };
    let realm = parameter("realm").unwrap_or_default();
    let odd = |found: String, expected: &'static str| RegistryError::Answer {
        url: printable(&realm),
        found,
        expected,
    };
    // The user's password goes there.
    let is_plain = realm
        .strip_prefix("http://")
        .is_some_and(|rest| reference.plain_http || is_here(rest));
    if !realm.starts_with("https://") && !is_plain {
        let found = format!("where `{}` asks us to log in", reference.host);
        return Err(odd(found, "an `https://` address"));
    }
    let scope = format!("repository:{}:pull", reference.name);
    let mut query = format!("scope={}", utf8_percent_encode(&scope, NON_ALPHANUMERIC));
    if let Some(service) = parameter("service") {
        query += &format!(
            "&service={}",
            utf8_percent_encode(&service, NON_ALPHANUMERIC)
        );
    }
    let joint = if realm.contains('?') { '&' } else { '?' };
    let url = format!("{realm}{joint}{query}");
    let headers: Vec<(&'static str, &str)> = user
        .map(|user| ("authorization", user))
        .into_iter()
        .collect();
    let label = format!("a token of {}", reference.host);
    let answer = fetcher.ask(&url, &headers, MAX_ANSWER_BYTES, &label)?;
    if answer.status != 200 {
        return Err(RegistryError::Denied {
            image: reference.to_string(),
            host: reference.host.clone(),
            problem: format!("it gives no token (status {})", answer.status),
        });
    }
    let found: Option<Token> = serde_json::from_slice(&answer.body).ok();
    let token = found.and_then(|found| found.token.or(found.access_token));
    // RFC 6750 §2.1: b64token.
    let is_token = |text: &String| {
        let is_one = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
        (1..=MAX_TOKEN_BYTES).contains(&text.len()) && text.bytes().all(is_one)
    };
    match token.filter(is_token) {
        Some(token) => Ok(format!("Bearer {token}")),
        None => Err(odd(
            "an answer without a token".to_owned(),
            "JSON with `token`",
        )),
    }
}

/// Whether an address without its scheme is one of this host.
fn is_here(rest: &str) -> bool {
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    OciReference::parse(&format!("docker://{host}/x")).is_some_and(|there| there.is_here())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_log_ins_are_found_by_host() {
        let config: Config = serde_json::from_str(
            r#"{"credsStore":"desktop","auths":{"a.example":{"auth":"QTpi"},"https://b.example":{"username":"A","password":"b"},
               "c.example":{},"d.example":{"auth":"x y"},"https://e.example":{"auth":"QTpi"}}}"#,
        )
        .unwrap();
        let of = |host: &str| {
            let reference = OciReference::parse(&format!("docker://{host}/x")).unwrap();
            from_config(&config, &reference)
        };
        for host in ["a.example", "b.example", "e.example"] {
            assert_eq!(of(host), Ok(Some("Basic QTpi".to_owned())), "{host}");
        }
        for host in ["c.example", "a.example:5000", "other.example"] {
            assert_eq!(of(host), Ok(None), "{host}");
        }
        assert_eq!(
            of("d.example").unwrap_err(),
            "`auth` of `d.example` is no base64"
        );
    }
}
