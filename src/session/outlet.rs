//! Where the frames of a session go, as whoever pushes sees it.
//!
//! The one who moves the bytes is in `transport`; this is the seam.

use super::Core;
use crate::clock::Now;

/// The lanes and datagrams of one session.
pub trait Outlet: Send + std::fmt::Debug {
    /// Takes from `core` what may be written and writes it, as much as goes without waiting. What finds no room rings the
    /// session's bell when there is some. An error is told again to the session's task, by [`Self::resume`].
    fn write(&mut self, core: &mut Core, now: Now) -> Result<(), String>;

    /// Writes what found no room before.
    fn resume(&mut self) -> Result<(), String>;
}
