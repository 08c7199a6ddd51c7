//! Why a message cannot be handled. Each refusal ends in the dead letters, with a sentence for the publisher.

/// The closed list of reasons: a header of the dead letter and a label of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Not JSON, no payload, or a field of the wrong type.
    Malformed,
    /// Larger than an envelope may be.
    TooLarge,
    /// An id outside the allowed alphabet.
    InvalidId,
    /// The catalog has no row for the subject.
    UnknownEvent,
    /// The subject and the envelope's `type` name different events.
    TypeMismatch,
    /// The subject and the envelope's `to_user_id` name different users.
    RecipientMismatch,
    /// No audience rule of the row applies, or a field that the rule needs is missing.
    NoAudience,
    /// Nobody ever wrote the audience that the notification is for.
    UnknownAudience,
    /// `metadata.deliver_at` is further ahead than schedules may be.
    TooFarAhead,
    /// The payload lacks what the event is about.
    Incomplete,
    /// Handling it panicked: a defect of the gateway.
    Panic,
    /// JetStream refused a write that it needs, or did not answer a read, at every try.
    WriteRefused,
    /// It was delivered again and again without ever coming to an end.
    CrashLoop,
}

impl Reason {
    /// The reason's name in headers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::InvalidId => "invalid_id",
            Self::UnknownEvent => "unknown_event",
            Self::TypeMismatch => "type_mismatch",
            Self::RecipientMismatch => "recipient_mismatch",
            Self::NoAudience => "no_audience",
            Self::UnknownAudience => "unknown_audience",
            Self::TooFarAhead => "too_far_ahead",
            Self::Incomplete => "incomplete",
            Self::Panic => "panic",
            Self::WriteRefused => "write_refused",
            Self::CrashLoop => "crash_loop",
        }
    }
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
