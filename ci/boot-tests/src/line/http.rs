//! The reverse proxy at the far end: counts requests, applies the rules, passes on the rest.

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::Incoming,
    header::{CONNECTION, CONTENT_LENGTH, HeaderName, HeaderValue, LOCATION, RANGE},
    http::uri::PathAndQuery,
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::io::DuplexStream;

use super::{
    body::{Spoil, SpoiltBody},
    fault::Action,
    server::{Breaker, Shared},
};

/// Headers that concern one connection (RFC 9110 §7.6.1); `Connection`'s own list is taken out too.
const HOP_BY_HOP: [&str; 6] = [
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

type AnswerBody = BoxBody<Bytes, std::io::Error>;

/// The reverse proxy.
#[derive(Clone)]
pub(super) struct Service {
    shared: Arc<Shared>,
    client: Client<HttpConnector, Incoming>,
}

impl Service {
    pub fn new(shared: Arc<Shared>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self { shared, client }
    }

    /// Answers everything that comes over one connection.
    pub async fn connection(self, far: DuplexStream, breaker: Arc<Breaker>) {
        let answer = service_fn(|request| {
            let (this, breaker) = (self.clone(), Arc::clone(&breaker));
            async move { Ok::<_, Infallible>(this.answer(request, breaker).await) }
        });
        // An error here is a client that went away, or a fault that was ordered.
        let _ = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(far), answer)
            .await;
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        breaker: Arc<Breaker>,
    ) -> Response<AnswerBody> {
        let action = self.note(&request);
        match action {
            None => self.forward(request, |_| Spoil::Nothing).await,
            Some(Action::Status(code)) => plain(
                StatusCode::from_u16(code).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
                "spoilt on purpose",
            ),
            Some(Action::Redirect) => redirect(request.uri()),
            Some(Action::Delay(time)) => {
                tokio::time::sleep(time).await;
                self.forward(request, |_| Spoil::Nothing).await
            }
            Some(Action::Reset(bytes)) => {
                self.forward(request, |_| Spoil::Reset(bytes, breaker))
                    .await
            }
            Some(Action::Cut(bytes)) => self.forward(request, |_| Spoil::Cut(bytes)).await,
            Some(Action::Stall(bytes)) => self.forward(request, |_| Spoil::Stall(bytes)).await,
            Some(Action::Drip(bytes, pause)) => {
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                self.forward(request, |_| Spoil::Drip(bytes, pause)).await
            }
            Some(Action::Corrupt(at)) => self.forward(request, |_| Spoil::Corrupt(at)).await,
            Some(Action::Truncate(bytes)) => {
                let set = |answer: &mut Response<Incoming>| {
                    let length = content_length(answer).map_or(bytes, |length| length.min(bytes));
                    set_content_length(answer, length);
                    Spoil::Truncate(length)
                };
                self.forward(request, set).await
            }
            Some(Action::Length(more)) => {
                let set = |answer: &mut Response<Incoming>| {
                    let length = content_length(answer).unwrap_or(0);
                    set_content_length(answer, length.saturating_add_signed(more));
                    Spoil::Length(more > 0)
                };
                self.forward(request, set).await
            }
            Some(Action::Swap(path)) => {
                let mut request = request;
                if let Ok(path) = path.parse::<PathAndQuery>() {
                    *request.uri_mut() = path.into();
                }
                self.forward(request, |_| Spoil::Nothing).await
            }
        }
    }

    /// Counts the request and finds what is to be done to it.
    fn note(&self, request: &Request<Incoming>) -> Option<Action> {
        let action = {
            let mut faults = self.shared.faults();
            let path = request.uri().path();
            faults
                .iter_mut()
                .find_map(|fault| fault.applies(path).then(|| fault.action.clone()))
        };
        let path = path_and_query(request.uri());
        let range = request
            .headers()
            .get(RANGE)
            .and_then(|value| value.to_str().ok());
        let method = request.method().as_str();
        self.shared
            .counters
            .request(method, path, range, action.is_some());
        action
    }

    async fn forward(
        &self,
        mut request: Request<Incoming>,
        spoil: impl FnOnce(&mut Response<Incoming>) -> Spoil,
    ) -> Response<AnswerBody> {
        let uri = Uri::builder()
            .scheme("http")
            .authority(self.shared.upstream.to_string())
            .path_and_query(path_and_query(request.uri()))
            .build();
        match uri {
            Ok(uri) => *request.uri_mut() = uri,
            Err(error) => return plain(StatusCode::BAD_REQUEST, &error.to_string()),
        }
        remove_hop_by_hop(request.headers_mut());
        let is_head = request.method() == Method::HEAD;
        match self.client.request(request).await {
            Ok(mut answer) => {
                remove_hop_by_hop(answer.headers_mut());
                let spoil = if is_head {
                    Spoil::Nothing
                } else {
                    spoil(&mut answer)
                };
                answer.map(|body| SpoiltBody::new(body, spoil).boxed())
            }
            Err(error) => plain(StatusCode::BAD_GATEWAY, &error.to_string()),
        }
    }
}

fn path_and_query(uri: &Uri) -> &str {
    uri.path_and_query().map_or("/", PathAndQuery::as_str)
}

fn content_length(answer: &Response<Incoming>) -> Option<u64> {
    answer
        .headers()
        .get(CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

fn set_content_length(answer: &mut Response<Incoming>, length: u64) {
    answer
        .headers_mut()
        .insert(CONTENT_LENGTH, HeaderValue::from(length));
}

fn remove_hop_by_hop(headers: &mut hyper::HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in listed {
        headers.remove(name);
    }
    headers.remove(CONNECTION);
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

fn plain(status: StatusCode, text: &str) -> Response<AnswerBody> {
    let body = Full::from(format!("{text}\n")).map_err(|never| match never {});
    let mut answer = Response::new(body.boxed());
    *answer.status_mut() = status;
    answer
}

/// `/x` → `/x?hop=1` → `/x?hop=2` …
fn redirect(uri: &Uri) -> Response<AnswerBody> {
    let hop = uri
        .query()
        .and_then(|query| query.strip_prefix("hop="))
        .and_then(|hop| hop.parse::<u64>().ok())
        .unwrap_or(0);
    let mut answer = plain(StatusCode::FOUND, "elsewhere");
    if let Ok(location) = HeaderValue::from_str(&format!("{}?hop={}", uri.path(), hop + 1)) {
        answer.headers_mut().insert(LOCATION, location);
    }
    answer
}
