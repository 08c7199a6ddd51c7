//! What an application says before it connects.

use std::fmt;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::endpoint::{Bind, Endpoint, Trust};
use crate::protocol::Encoding;

/// Error of a token source: any error of the application.
pub type TokenError = Box<dyn std::error::Error + Send + Sync>;

type Source = dyn Fn() -> BoxFuture<'static, Result<String, TokenError>> + Send + Sync;

/// Where tokens come from. Asked for a fresh one before the first session, before the old one expires and after a
/// close with 3005; a token that is still good is used again without asking. Cheap to clone.
#[derive(Clone)]
pub struct Tokens(Arc<Source>);

impl Tokens {
    /// Always the same token: for tests and short-lived tools.
    pub fn fixed(token: impl Into<String>) -> Self {
        let token = token.into();
        Self::from_fn(move || {
            let token = token.clone();
            async move { Ok(token) }
        })
    }

    /// Asks an async closure. An error counts as a failed attempt to connect.
    pub fn from_fn<F, R>(source: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<String, TokenError>> + Send + 'static,
    {
        Self(Arc::new(move || source().boxed()))
    }

    pub(crate) async fn fresh(&self) -> Result<String, TokenError> {
        (self.0)().await
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens")
    }
}

/// Who acks a frame, and when it counts as processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AckMode {
    /// A notification counts as processed when [`Client::next`](super::Client::next) has returned it.
    #[default]
    Auto,
    /// It counts as processed when the application calls [`Client::ack`](super::Client::ack). Duplicates and frames
    /// that cannot be decoded are processed by the client itself.
    Manual,
    /// As `Auto`, but no ack is ever sent: for tests of the server.
    Never,
}

/// How to connect. [`Config::new`] has the defaults that each field names.
#[derive(Debug, Clone)]
pub struct Config {
    /// `https://HOST:PORT/v1/push` for WebTransport, `quic://HOST:PORT` for the same frames on bare QUIC.
    pub url: String,
    /// Further addresses of the same service, such as its other nodes; none unless set. The client tries all of them in
    /// an order of its own: it begins anywhere, and goes to the next one when a connection failed or ended, or its node
    /// is about to stop.
    pub other_urls: Vec<String>,
    /// Which server certificates are good.
    pub trust: Trust,
    /// Where tokens come from.
    pub tokens: Tokens,
    /// Names the device; a second session with the same one ends the first.
    pub device_id: String,
    /// `desktop` unless set.
    pub platform: String,
    /// JSON unless set.
    pub encoding: Encoding,
    /// Take datagrams; true unless set.
    pub datagrams: bool,
    /// Inbox cursor of an earlier run, from [`Client::cursor`](super::Client::cursor). `None` starts from now.
    pub resume: Option<String>,
    /// Connect again by the protocol's rules; true unless set. When false, the first end is the last.
    pub reconnect: bool,
    /// Who acks.
    pub ack: AckMode,
    /// Give what came again as [`Event::Repeated`](super::Event::Repeated), to look at the wire; false unless set.
    pub repeats: bool,
    /// Events between the readers and the application, at least 1; 64 unless set. When it is full the readers wait.
    /// Each may hold a frame of up to 1 MiB, so this bounds the client's memory.
    pub queue: usize,
    /// `Origin` header of the WebTransport request; none unless set.
    pub origin: Option<String>,
    /// Local address of the socket when `endpoint` is `None`.
    pub bind: Bind,
    /// A socket shared with other clients. `None` opens one for this client.
    pub endpoint: Option<Endpoint>,
}

impl Config {
    /// A configuration with the defaults.
    pub fn new(url: impl Into<String>, device_id: impl Into<String>, tokens: Tokens, trust: Trust) -> Self {
        Self {
            url: url.into(),
            other_urls: Vec::new(),
            trust,
            tokens,
            device_id: device_id.into(),
            platform: "desktop".to_owned(),
            encoding: Encoding::Json,
            datagrams: true,
            resume: None,
            reconnect: true,
            ack: AckMode::Auto,
            repeats: false,
            queue: 64,
            origin: None,
            bind: Bind::Any,
            endpoint: None,
        }
    }
}
