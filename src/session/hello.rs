//! Admission: from the first frame and the claims of its token to a session, or to the close that says why not.

use crate::id::{DeviceId, UserId};
use crate::protocol::frame::{Close, Hello};
use crate::protocol::{ClientFrame, CloseCode, Encoding, codec};

/// Longest platform name in bytes; it is kept as long as the session.
const PLATFORM_BYTES_MAX: usize = 32;

/// The protocol version served here.
pub const VERSION: u64 = 1;

/// What a valid token says. Times are Unix milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// The user.
    pub user: UserId,
    /// When it was issued.
    pub issued_ms: u64,
    /// When it ends.
    pub expires_ms: u64,
    /// The only device it is for, if it says so.
    pub device: Option<String>,
    /// The only platform it is for, if it says so.
    pub platform: Option<String>,
}

/// Why a token was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Signature, form or claims are wrong.
    #[error("invalid token: {0}")]
    Invalid(String),
    /// It was valid once.
    #[error("the token has expired")]
    Expired,
}

impl TokenError {
    /// The close that tells a client.
    pub fn close(&self) -> Close {
        let code = match self {
            Self::Invalid(_) => CloseCode::Unauthorized,
            Self::Expired => CloseCode::TokenExpired,
        };
        Close::new(code, self.to_string(), 0)
    }
}

/// A client that may have a session.
#[derive(Debug, Clone)]
pub struct Admitted {
    /// The token's user.
    pub user: UserId,
    /// The hello's device.
    pub device: DeviceId,
    /// The hello's platform.
    pub platform: String,
    /// Encoding of every later frame.
    pub encoding: Encoding,
    /// The client reads datagrams.
    pub datagrams: bool,
    /// Inbox cursor of an earlier session.
    pub resume: Option<String>,
    /// When the token ends, Unix milliseconds.
    pub token_expires_ms: u64,
    /// When the token was issued, Unix milliseconds.
    pub token_issued_ms: u64,
}

/// Decides about the first frame's body. `verify` checks the token.
pub fn admit(
    body: &[u8],
    verify: impl FnOnce(&str) -> Result<Claims, TokenError>,
) -> Result<Admitted, Close> {
    let protocol_error = |reason: String| Close::new(CloseCode::ProtocolError, reason, 0);
    let hello = match codec::decode::<ClientFrame>(Encoding::Json, body) {
        Ok(ClientFrame::Hello(hello)) => hello,
        Ok(_) => return Err(protocol_error("the first frame must be hello".to_owned())),
        Err(error) => return Err(protocol_error(error.to_string())),
    };
    let Hello { version, token, device_id, platform, encoding, datagrams, resume } = hello;
    if version != VERSION {
        let reason = format!("version {version} is not served here, use {VERSION}");
        return Err(Close::new(CloseCode::UnsupportedVersion, reason, 0));
    }
    let device = DeviceId::new(&device_id).map_err(|error| protocol_error(format!("device_id: {error}")))?;
    if platform.len() > PLATFORM_BYTES_MAX || !crate::id::is_valid(&platform) {
        let reason = format!("platform: at most {PLATFORM_BYTES_MAX} characters out of A-Z a-z 0-9 _ -");
        return Err(protocol_error(reason));
    }
    let claims = verify(&token).map_err(|error| error.close())?;
    matches(&claims, &device, &platform)?;
    Ok(Admitted {
        user: claims.user,
        device,
        platform,
        encoding,
        datagrams,
        resume: resume.map(|resume| resume.inbox),
        token_expires_ms: claims.expires_ms,
        token_issued_ms: claims.issued_ms,
    })
}

/// A token that names a device or a platform is good for no other.
pub fn matches(claims: &Claims, device: &DeviceId, platform: &str) -> Result<(), Close> {
    let other_device = claims.device.as_deref().is_some_and(|claimed| claimed != device.as_str());
    let other_platform = claims.platform.as_deref().is_some_and(|claimed| claimed != platform);
    let what = match (other_device, other_platform) {
        (false, false) => return Ok(()),
        (true, _) => "device",
        (false, true) => "platform",
    };
    Err(Close::new(CloseCode::Unauthorized, format!("the token is for another {what}"), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(user: &str) -> Claims {
        Claims {
            user: UserId::new(user).expect("valid"),
            issued_ms: 1,
            expires_ms: 2,
            device: None,
            platform: None,
        }
    }

    fn code(body: &str, verdict: Result<Claims, TokenError>) -> u32 {
        admit(body.as_bytes(), |_| verdict).expect_err("refused").code
    }

    const HELLO: &str =
        r#"{"type":"hello","version":1,"token":"t","device_id":"d1","platform":"web","unknown":[1]}"#;

    #[test]
    fn a_good_hello_is_admitted_with_defaults() {
        let admitted = admit(HELLO.as_bytes(), |token| {
            assert_eq!(token, "t");
            Ok(claims("alice"))
        })
        .expect("admitted");
        assert_eq!(admitted.user.as_str(), "alice");
        assert_eq!(admitted.encoding, Encoding::Json);
        assert!(!admitted.datagrams);
    }

    #[test]
    fn each_mistake_has_its_code() {
        assert_eq!(code("nonsense", Ok(claims("a"))), 3500);
        assert_eq!(code(r#"{"type":"bye"}"#, Ok(claims("a"))), 3500);
        assert_eq!(code(&HELLO.replace(":1,", ":2,"), Ok(claims("a"))), 3505);
        assert_eq!(code(&HELLO.replace("d1", "d 1"), Ok(claims("a"))), 3500);
        assert_eq!(code(HELLO, Err(TokenError::Invalid("x".into()))), 3501);
        assert_eq!(code(HELLO, Err(TokenError::Expired)), 3005);
        assert_eq!(code(HELLO, Ok(Claims { device: Some("d2".into()), ..claims("a") })), 3501);
        assert_eq!(code(HELLO, Ok(Claims { platform: Some("ios".into()), ..claims("a") })), 3501);
    }
}
