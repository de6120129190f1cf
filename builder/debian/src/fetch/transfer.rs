//! One file over HTTP (RFC 9110): resumed by range request, hashed while it streams in.
//!
//! A resumed transfer needs no `If-Range`: the digest of the whole decides, and a mixture of two versions fails it. One
//! that was resumed and comes out wrong is therefore fetched once more from the start before anybody is told.

use std::io::{self, Read};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::blocking::{Client, Response};
use reqwest::header::{
    AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, WWW_AUTHENTICATE,
};
use sha2::{Digest, Sha256, Sha512};

use super::cache::PartFile;
use super::client::classify;
use super::{Answer, FetchError, FetchOptions, Kind, Progress, Wanted};
use crate::digest::Sha256Digest;

const BUFFER_BYTES: usize = 64 * 1024;
/// Waits grow no longer than this.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Runs `attempt` until it succeeds, fails for good, or has been tried often enough.
pub(super) fn with_retries<T>(
    options: &FetchOptions,
    label: &str,
    progress: &dyn Progress,
    mut attempt: impl FnMut() -> Result<T, FetchError>,
) -> Result<T, FetchError> {
    let mut wait = options.first_wait;
    for _ in 1..options.attempts {
        match attempt() {
            Err(error) if error.is_passing() => {
                tracing::debug!("{error}; next attempt in {wait:?}");
                progress.retrying(label, &error, wait);
                std::thread::sleep(wait);
                wait = (wait * 2).min(MAX_WAIT);
            }
            done => return done,
        }
    }
    attempt()
}

/// Completes `part` so that it has the size and digest of `wanted`.
pub(super) fn download(
    client: &Client,
    options: &FetchOptions,
    wanted: &Wanted,
    part: &mut PartFile,
    progress: &dyn Progress,
) -> Result<(), FetchError> {
    let resumed = part.len_bytes()? > 0;
    match Transfer::new(client, options, wanted, part, progress).run() {
        Err(FetchError::WrongDigest { .. }) if resumed => {
            tracing::debug!(
                "`{}` was resumed and came out wrong: from the start again",
                wanted.label
            );
            Transfer::new(client, options, wanted, part, progress).run()
        }
        done => done,
    }
}

/// Fills `part` with what is at `url`, of at most `limit_bytes`, which must have the SHA-512 `expected`; SHA-256 and length of it. Not
/// resumed: where it breaks, it begins anew.
pub(super) fn download_by_sha512(
    client: &Client,
    options: &FetchOptions,
    (url, label): (&str, &str),
    expected: &[u8; 64],
    limit_bytes: u64,
    part: &mut PartFile,
    progress: &dyn Progress,
) -> Result<(Sha256Digest, u64), FetchError> {
    part.clear()?;
    let mut received = 0;
    let result = (|| {
        let request = client.get(url).send();
        let mut response = request.map_err(|e| classify(&e, options, label, url, 0))?;
        if response.status() != StatusCode::OK {
            return Err(refusal(response.status(), label, url, Kind::Input));
        }
        let (mut short, mut long) = (Sha256::new(), Sha512::new());
        let mut buffer = vec![0_u8; BUFFER_BYTES];
        loop {
            let n = match response.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(classify(&e, options, label, url, received)),
            };
            if received + n as u64 > limit_bytes {
                return Err(FetchError::TooLong {
                    label: label.to_owned(),
                    url: url.to_owned(),
                    found_bytes: received + n as u64,
                    limit_bytes,
                });
            }
            part.append(&buffer[..n])?;
            short.update(&buffer[..n]);
            long.update(&buffer[..n]);
            received += n as u64;
            progress.advanced(label, n as u64);
        }
        let found: [u8; 64] = long.finalize().into();
        if found != *expected {
            let hex = |bytes: &[u8; 64]| bytes.iter().map(|b| format!("{b:02x}")).collect();
            return Err(FetchError::WrongSha512 {
                label: label.to_owned(),
                url: url.to_owned(),
                found: hex(&found),
                expected: hex(expected),
            });
        }
        Ok((Sha256Digest(short.finalize().into()), received))
    })();
    if result.is_err() {
        progress.withdrawn(label, received);
        part.clear()?;
    }
    result
}

struct Transfer<'t> {
    client: &'t Client,
    options: &'t FetchOptions,
    wanted: &'t Wanted,
    url: String,
    part: &'t mut PartFile,
    progress: &'t dyn Progress,
    hasher: Sha256,
    /// Bytes hashed and in the part file, which progress knows of.
    have_bytes: u64,
}

impl<'t> Transfer<'t> {
    fn new(
        client: &'t Client,
        options: &'t FetchOptions,
        wanted: &'t Wanted,
        part: &'t mut PartFile,
        progress: &'t dyn Progress,
    ) -> Self {
        let url = wanted.url();
        Self {
            client,
            options,
            wanted,
            url,
            part,
            progress,
            hasher: Sha256::new(),
            have_bytes: 0,
        }
    }

    fn run(mut self) -> Result<(), FetchError> {
        let result = self
            .read_back()
            .and_then(|()| self.complete())
            .and_then(|()| self.check_digest());
        if result.is_err() {
            // The next attempt, if any, reports what it finds in the part file anew.
            self.progress.withdrawn(&self.wanted.label, self.have_bytes);
        }
        result
    }

    /// Hashes what an earlier attempt left behind.
    fn read_back(&mut self) -> Result<(), FetchError> {
        let there = self.part.len_bytes()?;
        if there > self.wanted.bytes {
            return self.restart();
        }
        self.part.rewind()?;
        let mut buffer = vec![0_u8; BUFFER_BYTES];
        while self.have_bytes < there {
            let want = buffer
                .len()
                .min(usize::try_from(there - self.have_bytes).unwrap_or(usize::MAX));
            let fault = |source| FetchError::Cache {
                purpose: "read",
                path: self.part.path.clone(),
                source,
            };
            self.part
                .file
                .read_exact(&mut buffer[..want])
                .map_err(fault)?;
            self.count(&buffer[..want]);
        }
        Ok(())
    }

    fn restart(&mut self) -> Result<(), FetchError> {
        self.progress.withdrawn(&self.wanted.label, self.have_bytes);
        self.have_bytes = 0;
        self.hasher = Sha256::new();
        self.part.clear()
    }

    fn count(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.have_bytes += bytes.len() as u64;
        self.progress
            .advanced(&self.wanted.label, bytes.len() as u64);
    }

    fn complete(&mut self) -> Result<(), FetchError> {
        if self.have_bytes == self.wanted.bytes && self.wanted.bytes > 0 {
            return Ok(());
        }
        let mut response = self.ask(self.have_bytes)?;
        if self.have_bytes > 0 && !self.continues(&response) {
            self.restart()?;
            if response.status() != StatusCode::OK {
                response = self.ask(0)?;
            }
        }
        let status = response.status();
        if status != StatusCode::OK && status != StatusCode::PARTIAL_CONTENT {
            return Err(refusal(
                status,
                &self.wanted.label,
                &self.url,
                self.wanted.kind,
            ));
        }
        let announced_bytes = response
            .content_length()
            .map(|rest| self.have_bytes.saturating_add(rest));
        match announced_bytes {
            Some(total) if total > self.wanted.bytes => Err(self.too_long(total)),
            Some(total) if total < self.wanted.bytes => Err(self.too_short(total)),
            _ => self.receive(response),
        }
    }

    fn ask(&self, from_byte: u64) -> Result<Response, FetchError> {
        let mut request = self.client.get(&self.url);
        if from_byte > 0 {
            request = request.header(RANGE, format!("bytes={from_byte}-"));
        }
        request.send().map_err(|e| self.fault(&e))
    }

    /// Whether `response` is the rest we asked for: right status, right start, right total size.
    fn continues(&self, response: &Response) -> bool {
        let range = response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|value| value.to_str().ok());
        let start_and_total = range.and_then(|r| r.strip_prefix("bytes ")).and_then(|r| {
            let (span, total) = r.split_once('/')?;
            Some((span.split_once('-')?.0.parse::<u64>().ok()?, total))
        });
        let total_fits = |total: &str| total == "*" || total.parse() == Ok(self.wanted.bytes);
        response.status() == StatusCode::PARTIAL_CONTENT
            && start_and_total
                .is_some_and(|(start, total)| start == self.have_bytes && total_fits(total))
    }

    fn receive(&mut self, mut response: Response) -> Result<(), FetchError> {
        self.part.seek_to(self.have_bytes)?;
        let mut buffer = vec![0_u8; BUFFER_BYTES];
        loop {
            let n = match response.read(&mut buffer) {
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(self.fault(&e)),
            };
            if n == 0 {
                break;
            }
            let total = self.have_bytes + n as u64;
            if total > self.wanted.bytes {
                return Err(self.too_long(total));
            }
            self.part.append(&buffer[..n])?;
            self.count(&buffer[..n]);
        }
        if self.have_bytes < self.wanted.bytes {
            Err(self.too_short(self.have_bytes))
        } else {
            Ok(())
        }
    }

    fn check_digest(&mut self) -> Result<(), FetchError> {
        let found = Sha256Digest(std::mem::take(&mut self.hasher).finalize().into());
        if found == self.wanted.sha256 {
            return Ok(());
        }
        self.part.clear()?;
        Err(FetchError::WrongDigest {
            label: self.wanted.label.clone(),
            url: self.url.clone(),
            found,
            expected: self.wanted.sha256,
            kind: self.wanted.kind,
        })
    }

    fn fault(&self, error: &(dyn std::error::Error + 'static)) -> FetchError {
        classify(
            error,
            self.options,
            &self.wanted.label,
            &self.url,
            self.have_bytes,
        )
    }

    fn too_long(&self, found_bytes: u64) -> FetchError {
        let (label, url) = (self.wanted.label.clone(), self.url.clone());
        FetchError::TooLong {
            label,
            url,
            found_bytes,
            limit_bytes: self.wanted.bytes,
        }
    }

    fn too_short(&self, found_bytes: u64) -> FetchError {
        let (label, url) = (self.wanted.label.clone(), self.url.clone());
        FetchError::TooShort {
            label,
            url,
            found_bytes,
            expected_bytes: self.wanted.bytes,
        }
    }
}

fn refusal(status: StatusCode, label: &str, url: &str, kind: Kind) -> FetchError {
    let (label, url, status) = (label.to_owned(), url.to_owned(), status.as_u16());
    match status {
        404 | 410 => FetchError::NotFound {
            label,
            url,
            status,
            kind,
        },
        _ => FetchError::Status { label, url, status },
    }
}

/// The whole body at `url`, of at most `limit_bytes`.
pub(super) fn get_small(
    client: &Client,
    options: &FetchOptions,
    url: &str,
    limit_bytes: u64,
    label: &str,
) -> Result<Vec<u8>, FetchError> {
    let response = client
        .get(url)
        .send()
        .map_err(|e| classify(&e, options, label, url, 0))?;
    if response.status() != StatusCode::OK {
        return Err(refusal(response.status(), label, url, Kind::List));
    }
    let mut body = Vec::new();
    let read = response.take(limit_bytes + 1).read_to_end(&mut body);
    read.map_err(|e| classify(&e, options, label, url, body.len() as u64))?;
    if body.len() as u64 > limit_bytes {
        let (label, url) = (label.to_owned(), url.to_owned());
        return Err(FetchError::TooLong {
            label,
            url,
            found_bytes: body.len() as u64,
            limit_bytes,
        });
    }
    Ok(body)
}

/// What the server says to a request with these headers, whatever its status; those that may pass are errors.
pub(super) fn ask(
    client: &Client,
    options: &FetchOptions,
    url: &str,
    headers: &[(&'static str, &str)],
    limit_bytes: u64,
    label: &str,
) -> Result<Answer, FetchError> {
    let mut request = client.get(url);
    for (name, value) in headers {
        request = request.header(*name, secret(value, label, url)?);
    }
    let response = request
        .send()
        .map_err(|e| classify(&e, options, label, url, 0))?;
    let status = response.status();
    if status.is_server_error() || matches!(status.as_u16(), 408 | 429) {
        return Err(refusal(status, label, url, Kind::Input));
    }
    let texts = |name| {
        let values = response.headers().get_all(name).iter();
        values
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    let (mut types, challenges) = (texts(CONTENT_TYPE), texts(WWW_AUTHENTICATE));
    let mut body = Vec::new();
    let read = response.take(limit_bytes + 1).read_to_end(&mut body);
    read.map_err(|e| classify(&e, options, label, url, body.len() as u64))?;
    if body.len() as u64 > limit_bytes {
        return Err(FetchError::TooLong {
            label: label.to_owned(),
            url: url.to_owned(),
            found_bytes: body.len() as u64,
            limit_bytes,
        });
    }
    Ok(Answer {
        status: status.as_u16(),
        content_type: types.pop(),
        challenges,
        body,
    })
}

/// The headers that carry a credential, which nothing prints.
pub(super) fn authorization(value: &str) -> Result<HeaderMap, FetchError> {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, secret(value, "the credential", "")?);
    Ok(headers)
}

fn secret(value: &str, label: &str, url: &str) -> Result<HeaderValue, FetchError> {
    let mut value = HeaderValue::from_str(value).map_err(|e| FetchError::Connect {
        label: label.to_owned(),
        url: url.to_owned(),
        problem: e.to_string(),
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// How long the file at `url` is. Its first byte is asked for, since some servers answer HEAD in ways of their own.
pub(super) fn length_of(
    client: &Client,
    options: &FetchOptions,
    url: &str,
    label: &str,
) -> Result<u64, FetchError> {
    let response = client
        .get(url)
        .header(RANGE, "bytes=0-0")
        .send()
        .map_err(|e| classify(&e, options, label, url, 0))?;
    let length = match response.status() {
        StatusCode::PARTIAL_CONTENT => response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|value| value.to_str().ok()?.rsplit_once('/')?.1.parse().ok()),
        StatusCode::OK => response.content_length(),
        status => return Err(refusal(status, label, url, Kind::Input)),
    };
    length.ok_or_else(|| FetchError::NoLength {
        label: label.to_owned(),
        url: url.to_owned(),
    })
}
