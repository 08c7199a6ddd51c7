//! WebSocket over TLS 1.3, both ends: the other baseline of the fan-out. Only with the feature `bench`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use super::bare::{Frame, Sink};
use super::{BenchError, failed};
use crate::client::{Trust, tls_config};
use crate::transport::tls::Identity;

type Accepted = WebSocketStream<server::TlsStream<TcpStream>>;

impl Sink for Accepted {
    async fn write(&mut self, frame: &Frame) {
        let _ = self.send(Message::Binary(frame.body())).await;
    }
}

/// Serves WebSocket; gives the address.
pub(super) async fn serve(
    tasks: &mut JoinSet<()>,
    identity: Identity,
    opened: mpsc::Sender<Accepted>,
) -> Result<SocketAddr, BenchError> {
    let config = identity.server_config().map_err(failed("use the certificate"))?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed("listen"))?;
    let address = listener.local_addr().map_err(failed("listen"))?;
    tasks.spawn(async move {
        let mut handshakes = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, opened) = (acceptor.clone(), opened.clone());
            handshakes.spawn(async move {
                // Who fails is missed by the load.
                let _ = accept(stream, &acceptor, &opened).await;
            });
        }
    });
    Ok(address)
}

async fn accept(stream: TcpStream, acceptor: &TlsAcceptor, opened: &mpsc::Sender<Accepted>) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let socket = accept_async(acceptor.accept(stream).await.ok()?).await.ok()?;
    opened.send(socket).await.ok()
}

/// Opens sockets for the load.
pub(super) struct Connector(TlsConnector);

/// An open socket.
pub(super) struct Socket(WebSocketStream<client::TlsStream<TcpStream>>);

impl Connector {
    pub(super) fn new(trust: &Trust) -> Result<Self, BenchError> {
        Ok(Self(TlsConnector::from(Arc::new(tls_config(trust).map_err(failed("prepare to connect"))?))))
    }

    pub(super) async fn open(&self, address: SocketAddr) -> Result<Socket, String> {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let name = ServerName::from(address.ip());
        let stream = self.0.connect(name, stream).await.map_err(|error| error.to_string())?;
        let opened = client_async(format!("wss://{address}/"), stream).await;
        Ok(Socket(opened.map_err(|error| error.to_string())?.0))
    }
}

impl Socket {
    /// Reads until it ends; says why it did.
    pub(super) async fn read(mut self, arrived: impl Fn(&Bytes)) -> String {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Binary(body))) => arrived(&body),
                Some(Ok(_)) => {}
                Some(Err(error)) => return error.to_string(),
                None => return "the socket has ended".to_owned(),
            }
        }
    }
}
