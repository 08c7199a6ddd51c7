//! The connection to NATS.

use std::path::Path;

use fanfare::nats::{Config, connect};

use crate::support::{NatsServer, within};

#[tokio::test]
async fn a_server_that_wants_certificates_takes_the_configured_ones_only() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    certificates(folder.path());
    let server = NatsServer::start_with(&format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        file("server.pem"),
        file("server-key.pem"),
        file("ca.pem")
    ))
    .await;
    let (_, port) = server.url().rsplit_once(':').expect("a port");
    let good = Config {
        url: format!("nats://localhost:{port}"),
        tls_ca: Some(file("ca.pem")),
        tls_certificate: Some(file("client.pem")),
        tls_key: Some(file("client-key.pem")),
        ..Config::default()
    };
    let stranger = Config { tls_ca: Some(file("other-ca.pem")), ..good.clone() };
    let nobody = Config { tls_certificate: None, tls_key: None, ..good.clone() };

    let client = within(connect(&good)).await.expect("the certificates are right");
    within(client.flush()).await.expect("it answers");
    let error = within(connect(&stranger)).await.expect_err("nobody here knows the server").to_string();
    assert!(error.contains("invalid peer certificate"), "{error}");
    assert!(within(connect(&nobody)).await.is_err(), "the server wants a certificate");
}

#[tokio::test]
async fn required_tls_is_not_left_out_for_a_server_without() {
    let server = NatsServer::start_with("").await;
    let config = Config { url: server.url().to_owned(), tls_required: true, ..Config::default() };

    assert!(within(connect(&config)).await.is_err());
}

/// An authority, a server and a client signed by it, and another authority, as PEM files.
fn certificates(folder: &Path) {
    let write = |name: &str, pem: String| std::fs::write(folder.join(name), pem).unwrap();
    let authority = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), rcgen::Issuer::new(params, key))
    };
    let (ca, issuer) = authority();
    write("ca.pem", ca);
    write("other-ca.pem", authority().0);
    for name in ["server", "client"] {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        write(&format!("{name}.pem"), certificate.pem());
        write(&format!("{name}-key.pem"), key.serialize_pem());
    }
}
