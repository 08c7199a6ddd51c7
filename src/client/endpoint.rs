//! From a URL to an open session: the UDP socket, TLS, and WebTransport or bare QUIC over it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use socket2::{Domain, Socket, Type};
use url::Url;
use web_transport_quinn::Session;
use web_transport_quinn::http::HeaderValue;
use web_transport_quinn::http::header::ORIGIN;
use web_transport_quinn::proto::ConnectRequest;

use crate::causes::with_causes;

/// ALPN of the frames on bare QUIC.
const QUIC_ALPN: &str = "fanfare/1";

/// Subprotocol that is offered over WebTransport.
const SUBPROTOCOL: &str = "fanfare.v1";

/// Idle time after which the connection is lost. The server pings every 25 s, and the smaller of both ends' holds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// Unread bytes on one stream, then the server waits. A frame may be larger: it is read in pieces.
const STREAM_WINDOW: u32 = 256 * 1024;

/// Unread bytes on all streams: four lanes of one window.
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;

/// Streams the server may hold open: four lanes, three of HTTP/3, and some to spare.
const STREAMS_MAX: u32 = 16;

/// Unread datagrams in bytes; older ones are dropped beyond it.
const DATAGRAM_BUFFER: usize = 32 * 1024;

/// Which server certificates are good. System roots are not used.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Certificates that chain to one of these roots (PEM, one or more certificates) and name the URL's host.
    Roots(String),
    /// Exactly the certificates with one of these SHA-256 hashes, whatever they name, as
    /// `serverCertificateHashes` in browsers.
    CertificateHashes(Vec<[u8; 32]>),
}

/// The local address of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bind {
    /// 127.0.0.1: reaches this machine only.
    Loopback,
    /// All addresses, IPv6 and IPv4 where the machine has both.
    #[default]
    Any,
}

/// A mistake in a [`Config`](super::Config), or a machine without a socket to give.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a URL this client can connect to.
    #[error("invalid url `{url}`: {why}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// No certificate to trust, or one that cannot be read.
    #[error("invalid trust: {0}")]
    Trust(String),
    /// The origin is no header value.
    #[error("invalid origin `{0}`")]
    Origin(String),
    /// The device id is outside the protocol's alphabet.
    #[error("invalid device id: {0}")]
    DeviceId(#[from] crate::id::InvalidId),
    /// No UDP socket.
    #[error("bind a UDP socket: {0}")]
    Bind(#[from] std::io::Error),
}

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host has no address that the socket can reach.
    #[error("resolve {0}")]
    Resolve(String),
    /// The endpoint refused to start.
    #[error("start a connection: {0}")]
    Start(#[from] quinn::ConnectError),
    /// The QUIC handshake failed.
    #[error("connect: {0}")]
    Quic(#[from] quinn::ConnectionError),
    /// The server did not agree to a WebTransport session.
    #[error("open a WebTransport session: {}", with_causes(.0))]
    WebTransport(#[from] web_transport_quinn::ClientError),
}

/// For the packets of all clients of a socket that come while its owner is at work.
const RECEIVE_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// A socket on a free port; one for IPv6 takes IPv4, too.
fn socket(ip: IpAddr) -> std::io::Result<UdpSocket> {
    let address = SocketAddr::new(ip, 0);
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    if ip.is_ipv6() {
        // A system that keeps them apart reaches IPv6 only.
        let _ = socket.set_only_v6(false);
    }
    // Where it is too much, Linux gives less, and others nothing of it.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A UDP socket that many clients can share. Cheap to clone; the socket closes after the last clone and connection.
#[derive(Debug, Clone)]
pub struct Endpoint(quinn::Endpoint);

impl Endpoint {
    /// Opens a socket on a free port. Must be called inside a Tokio runtime.
    pub fn bind(bind: Bind) -> Result<Self, ConfigError> {
        let socket = match bind {
            Bind::Loopback => socket(Ipv4Addr::LOCALHOST.into())?,
            // A machine may have no IPv6 at all.
            Bind::Any => {
                socket(Ipv6Addr::UNSPECIFIED.into()).or_else(|_| socket(Ipv4Addr::UNSPECIFIED.into()))?
            }
        };
        let runtime = Arc::new(quinn::TokioRuntime);
        Ok(Self(quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket, runtime)?))
    }

    /// Ends every connection of this socket at once, without a goodbye that the application chose.
    pub fn close(&self) {
        self.0.close(0_u32.into(), b"");
    }

    /// Moves to a new socket on a free port: what a device does that changes networks.
    pub fn rebind(&self, bind: Bind) -> Result<(), ConfigError> {
        let ip = match (bind, self.0.local_addr()?) {
            (Bind::Loopback, _) => Ipv4Addr::LOCALHOST.into(),
            (Bind::Any, SocketAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
            (Bind::Any, SocketAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Ok(self.0.rebind(socket(ip)?)?)
    }
}

/// A session that is closed with code 0 when its owner drops it: over HTTP/3 a task of the library holds the
/// connection too, so that dropping every handle alone would leave it open.
#[derive(Debug)]
pub(crate) struct OwnedSession(Session);

impl std::ops::Deref for OwnedSession {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.0
    }
}

impl Drop for OwnedSession {
    fn drop(&mut self) {
        self.0.close(0, b"");
    }
}

/// A server to connect to: address, transport and TLS, checked and ready. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Target {
    url: Url,
    host: String,
    port: u16,
    origin: Option<HeaderValue>,
    quic: quinn::ClientConfig,
    bare: bool,
}

impl Target {
    /// Checks and prepares; resolves nothing yet.
    pub fn new(url: &str, trust: &Trust, origin: Option<&str>) -> Result<Self, ConfigError> {
        let wrong = |why: &str| ConfigError::Url { url: url.to_owned(), why: why.to_owned() };
        let parsed = Url::parse(url).map_err(|error| wrong(&error.to_string()))?;
        let bare = match parsed.scheme() {
            "https" => false,
            "quic" => true,
            _ => return Err(wrong("the scheme is neither https nor quic")),
        };
        let host = parsed.host_str().ok_or_else(|| wrong("no host"))?;
        let origin = origin
            .map(|text| HeaderValue::from_str(text).map_err(|_| ConfigError::Origin(text.to_owned())))
            .transpose()?;
        Ok(Self {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: parsed.port().unwrap_or(443),
            url: parsed,
            origin,
            quic: quic_config(trust, if bare { QUIC_ALPN } else { web_transport_quinn::ALPN })?,
            bare,
        })
    }

    /// Opens a session: the QUIC handshake and, over WebTransport, the request. One code path follows for both.
    pub(crate) async fn open(&self, endpoint: &Endpoint) -> Result<OwnedSession, ConnectError> {
        let address = self.resolve(endpoint).await?;
        let connection = endpoint.0.connect_with(self.quic.clone(), address, &self.host)?.await?;
        if self.bare {
            return Ok(OwnedSession(Session::raw(connection)));
        }
        let mut request = ConnectRequest::new(self.url.clone()).with_protocol(SUBPROTOCOL);
        if let Some(origin) = &self.origin {
            request = request.with_header(ORIGIN, origin.clone());
        }
        Ok(OwnedSession(Session::connect(connection, request).await?))
    }

    async fn resolve(&self, endpoint: &Endpoint) -> Result<SocketAddr, ConnectError> {
        let failed = || ConnectError::Resolve(format!("{}:{}", self.host, self.port));
        let v6 = endpoint.0.local_addr().is_ok_and(|address| address.is_ipv6());
        let mut found =
            tokio::net::lookup_host((self.host.as_str(), self.port)).await.map_err(|_| failed())?;
        found.find(|address| v6 || address.is_ipv4()).ok_or_else(failed)
    }
}

/// TLS 1.3 that accepts the certificates of `trust`.
pub(crate) fn tls_config(trust: &Trust) -> Result<rustls::ClientConfig, ConfigError> {
    let invalid = |error: &dyn std::fmt::Display| ConfigError::Trust(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| invalid(&error))?;
    Ok(match trust {
        Trust::Roots(pem) => {
            let mut roots = rustls::RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|error| invalid(&error))?;
                roots.add(certificate).map_err(|error| invalid(&error))?;
            }
            if roots.is_empty() {
                return Err(invalid(&"no certificate"));
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
        Trust::CertificateHashes(hashes) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned { provider, hashes: hashes.clone() }))
            .with_no_client_auth(),
    })
}

fn quic_config(trust: &Trust, alpn: &str) -> Result<quinn::ClientConfig, ConfigError> {
    let invalid = |error: &dyn std::fmt::Display| ConfigError::Trust(error.to_string());
    let mut tls = tls_config(trust)?;
    tls.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    // Sessions last for hours, so tickets would cost memory and save nothing.
    tls.resumption = rustls::client::Resumption::disabled();

    let mut transport = quinn::TransportConfig::default();
    transport
        .max_idle_timeout(Some(IDLE_TIMEOUT.try_into().map_err(|error| invalid(&error))?))
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .max_concurrent_uni_streams(STREAMS_MAX.into())
        .max_concurrent_bidi_streams(1_u32.into())
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER));
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| invalid(&error))?;
    let mut quic = quinn::ClientConfig::new(Arc::new(crypto));
    quic.transport_config(Arc::new(transport));
    Ok(quic)
}

/// Accepts certificates by their hash.
#[derive(Debug)]
struct Pinned {
    provider: Arc<CryptoProvider>,
    hashes: Vec<[u8; 32]>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let hash = web_transport_quinn::crypto::sha256(&self.provider, end_entity);
        if self.hashes.iter().any(|known| known == hash.as_ref()) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_and_quic_urls_with_a_host_are_targets() {
        let trust = Trust::CertificateHashes(vec![[0; 32]]);
        for good in
            ["https://a.example/v1/push", "quic://127.0.0.1:4433", "quic://[::1]:4433", "https://a:1/x"]
        {
            assert!(Target::new(good, &trust, None).is_ok(), "{good}");
        }
        for bad in ["", "http://a/", "a.example:443", "quic:opaque", "https://"] {
            assert!(matches!(Target::new(bad, &trust, None), Err(ConfigError::Url { .. })), "{bad}");
        }
        assert_eq!(Target::new("quic://[::1]:4433", &trust, None).unwrap().host, "::1");
    }

    #[test]
    fn roots_without_a_certificate_are_refused() {
        for pem in ["", "no pem"] {
            let result = Target::new("quic://a:1", &Trust::Roots(pem.into()), None);
            assert!(matches!(result, Err(ConfigError::Trust(_))), "{pem}");
        }
    }
}
