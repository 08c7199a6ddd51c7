//! Writes very many memberships: pipelined, in order, with bounded memory.
//!
//! Each row is written as if it were new and, when the key exists, by comparison; so the highest version wins here too.
//! Results come in the order of the rows: once a row's result is there, every row before it is in the bucket.

use std::time::Duration;

use async_nats::jetstream::context::PublishErrorKind;
use futures::{Stream, StreamExt};

use super::members::Change;
use super::rows::Row;
use super::write::{ChangeError, Writer};

/// Writes that wait for their acknowledgement at once. 512 hide a round trip of 10 ms at 50,000/s.
pub const IN_FLIGHT: usize = 512;

/// Waits before a write is repeated that got no answer: together 15 s, the time of a server's restart.
const WAITS: [Duration; 4] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4), Duration::from_secs(8)];

/// What became of one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Imported {
    /// The number that came with the row.
    pub line: u64,
    /// False when the bucket had the same or a newer state, which stays.
    pub written: bool,
}

/// Writes `rows`, each with the number of its line, as they were at version `v`.
///
/// The stream that comes back does the work; it takes no more rows than [`IN_FLIGHT`] ahead. After an error those that
/// were in flight may be written or not: a repetition with the same `v` changes nothing where they are.
pub fn write_all<'a>(
    writer: &'a Writer,
    v: u64,
    rows: impl Stream<Item = (u64, Row)> + 'a,
) -> impl Stream<Item = Result<Imported, ChangeError>> + 'a {
    rows.map(move |(line, row)| async move {
        let Row { of, user, role } = row;
        let change = Change::Member { user, role: Some(role), v };
        let mut waits = WAITS.into_iter();
        loop {
            match (writer.write_new(&of, &change).await, waits.next()) {
                (Ok(written), _) => return Ok(Imported { line, written }),
                (Err(error), Some(wait)) if is_passing(&error) => {
                    tracing::debug!(%error, "a membership is written again");
                    tokio::time::sleep(wait).await;
                }
                (Err(error), _) => return Err(error),
            }
        }
    })
    .buffered(IN_FLIGHT)
}

/// True for what a restart of the server looks like.
fn is_passing(error: &ChangeError) -> bool {
    match error {
        ChangeError::Write(error) => matches!(
            error.source.kind(),
            PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe | PublishErrorKind::StreamNotFound
        ),
        ChangeError::Bucket(_) => true,
        ChangeError::Contended(_) | ChangeError::Load(_) => false,
    }
}
