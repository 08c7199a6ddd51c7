//! Connection ids that tell a load balancer whose they are.
//!
//! The format is QUIC-LB's without encryption (<https://datatracker.ietf.org/doc/draft-ietf-quic-load-balancers/>): one
//! octet with the configuration's number, here 0, and the length of what follows; the server id; a nonce. Without a server
//! id connection ids are random.

use quinn::{ConnectionId, ConnectionIdGenerator};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Longest server id in bytes.
const SERVER_ID_BYTES_MAX: usize = 8;

/// Bytes of the nonce: ids of one node meet once in 2^32 connections, and quinn draws again then.
const NONCE_BYTES: usize = 8;

/// The id of this node in the load balancer's configuration: 1 to 8 bytes in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerId(Vec<u8>);

impl<'de> Deserialize<'de> for ServerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            let bytes = SERVER_ID_BYTES_MAX;
            D::Error::custom(format!(
                "`{text}` is no server id: 1 to {bytes} bytes in hexadecimal, such as 0a01"
            ))
        })
    }
}

impl ServerId {
    fn parse(text: &str) -> Option<Self> {
        let digits: Vec<u8> =
            text.chars().map(|digit| digit.to_digit(16).map(|value| value as u8)).collect::<Option<_>>()?;
        let fits = (1..=SERVER_ID_BYTES_MAX).contains(&digits.len().div_ceil(2));
        let bytes = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        (fits && digits.len().is_multiple_of(2)).then_some(Self(bytes))
    }
}

/// Makes connection ids that begin with a server id.
#[derive(Debug, Clone)]
pub(super) struct Routable(pub(super) ServerId);

impl ConnectionIdGenerator for Routable {
    fn generate_cid(&mut self) -> ConnectionId {
        let ServerId(server) = &self.0;
        let mut id = vec![(server.len() + NONCE_BYTES) as u8];
        id.extend_from_slice(server);
        id.extend_from_slice(&rand::random::<[u8; NONCE_BYTES]>());
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        1 + self.0.0.len() + NONCE_BYTES
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_id_names_its_server_and_differs_from_the_last() {
        let mut generator = Routable(ServerId::parse("0A01ff").unwrap());
        let (one, two) = (generator.generate_cid(), generator.generate_cid());
        assert_eq!(one.len(), generator.cid_len());
        assert_eq!(one[..4], [11, 0x0a, 0x01, 0xff]);
        assert_eq!(one[..4], two[..4]);
        assert_ne!(one, two);
    }

    #[test]
    fn what_is_no_server_id_is_refused() {
        for good in ["00", "0123456789abcdef"] {
            assert!(ServerId::parse(good).is_some(), "{good}");
        }
        for bad in ["", "0", "0g", "é0", "0123456789abcdef00", "0x01"] {
            assert!(ServerId::parse(bad).is_none(), "{bad}");
        }
    }
}
