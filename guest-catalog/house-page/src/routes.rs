//! What the page answers: who may come in, the page itself, the guests and what leads to them.
//!
//! | request | answer | needs |
//! |---|---|---|
//! | `GET /login`, `GET /style.css`, `GET /icon.svg` | the way in | |
//! | `POST /login` | form with `token` → a session's cookie | our own origin |
//! | `POST /logout` | ends the session and all it opened | session, our own origin |
//! | `GET /`, `/page.js`, `/vendor/…` | the page, xterm.js, noVNC | session |
//! | `GET /api/guests` | house and guests now, JSON | session |
//! | `GET /api/events` | the same again and again (server-sent events) | session |
//! | `POST /api/guests/<name>/<act>` | start, stop, switch-off, restart, save, restore | session, our own origin |
//! | `GET /ws/console/<name>`, `/ws/screen/<name>` | websocket: bytes of the console, RFB | session, our own origin |
//!
//! A browser names the origin of whoever made the request; "our own" means that it equals `https://` and the `Host` that was
//! asked. So no other page can use a session, whatever a browser thinks of cookies.
use crate::bridge::{self, MESSAGE_MAX_BYTES};
use crate::files;
use crate::guests::{self, ActError, House};
use crate::identity::Identity;
use crate::server::Peer;
use crate::session::{COOKIE, End, Sessions};
use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{DefaultBodyLimit, Extension, Form, FromRequest as _, Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use futures_util::stream;
use guest_catalog::GuestName;
use serde::Deserialize;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A log-in form is a few hundred bytes; nothing else has a body.
const BODY_MAX_BYTES: usize = 4096;
/// How long the form may take to arrive.
const FORM_LIMIT: Duration = Duration::from_secs(10);
/// A wrong token is answered so late.
const WRONG_PAUSE: Duration = Duration::from_millis(500);
/// Consoles and screens open at once.
const MAX_LINES: usize = 24;
/// A sign of life for proxies and sleepy networks.
const ALIVE_EVERY: Duration = Duration::from_secs(15);

/// What every request may use.
pub struct Site {
    pub identity: Identity,
    pub sessions: Sessions,
    pub house: House,
    /// Below it is `usr/share`.
    pub root: PathBuf,
    lines: Arc<Semaphore>,
}

type Shared = Arc<Site>;

impl Site {
    pub fn new(identity: Identity, house: House, root: PathBuf) -> Self {
        Self {
            identity,
            sessions: Sessions::default(),
            house,
            root,
            lines: Arc::new(Semaphore::new(MAX_LINES)),
        }
    }
}

/// Everything that is answered.
pub fn router(site: Shared) -> Router {
    let inside = Router::new()
        .route("/", get(async || html(files::INDEX)))
        .route(
            "/page.js",
            get(async || files::own("text/javascript; charset=utf-8", files::SCRIPT)),
        )
        .route("/vendor/{*path}", get(vendor))
        .route("/logout", post(logout))
        .route("/api/guests", get(state))
        .route("/api/events", get(events))
        .route("/api/guests/{name}/{act}", post(act))
        .route("/ws/console/{name}", get(console))
        .route("/ws/screen/{name}", get(screen))
        .route_layer(middleware::from_fn_with_state(
            Arc::clone(&site),
            need_session,
        ));
    let outside = Router::new()
        .route("/login", get(async || html(files::LOGIN)).post(login))
        .route(
            "/style.css",
            get(async || files::own("text/css; charset=utf-8", files::STYLE)),
        )
        .route(
            "/icon.svg",
            get(async || files::own("image/svg+xml", files::ICON)),
        );
    outside
        .merge(inside)
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .layer(middleware::from_fn(guard))
        .with_state(site)
}

fn html(text: &'static str) -> Response {
    files::own("text/html; charset=utf-8", text)
}

/// Headers of every answer. `style-src` has `unsafe-inline` because xterm.js writes its colours and sizes into a style sheet of
/// its own; scripts come from here alone.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; object-src 'none'; \
         base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    // Not `no-referrer`: with that, browsers hide the origin of our own form from us.
    (header::REFERRER_POLICY, "same-origin"),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
];

/// For all requests alike: a change or a websocket from another origin is refused, and every answer has its headers.
async fn guard(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let is_safe = matches!(*request.method(), Method::GET | Method::HEAD);
    let is_socket = headers.contains_key(header::UPGRADE);
    let mut response = if (!is_safe || is_socket) && !is_own_origin(headers) {
        (
            StatusCode::FORBIDDEN,
            "refused: the request comes from another page\n",
        )
            .into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

fn is_own_origin(headers: &HeaderMap) -> bool {
    let one = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        let value = values.next()?.to_str().ok()?;
        values.next().is_none().then_some(value)
    };
    let origin = one(header::ORIGIN).and_then(|origin| origin.strip_prefix("https://"));
    let host = one(header::HOST);
    host.is_some()
        && origin.is_some_and(|origin| host.is_some_and(|host| host.eq_ignore_ascii_case(origin)))
}

fn cookies(headers: &HeaderMap) -> &str {
    let value = headers.get(header::COOKIE);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

async fn need_session(State(site): State<Shared>, mut request: Request, next: Next) -> Response {
    if let Some(end) = site.sessions.find(cookies(request.headers())) {
        request.extensions_mut().insert(end);
        return next.run(request).await;
    }
    if request.uri().path() == "/" {
        return (StatusCode::SEE_OTHER, [(header::LOCATION, "/login")]).into_response();
    }
    (StatusCode::UNAUTHORIZED, "log in first: /login\n").into_response()
}

#[derive(Deserialize)]
struct LoginForm {
    token: String,
}

async fn login(
    State(site): State<Shared>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Response {
    let address = peer.address.ip();
    if !site.sessions.may_try(address) {
        let wait = [(header::RETRY_AFTER, "60")];
        let page = said("Too many wrong tokens from your address. Wait a minute.");
        return (StatusCode::TOO_MANY_REQUESTS, wait, page).into_response();
    }
    let form = Form::<LoginForm>::from_request(request, &());
    let form = match tokio::time::timeout(FORM_LIMIT, form).await {
        Err(_) => return StatusCode::REQUEST_TIMEOUT.into_response(),
        Ok(Err(rejection)) => return rejection.into_response(),
        Ok(Ok(Form(form))) => form,
    };
    if !site.identity.admits(&form.token) {
        site.sessions.tried(address);
        println!("house-page: a wrong token from {address}");
        tokio::time::sleep(WRONG_PAUSE).await;
        return (StatusCode::UNAUTHORIZED, said("That is not the token.")).into_response();
    }
    println!("house-page: {address} logged in");
    match site.sessions.open() {
        Ok(value) => {
            let cookie = format!("{COOKIE}={value}; Path=/; Secure; HttpOnly; SameSite=Strict");
            let headers = [
                (header::SET_COOKIE, cookie),
                (header::LOCATION, "/".to_owned()),
            ];
            (StatusCode::SEE_OTHER, headers).into_response()
        }
        Err(error) => {
            println!("house-page: {error}");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// The log-in page with a word about the last try.
fn said(what: &str) -> Response {
    let page = files::LOGIN.replace("<!-- said -->", what);
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

async fn logout(State(site): State<Shared>, headers: HeaderMap) -> Response {
    site.sessions.close(cookies(&headers));
    let cookie = format!("{COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=0");
    let headers = [
        (header::SET_COOKIE, cookie),
        (header::LOCATION, "/login".to_owned()),
    ];
    (StatusCode::SEE_OTHER, headers).into_response()
}

async fn vendor(State(site): State<Shared>, Path(path): Path<String>) -> Response {
    files::vendor(&site.root, &path).await
}

async fn state(State(site): State<Shared>) -> Response {
    let text = site.house.state_now().await;
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

async fn events(State(site): State<Shared>, Extension(end): Extension<End>) -> Response {
    let states = site.house.follow();
    let events = stream::unfold((states, end), |(mut states, mut end)| async move {
        tokio::select! {
            changed = states.changed() => changed.ok()?,
            _ = end.changed() => return None,
        }
        let state = Arc::clone(&states.borrow_and_update());
        let event = Event::default().data(&*state);
        Some((Ok::<_, Infallible>(event), (states, end)))
    });
    let alive = KeepAlive::new().interval(ALIVE_EVERY);
    Sse::new(events).keep_alive(alive).into_response()
}

/// A plain no.
type Refusal = (StatusCode, &'static str);

fn guest(name: &str) -> Result<GuestName, Refusal> {
    GuestName::new(name).map_err(|_| (StatusCode::NOT_FOUND, "no guest has such a name\n"))
}

async fn act(
    State(site): State<Shared>,
    Path((name, word)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let guest = guest(&name)?;
    // In a task of its own: a browser that goes away does not stop half-way what it began.
    let task = tokio::spawn(async move { site.house.act(&guest, &word).await });
    let (status, key, text) = match task.await {
        Ok(Ok(said)) => (StatusCode::OK, "said", said.trim().to_owned()),
        Ok(Err(error)) => {
            let status = match error {
                ActError::Unknown => StatusCode::NOT_FOUND,
                ActError::Busy => StatusCode::TOO_MANY_REQUESTS,
                ActError::Ask(_) => StatusCode::INTERNAL_SERVER_ERROR,
                ActError::TooLong => StatusCode::GATEWAY_TIMEOUT,
                ActError::Refused(_) => StatusCode::CONFLICT,
            };
            (status, "error", error.to_string())
        }
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "error",
            error.to_string(),
        ),
    };
    let text = serde_json::json!({ key: text }).to_string();
    Ok((status, [(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// Prepares a websocket: bounded, and counted as long as it is open.
fn line(
    site: &Site,
    socket: WebSocketUpgrade,
) -> Result<(WebSocketUpgrade, OwnedSemaphorePermit), Refusal> {
    const FULL: Refusal = (
        StatusCode::SERVICE_UNAVAILABLE,
        "too many consoles are open\n",
    );
    let place = Arc::clone(&site.lines).try_acquire_owned();
    let socket = socket
        .max_message_size(MESSAGE_MAX_BYTES)
        .max_frame_size(MESSAGE_MAX_BYTES);
    Ok((socket, place.map_err(|_| FULL)?))
}

async fn console(
    State(site): State<Shared>,
    Path(name): Path<String>,
    Extension(peer): Extension<Peer>,
    Extension(end): Extension<End>,
    socket: WebSocketUpgrade,
) -> Result<Response, Refusal> {
    let guest = guest(&name)?;
    let (socket, place) = line(&site, socket)?;
    Ok(socket.on_upgrade(async move |socket| {
        let _places = (peer, place);
        let mut child = match site.house.console(&guest) {
            Ok(child) => child,
            Err(error) => return bridge::refuse(socket, &error.to_string()).await,
        };
        // The child is killed when it is dropped, at the end of this.
        if let (Some(to), Some(from)) = (child.stdin.take(), child.stdout.take()) {
            let last_words = guests::last_words(child.stderr.take());
            bridge::pass(socket, from, to, end, last_words).await;
        }
    }))
}

async fn screen(
    State(site): State<Shared>,
    Path(name): Path<String>,
    Extension(peer): Extension<Peer>,
    Extension(end): Extension<End>,
    socket: WebSocketUpgrade,
) -> Result<Response, Refusal> {
    const NONE: Refusal = (StatusCode::NOT_FOUND, "this guest shows no screen now\n");
    let guest = guest(&name)?;
    let screen = UnixStream::connect(site.house.screen(&guest)).await;
    let screen = screen.map_err(|_| NONE)?;
    let (socket, place) = line(&site, socket)?;
    Ok(socket.on_upgrade(async move |socket| {
        let _places = (peer, place);
        let (from, to) = screen.into_split();
        bridge::pass(socket, from, to, end, async { String::new() }).await;
    }))
}
