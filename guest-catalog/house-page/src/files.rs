//! The page's files: ours are in the program, xterm.js and noVNC are Debian's, in `/usr/share`.
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use std::path::{Path, PathBuf};

pub const INDEX: &str = include_str!("page/index.html");
pub const LOGIN: &str = include_str!("page/login.html");
pub const STYLE: &str = include_str!("page/style.css");
pub const SCRIPT: &str = include_str!("page/page.js");
pub const ICON: &str = include_str!("page/icon.svg");

/// First part of an address below `/vendor/` → folder in dom0 (packages `libjs-xterm` and `novnc`).
const VENDORS: [(&str, &str); 2] = [
    ("xterm", "usr/share/javascript/xterm"),
    ("novnc", "usr/share/novnc"),
];
/// Larger ones are not there.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// A file of ours, by what it is.
pub fn own(kind: &'static str, text: &'static str) -> Response {
    let kind = HeaderValue::from_static(kind);
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// A file of Debian's packages below `root`; `path` is all behind `/vendor/`.
pub async fn vendor(root: &Path, path: &str) -> Response {
    let Some((path, kind)) = place(root, path) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let read = async {
        let about = tokio::fs::metadata(&path).await.ok()?;
        if !about.is_file() || about.len() > FILE_MAX_BYTES {
            return None;
        }
        tokio::fs::read(&path).await.ok()
    };
    match read.await {
        Some(bytes) => {
            let headers = [
                (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
                // They change with the image only.
                (
                    header::CACHE_CONTROL,
                    HeaderValue::from_static("private, max-age=3600"),
                ),
            ];
            (headers, Body::from(bytes)).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Path and kind of a file that may be given away: plain names alone, none of them hidden.
fn place(root: &Path, path: &str) -> Option<(PathBuf, &'static str)> {
    let (vendor, rest) = path.split_once('/')?;
    let (_, folder) = VENDORS.iter().find(|(name, _)| *name == vendor)?;
    let plain = |part: &str| {
        let usual = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !part.is_empty() && !part.starts_with('.') && part.bytes().all(usual)
    };
    if rest.len() > 200 || !rest.split('/').all(plain) {
        return None;
    }
    let kind = match rest.rsplit_once('.')?.1 {
        "js" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        _ => return None,
    };
    Some((root.join(folder).join(rest), kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_below_the_two_folders() {
        let place = |path| place(Path::new("/"), path).map(|(path, _)| path);
        let found = place("novnc/core/rfb.js").unwrap();
        assert_eq!(found, Path::new("/usr/share/novnc/core/rfb.js"));
        assert!(place("xterm/xterm.css").is_some());
        for path in [
            "",
            "novnc",
            "novnc/",
            "other/a.js",
            "novnc//a.js",
            "novnc/../a.js",
            "novnc/.a.js",
            "../novnc/a.js",
            "novnc/core/..",
            "novnc/utils/novnc_proxy",
            "novnc/a b.js",
            "novnc/a\0.js",
            "novnc/%2e%2e/a.js",
            "/etc/passwd",
        ] {
            assert_eq!(place(path), None, "{path:?}");
        }
    }
}
