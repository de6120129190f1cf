//! A websocket and a stream of bytes, passed on in both directions: a guest's console, or its screen (RFB, RFC 6143).
//!
//! Nothing is kept: who does not take what comes is waited for, and so is who sends it.
use crate::session::End;
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Largest message that is taken from a browser: a pasted page.
pub const MESSAGE_MAX_BYTES: usize = 64 * 1024;
const PIECE_BYTES: usize = 16 * 1024;
/// How long a browser may take over the last words.
const FAREWELL_LIMIT: Duration = Duration::from_secs(5);
/// Normal end, and one for cause (RFC 6455 §7.4.1).
const NORMAL: u16 = 1000;
const POLICY: u16 = 1008;

/// Passes bytes on until one side ends, or the session does. `last_words` is asked for why the bytes ended.
pub async fn pass(
    socket: WebSocket,
    from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    mut end: End,
    last_words: impl Future<Output = String>,
) {
    let (mut sink, stream) = socket.split();
    let (code, reason) = tokio::select! {
        () = outward(&mut sink, from) => (NORMAL, last_words.await),
        () = inward(stream, to) => (NORMAL, String::new()),
        _ = end.changed() => (POLICY, "logged out".to_owned()),
    };
    farewell(sink, code, &reason).await;
}

/// Ends a websocket that leads nowhere, with a word on why.
pub async fn refuse(socket: WebSocket, reason: &str) {
    let (sink, _) = socket.split();
    farewell(sink, NORMAL, reason).await;
}

async fn farewell(mut sink: SplitSink<WebSocket, Message>, code: u16, reason: &str) {
    // A close frame holds 125 bytes, two of them the code.
    let end = reason.floor_char_boundary(120);
    let frame = CloseFrame {
        code,
        reason: reason[..end].into(),
    };
    let last = async {
        // It may be gone; there is nobody else to tell.
        let _ = sink.send(Message::Close(Some(frame))).await;
        let _ = sink.close().await;
    };
    let _ = tokio::time::timeout(FAREWELL_LIMIT, last).await;
}

async fn outward(sink: &mut SplitSink<WebSocket, Message>, mut from: impl AsyncRead + Unpin) {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match from.read(&mut piece).await {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                let message = Message::Binary(piece[..count].to_vec().into());
                if sink.send(message).await.is_err() {
                    return;
                }
            }
        }
    }
}

async fn inward(mut stream: SplitStream<WebSocket>, mut to: impl AsyncWrite + Unpin) {
    while let Some(Ok(message)) = stream.next().await {
        let bytes = match &message {
            Message::Binary(bytes) => &bytes[..],
            Message::Text(text) => text.as_bytes(),
            Message::Ping(_) | Message::Pong(_) => continue, // answered by the library
            Message::Close(_) => return,
        };
        let written = async {
            to.write_all(bytes).await?;
            to.flush().await
        };
        if written.await.is_err() {
            return;
        }
    }
}
