//! Request → answer (RFC 9110): conditions, one range, and how long an answer may be kept.

use std::io::{self, Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use headers::{
    ETag, HeaderMapExt, IfMatch, IfModifiedSince, IfNoneMatch, IfRange, IfUnmodifiedSince,
    LastModified,
};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, channel};
use http_range_header::{EndPosition, StartPosition};
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName,
    HeaderValue, RANGE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use tokio::io::AsyncReadExt;

use super::files::{Found, Root};
use super::slow::{Line, PIECE_BYTES};
use crate::cli::output::printable;

/// What changes may be kept for as long as it takes to boot past it, and must be asked for again then.
const SHORT: HeaderValue = HeaderValue::from_static("max-age=5, must-revalidate");
/// What is named by its digest never changes.
const FOR_EVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");
/// What else lies in the folder: kept, but asked for each time.
const ASK: HeaderValue = HeaderValue::from_static("no-cache");
/// Answers up to here are read at once; nearly all objects of a store are that small.
const AT_ONCE_BYTES: u64 = 256 << 10;
/// What is read at a time of longer ones.
const READ_BYTES: usize = 64 << 10;
/// How many of those wait for the network.
const READ_AHEAD: usize = 4;

pub(super) type Body = BoxBody<Bytes, io::Error>;

/// The folder and the line before it.
#[derive(Debug)]
pub(super) struct Site {
    root: Root,
    line: Option<Line>,
}

/// What to send of a file that was found.
enum Part {
    Whole,
    Range(Range<u64>),
}

/// An answer before its body.
struct Plan {
    status: StatusCode,
    headers: HeaderMap,
    /// The file and the bytes of it that are sent.
    content: Option<(Found, Range<u64>)>,
}

impl Site {
    pub fn new(root: Root, line: Option<Line>) -> Self {
        Self { root, line }
    }

    /// A connection is being set up.
    pub async fn connected(&self) {
        if let Some(line) = &self.line {
            line.round_trip().await;
        }
    }

    /// Answers a request and logs it.
    pub async fn answer(
        self: Arc<Self>,
        request: &Request<Incoming>,
        peer: SocketAddr,
    ) -> Response<Body> {
        if let Some(line) = &self.line {
            line.round_trip().await;
        }
        let this = Arc::clone(&self);
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let headers = request.headers().clone();
        let is_slow = self.line.is_some();
        // Opening and reading may wait for a disk.
        let planned = tokio::task::spawn_blocking(move || {
            let mut plan = this.plan(&method, &path, &headers);
            let body = plan.take_body(&method, is_slow);
            (plan, body)
        })
        .await;
        let (plan, body) = planned.unwrap_or_else(|_| {
            let failed = Plan::status(StatusCode::INTERNAL_SERVER_ERROR);
            (
                failed,
                Ok(Empty::new().map_err(|never| match never {}).boxed()),
            )
        });
        let plan_length = plan.headers.get(CONTENT_LENGTH).cloned();
        let mut response = match body {
            Ok(body) => Response::new(body),
            Err((found, range)) => Response::new(self.stream(found, range)),
        };
        *response.status_mut() = plan.status;
        *response.headers_mut() = plan.headers;
        tracing::info!(
            "{peer} {} {} {} {}",
            request.method(),
            printable(request.uri().path()),
            plan.status.as_u16(),
            plan_length
                .as_ref()
                .and_then(|length| length.to_str().ok())
                .unwrap_or("-"),
        );
        response
    }

    /// Everything but the body.
    fn plan(&self, method: &Method, path: &str, headers: &HeaderMap) -> Plan {
        if method != Method::GET && method != Method::HEAD {
            let mut plan = Plan::status(StatusCode::METHOD_NOT_ALLOWED);
            plan.set(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return plan;
        }
        let found = percent_decode_str(path.strip_prefix('/').unwrap_or(path))
            .decode_utf8()
            .map_err(|_| io::ErrorKind::NotFound.into())
            .and_then(|name| self.root.find(&name));
        match found {
            Ok(found) => describe(found, path, headers),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound => Plan::status(StatusCode::NOT_FOUND),
                io::ErrorKind::PermissionDenied => Plan::status(StatusCode::FORBIDDEN),
                _ => {
                    tracing::warn!("cannot read `{}`: {error}", printable(path));
                    Plan::status(StatusCode::INTERNAL_SERVER_ERROR)
                }
            },
        }
    }

    /// Sends a range of a file piece by piece, through the slow line if there is one.
    fn stream(self: Arc<Self>, found: Found, range: Range<u64>) -> Body {
        let (mut sender, body) = channel::Channel::new(READ_AHEAD);
        tokio::spawn(async move {
            let mut file = tokio::fs::File::from_std(found.file).take(range.end - range.start);
            let mut left = range.end - range.start;
            let piece_bytes = if self.line.is_some() {
                PIECE_BYTES
            } else {
                READ_BYTES
            };
            while left > 0 {
                let mut piece = Vec::with_capacity(piece_bytes);
                let mut limited = (&mut file).take(piece_bytes as u64);
                let read = match limited.read_to_end(&mut piece).await {
                    // The file became shorter: the client must notice.
                    Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                    other => other,
                };
                let read = match read {
                    Ok(read) => read,
                    Err(error) => {
                        tracing::warn!("a file could not be sent to its end: {error}");
                        sender.abort(error);
                        return;
                    }
                };
                if let Some(line) = &self.line {
                    line.pass(read).await;
                }
                left = left.saturating_sub(read as u64);
                if sender.send_data(piece.into()).await.is_err() {
                    return; // the client went away
                }
            }
        });
        body.boxed()
    }
}

impl Plan {
    /// An answer that is only a status; but for 304, its name is the body.
    fn status(status: StatusCode) -> Self {
        Self {
            status,
            headers: HeaderMap::new(),
            content: None,
        }
    }

    fn set(&mut self, name: HeaderName, value: HeaderValue) {
        self.headers.insert(name, value);
    }

    /// The body if it can be had at once, else what to stream.
    fn take_body(&mut self, method: &Method, is_slow: bool) -> Result<Body, (Found, Range<u64>)> {
        let empty = || Empty::new().map_err(|never| match never {}).boxed();
        let full = |bytes: Vec<u8>| {
            Full::new(Bytes::from(bytes))
                .map_err(|never| match never {})
                .boxed()
        };
        let Some((mut found, range)) = self.content.take() else {
            if self.status == StatusCode::NOT_MODIFIED {
                return Ok(empty());
            }
            let text = format!("{}\n", self.status);
            self.set(CONTENT_LENGTH, HeaderValue::from(text.len()));
            self.set(
                CONTENT_TYPE,
                HeaderValue::from_static("text/plain; charset=utf-8"),
            );
            return Ok(if method == Method::HEAD {
                empty()
            } else {
                full(text.into_bytes())
            });
        };
        let length = range.end - range.start;
        self.set(CONTENT_LENGTH, HeaderValue::from(length));
        if method == Method::HEAD || length == 0 {
            return Ok(empty());
        }
        if let Err(error) = found.file.seek(SeekFrom::Start(range.start)) {
            return Ok(self.failed(&error));
        }
        if is_slow || length > AT_ONCE_BYTES {
            return Err((found, range));
        }
        let mut bytes = Vec::with_capacity(length as usize); // at most AT_ONCE_BYTES
        match found.file.take(length).read_to_end(&mut bytes) {
            Ok(read) if read as u64 == length => Ok(full(bytes)),
            Ok(_) => Ok(self.failed(&io::ErrorKind::UnexpectedEof.into())),
            Err(error) => Ok(self.failed(&error)),
        }
    }

    fn failed(&mut self, error: &io::Error) -> Body {
        tracing::warn!("cannot read a file: {error}");
        *self = Self::status(StatusCode::INTERNAL_SERVER_ERROR);
        Empty::new().map_err(|never| match never {}).boxed()
    }
}

/// The answer for a file that is there.
fn describe(found: Found, path: &str, request: &HeaderMap) -> Plan {
    let etag = etag(&found);
    let modified = found.modified.map(LastModified::from);
    let mut plan = Plan::status(StatusCode::OK);
    plan.set(CACHE_CONTROL, caching(path));
    if let Some(etag) = &etag {
        plan.headers.typed_insert(etag.clone());
    }
    if let Some(modified) = modified {
        plan.headers.typed_insert(modified);
    }
    match condition(&found, etag.as_ref(), request) {
        StatusCode::OK => {}
        status => {
            plan.status = status;
            return plan;
        }
    }
    plan.set(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    plan.set(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    plan.set(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let length = found.length;
    let is_stale = request
        .typed_get::<IfRange>()
        .is_some_and(|range| range.is_modified(etag.as_ref(), modified.as_ref()));
    let wanted = if is_stale {
        Some(Part::Whole)
    } else {
        part(request, length)
    };
    let range = match wanted {
        Some(Part::Whole) => 0..length,
        Some(Part::Range(range)) => {
            plan.status = StatusCode::PARTIAL_CONTENT;
            plan.content_range(&format!("bytes {}-{}/{length}", range.start, range.end - 1));
            range
        }
        None => {
            plan.status = StatusCode::RANGE_NOT_SATISFIABLE;
            plan.content_range(&format!("bytes */{length}"));
            return plan;
        }
    };
    plan.content = Some((found, range));
    plan
}

impl Plan {
    fn content_range(&mut self, text: &str) {
        if let Ok(value) = HeaderValue::from_str(text) {
            self.set(CONTENT_RANGE, value);
        }
    }
}

/// Length and time of the last change, as other web servers do it.
fn etag(found: &Found) -> Option<ETag> {
    let since = found.modified?.duration_since(UNIX_EPOCH).ok()?;
    format!("\"{:x}-{:x}\"", since.as_nanos(), found.length)
        .parse()
        .ok()
}

/// RFC 9110 §13.2.2: OK to go on, 304 or 412 if not.
fn condition(found: &Found, etag: Option<&ETag>, request: &HeaderMap) -> StatusCode {
    let if_match = request.typed_get::<IfMatch>();
    let if_none_match = request.typed_get::<IfNoneMatch>();
    if let Some(wanted) = if_match {
        if !etag.is_some_and(|etag| wanted.precondition_passes(etag)) {
            return StatusCode::PRECONDITION_FAILED;
        }
    } else if let (Some(since), Some(modified)) =
        (request.typed_get::<IfUnmodifiedSince>(), found.modified)
        && !since.precondition_passes(modified)
    {
        return StatusCode::PRECONDITION_FAILED;
    }
    if let Some(known) = if_none_match {
        if etag.is_some_and(|etag| !known.precondition_passes(etag)) {
            return StatusCode::NOT_MODIFIED;
        }
    } else if let (Some(since), Some(modified)) =
        (request.typed_get::<IfModifiedSince>(), found.modified)
        && !since.is_modified(modified)
    {
        return StatusCode::NOT_MODIFIED;
    }
    StatusCode::OK
}

/// What `Range` asks for, `None` if the file is shorter. Several ranges, other units and nonsense may be ignored (RFC 9110
/// §14.2), and are.
fn part(request: &HeaderMap, length: u64) -> Option<Part> {
    let parsed = request
        .get(RANGE)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| http_range_header::parse_range_header(text).ok());
    match parsed {
        Some(parsed) if parsed.ranges.len() == 1 => {
            // RFC 9110 §14.1.2: what reaches behind the end is cut, also from the front; the crate's own check refuses both.
            let range = parsed.ranges[0];
            let start = match range.start {
                StartPosition::Index(first) => first,
                StartPosition::FromLast(0) => return None,
                StartPosition::FromLast(count) => length.saturating_sub(count),
            };
            let last = match (range.start, range.end) {
                (StartPosition::Index(_), EndPosition::Index(last)) => last,
                _ => u64::MAX,
            };
            if last < start {
                return Some(Part::Whole); // no range at all, and so to be ignored
            }
            let end = length.min(last.saturating_add(1));
            (start < end).then_some(Part::Range(start..end))
        }
        _ => Some(Part::Whole),
    }
}

/// How long an answer for `path` may be kept.
fn caching(path: &str) -> HeaderValue {
    let name = path.rsplit('/').next().unwrap_or(path);
    let is_digest = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    match path {
        "/head" => SHORT,
        _ if path.starts_with("/index") => SHORT,
        _ if path.starts_with("/boot/") => SHORT,
        _ if is_digest => FOR_EVER,
        _ => ASK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digests_are_kept_for_ever() {
        let digest = "a".repeat(64);
        for (path, expected) in [
            ("/head", SHORT),
            ("/index", SHORT),
            ("/index.minisig", SHORT),
            ("/index.manifest", SHORT),
            ("/boot/demo.ipxe", SHORT),
            (&format!("/c/aa/{digest}"), FOR_EVER),
            (&format!("/c/aa/{digest}.tmp"), ASK),
            ("/net.iso", ASK),
        ] {
            assert_eq!(caching(path), expected, "{path}");
        }
    }

    #[test]
    fn ranges_are_taken_cut_ignored_or_refused() {
        let cases: [(&str, u64, Option<Range<u64>>); 12] = [
            ("bytes=0-9", 100, Some(0..10)),
            ("bytes=90-", 100, Some(90..100)),
            ("bytes=90-1000", 100, Some(90..100)),
            ("bytes=-10", 100, Some(90..100)),
            ("bytes=-1000", 100, Some(0..100)),
            ("bytes=100-", 100, None),
            ("bytes=0-0", 0, None),
            ("bytes=9-1", 100, Some(0..100)),
            ("bytes=0-1,5-6", 100, Some(0..100)),
            ("lines=0-1", 100, Some(0..100)),
            ("bytes=x", 100, Some(0..100)),
            ("bytes=0-18446744073709551615", 100, Some(0..100)),
        ];
        for (text, length, expected) in cases {
            let headers = HeaderMap::from_iter([(RANGE, HeaderValue::from_static(text))]);
            let range = part(&headers, length).map(|part| match part {
                Part::Whole => 0..length,
                Part::Range(range) => range,
            });
            assert_eq!(range, expected, "{text}");
        }
    }
}
