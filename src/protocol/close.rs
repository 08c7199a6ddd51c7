//! Close codes: why a session ended, in numbers that tell a client whether to come back.

use std::fmt;

macro_rules! close_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// Why a session ended. Codes below 3500 ask the client to reconnect, the others not to.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum CloseCode {
            $($(#[$doc])* $name,)*
        }

        impl CloseCode {
            /// Every code, in numeric order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The number on the wire.
            pub const fn code(self) -> u32 {
                match self { $(Self::$name => $code,)* }
            }

            /// The name on the wire and in metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

close_codes! {
    /// The client said bye.
    Normal = 0, "normal";
    /// The node is shutting down.
    Draining = 3000, "draining";
    /// The session is old or has carried much; a new one starts clean.
    Rotate = 3001, "rotate";
    /// The client did not keep up.
    SlowConsumer = 3002, "slow_consumer";
    /// Nothing was heard for two heartbeats.
    HeartbeatTimeout = 3003, "heartbeat_timeout";
    /// The node takes no more sessions.
    Overloaded = 3004, "overloaded";
    /// The token's time is over.
    TokenExpired = 3005, "token_expired";
    /// No hello in time.
    HelloTimeout = 3006, "hello_timeout";
    /// The node failed in a way that is not the client's fault.
    InternalError = 3007, "internal_error";
    /// The client broke the protocol.
    ProtocolError = 3500, "protocol_error";
    /// The token is not valid.
    Unauthorized = 3501, "unauthorized";
    /// The user is banned.
    Banned = 3502, "banned";
    /// The user or device was logged out.
    LoggedOut = 3503, "logged_out";
    /// The user has too many sessions.
    TooManySessions = 3504, "too_many_sessions";
    /// The protocol version is not served here.
    UnsupportedVersion = 3505, "unsupported_version";
    /// The page's origin is not allowed.
    OriginDenied = 3507, "origin_denied";
    /// The same device connected again.
    Replaced = 3508, "replaced";
}

impl CloseCode {
    /// True when the client should connect again by itself.
    pub const fn reconnect(self) -> bool {
        let code = self.code();
        code >= 3000 && code < 3500
    }

    /// The code with this number, when the protocol has one.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|known| known.code() == code)
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code(), self.name())
    }
}
