//! Why a message cannot be handled. Each refusal ends in the dead letters, with a sentence for the publisher.

/// Makes the enum and its lists of one table, so that neither can lack a reason.
macro_rules! reasons {
    ($($(#[$doc:meta])* $reason:ident = $name:literal,)*) => {
        /// The closed list of reasons: a header of the dead letter and a label of metrics.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $reason,)*
        }

        impl Reason {
            /// All reasons.
            pub const ALL: &[Self] = &[$(Self::$reason,)*];

            /// The reason's name in headers and metrics.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$reason => $name,)*
                }
            }
        }
    };
}

reasons! {
    /// Not JSON, no payload, or a field of the wrong type.
    Malformed = "malformed",
    /// Larger than an envelope may be.
    TooLarge = "too_large",
    /// An id outside the allowed alphabet.
    InvalidId = "invalid_id",
    /// The catalog has no row for the subject.
    UnknownEvent = "unknown_event",
    /// The subject and the envelope's `type` name different events.
    TypeMismatch = "type_mismatch",
    /// The subject and the envelope's `to_user_id` name different users.
    RecipientMismatch = "recipient_mismatch",
    /// No audience rule of the row applies, or a field that the rule needs is missing.
    NoAudience = "no_audience",
    /// Nobody ever wrote the audience that the notification is for.
    UnknownAudience = "unknown_audience",
    /// `metadata.deliver_at` is further ahead than schedules may be.
    TooFarAhead = "too_far_ahead",
    /// The payload lacks what the event is about.
    Incomplete = "incomplete",
    /// Handling it panicked: a defect of the gateway.
    Panic = "panic",
    /// JetStream refused a write that it needs, or did not answer a read, at every try.
    WriteRefused = "write_refused",
    /// It was delivered again and again without ever coming to an end.
    CrashLoop = "crash_loop",
    /// It used up its deliveries, and JetStream gave it up before the gateway did.
    MaxDeliveries = "max_deliveries",
}

/// A message that cannot be handled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", reason.as_str())]
pub struct Refusal {
    /// The kind of reason.
    pub reason: Reason,
    /// What exactly is wrong, for the publisher.
    pub detail: String,
}

impl Refusal {
    /// A refusal for `reason`, explained by `detail`.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}
