//! Time as a value: read once at the edge of a task, passed to every decision.

use tokio::time::Instant;

/// One moment on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For durations and deadlines; never jumps.
    pub instant: Instant,
    /// Unix milliseconds, for what goes on the wire and for expiry times.
    pub unix_ms: u64,
}

impl Now {
    /// The present moment.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    pub fn read() -> Self {
        let since_epoch =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self { instant: Instant::now(), unix_ms: since_epoch.as_millis() as u64 }
    }
}
