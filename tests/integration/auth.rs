//! Keys from files: each algorithm opens a session, and no key accepts what another algorithm signed.

use std::path::{Path, PathBuf};

use fanfare::clock::Now;
use fanfare::protocol::CloseCode;
use fanfare::session::hello::TokenError;
use fanfare::transport::auth::{AuthError, Config, Key, KeyAlgorithm, Verifier};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};
use serde_json::{Value, json};

use crate::support::{Gateway, SCHEMES, SECRET, hello};

/// A key that signs, and the file that checks.
struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    checks: Key,
}

impl Signer {
    fn sign(&self, claims: &Value) -> String {
        jsonwebtoken::encode(&Header::new(self.algorithm), claims, &self.key).expect("the key signs")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_every_algorithm_open_sessions() {
    let folder = tempfile::tempdir().expect("a folder");
    let signers = signers(folder.path());
    let keys = signers.iter().map(|signer| signer.checks.clone()).collect();
    let verifier = Verifier::load(&Config { keys, audience: Vec::new() }).expect("good keys");
    let gateway = Gateway::start_with(|setup| setup.verifier = verifier).await;

    for scheme in SCHEMES {
        for signer in &signers {
            let mut peer = gateway.open(scheme).await;
            peer.hello(hello(&signer.sign(&claims("ann")), "d1")).await;
            assert_eq!(peer.welcome().await.user_id, "ann", "{scheme}, {:?}", signer.algorithm);

            let mut forged = signer.sign(&claims("ann"));
            let at = forged.len() - 8;
            let other = if &forged[at..=at] == "A" { "B" } else { "A" };
            forged.replace_range(at..=at, other);
            let mut peer = gateway.open(scheme).await;
            peer.hello(hello(&forged, "d2")).await;
            peer.expect_close(CloseCode::Unauthorized, &format!("{scheme}, {:?}", signer.algorithm)).await;
        }
    }
}

#[test]
fn no_key_accepts_what_another_algorithm_signed() {
    let folder = tempfile::tempdir().expect("a folder");
    let signers = signers(folder.path());

    for checker in &signers {
        let config = Config { keys: vec![checker.checks.clone()], audience: Vec::new() };
        let verifier = Verifier::load(&config).expect("a good key");
        for signer in &signers {
            let verdict = verifier.verify(&signer.sign(&claims("ann")), Now::read());
            let same = signer.algorithm == checker.algorithm;
            assert_eq!(verdict.is_ok(), same, "{:?} by a key of {:?}", signer.algorithm, checker.algorithm);
        }
        // The old trick: the public key is known, so it makes a fine HMAC secret, if the token may choose.
        if checker.algorithm != Algorithm::HS256 {
            let public = std::fs::read(&checker.checks.file).expect("the file");
            for secret in [&public[..], public.trim_ascii()] {
                let key = EncodingKey::from_secret(secret);
                let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims("ann"), &key);
                let verdict = verifier.verify(&token.expect("HS256 signs"), Now::read());
                assert!(matches!(verdict, Err(TokenError::Invalid(_))), "{:?}", checker.algorithm);
            }
        }
    }
}

#[test]
fn a_key_that_has_a_name_checks_tokens_of_that_name_only() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut signers = signers(folder.path());
    let signer = &mut signers[0];
    signer.checks.kid = Some("2024".to_owned());
    let config = Config { keys: vec![signer.checks.clone()], audience: Vec::new() };
    let verifier = Verifier::load(&config).expect("a good key");

    for (kid, accepted) in [(Some("2024"), true), (None, true), (Some("2023"), false), (Some(""), false)] {
        let mut header = Header::new(signer.algorithm);
        header.kid = kid.map(str::to_owned);
        let token = jsonwebtoken::encode(&header, &claims("ann"), &signer.key).expect("the key signs");
        assert_eq!(verifier.verify(&token, Now::read()).is_ok(), accepted, "{kid:?}");
    }
}

#[test]
fn a_configured_audience_must_be_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let signer = &signers(folder.path())[0];
    let config = Config { keys: vec![signer.checks.clone()], audience: vec!["push".to_owned()] };
    let verifier = Verifier::load(&config).expect("a good key");

    for (audience, accepted) in
        [(json!("push"), true), (json!(["chat", "push"]), true), (json!("chat"), false), (json!(null), false)]
    {
        let mut claims = claims("ann");
        claims["aud"] = audience.clone();
        assert_eq!(verifier.verify(&signer.sign(&claims), Now::read()).is_ok(), accepted, "{audience}");
    }
    assert!(verifier.verify(&signer.sign(&claims("ann")), Now::read()).is_err(), "without any");
}

#[test]
fn keys_that_cannot_be_used_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let signers = signers(folder.path());
    let load = |algorithm, file: &Path| {
        let keys = vec![Key { algorithm, file: file.to_owned(), kid: None }];
        Verifier::load(&Config { keys, audience: Vec::new() }).expect_err("no good key")
    };

    assert!(matches!(Verifier::load(&Config::default()), Err(AuthError::NoKey)));
    let missing = load(KeyAlgorithm::ES256, Path::new("/nowhere"));
    assert!(matches!(missing, AuthError::Read { .. }), "{missing}");
    let other = load(KeyAlgorithm::RS256, &signers[1].checks.file);
    assert!(matches!(other, AuthError::Key { .. }), "{other}");
    let short = folder.path().join("short");
    std::fs::write(&short, "  31 bytes are one byte too few..\n").expect("a file");
    let short = load(KeyAlgorithm::HS256, &short);
    assert!(matches!(short, AuthError::ShortSecret { bytes: 31, .. }), "{short}");
}

fn claims(user: &str) -> Value {
    let now = Now::read().unix_ms / 1_000;
    json!({"sub": user, "iat": now, "exp": now + 60})
}

/// One of each algorithm, with its file in `folder`.
fn signers(folder: &Path) -> Vec<Signer> {
    let file = |name: &str, contents: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, contents).expect("a file");
        path
    };
    let key = |algorithm, file: PathBuf| Key { algorithm, file, kid: None };
    let ecdsa = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let ed25519 = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let rsa = |name: &str| {
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys").join(name)).expect("the file")
    };
    vec![
        Signer {
            algorithm: Algorithm::HS256,
            key: EncodingKey::from_secret(SECRET),
            checks: key(KeyAlgorithm::HS256, file("secret", &[SECRET, b"\n"].concat())),
        },
        Signer {
            algorithm: Algorithm::ES256,
            key: EncodingKey::from_ec_pem(ecdsa.serialize_pem().as_bytes()).expect("a P-256 key"),
            checks: key(KeyAlgorithm::ES256, file("es256.pem", ecdsa.public_key_pem().as_bytes())),
        },
        Signer {
            algorithm: Algorithm::EdDSA,
            key: EncodingKey::from_ed_pem(ed25519.serialize_pem().as_bytes()).expect("an Ed25519 key"),
            checks: key(KeyAlgorithm::EdDSA, file("eddsa.pem", ed25519.public_key_pem().as_bytes())),
        },
        Signer {
            algorithm: Algorithm::RS256,
            key: EncodingKey::from_rsa_pem(&rsa("rs256.pem")).expect("an RSA key"),
            checks: key(KeyAlgorithm::RS256, file("rs256.pem", &rsa("rs256.pub.pem"))),
        },
    ]
}
