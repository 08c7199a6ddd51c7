//! One registered session: its core, where its frames go, and the bell that wakes its task.
//!
//! Whoever pushes and the session's task take turns under one lock. Nothing here waits.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::coop::cooperative;
use tokio::time::Instant;

use super::{Bell, Core, Known, Offer, Outlet, Receipts, Recipient};
use crate::clock::Now;
use crate::id::{DeviceId, UserId};
use crate::protocol::Notification;

/// One registered session: who it is, its core, where its frames go, and the bell that wakes its task.
#[derive(Debug)]
pub struct Session {
    /// Unique on this node.
    pub id: u64,
    /// The user.
    pub user: UserId,
    /// The device.
    pub device: DeviceId,
    /// The hello's platform.
    pub platform: String,
    /// Unix milliseconds of its registration.
    pub started_ms: u64,
    /// The same by the clock that nobody sets.
    started: Instant,
    /// What the other nodes know of it.
    pub known: Known,
    inner: Mutex<Inner>,
    bell: Arc<Bell>,
}

/// What whoever pushes shares with the session's task.
#[derive(Debug)]
struct Inner {
    core: Core,
    /// Set while the session's task runs.
    outlet: Option<Box<dyn Outlet>>,
}

impl Inner {
    /// Writes what the core has, as much as goes without waiting.
    fn write(&mut self, now: Now) -> Result<(), String> {
        match &mut self.outlet {
            Some(outlet) if self.core.closing().is_none() => outlet.write(&mut self.core, now),
            _ => Ok(()),
        }
    }
}

impl Session {
    /// A session that begins at `now`, whose task does not run yet.
    pub(super) fn new(
        id: u64,
        (user, device, platform): (UserId, DeviceId, String),
        core: Core,
        now: Now,
    ) -> Self {
        Self {
            id,
            user,
            device,
            platform,
            started_ms: now.unix_ms,
            started: now.instant,
            known: Known::default(),
            inner: Mutex::new(Inner { core, outlet: None }),
            bell: Arc::default(),
        }
    }

    /// How long ago it was registered.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Runs `act` on the core and wakes the session's task.
    pub fn with_core<T>(&self, act: impl FnOnce(&mut Core) -> T) -> T {
        let result = act(&mut self.inner.lock().core);
        self.bell.ring();
        result
    }

    /// Runs `act` on the core. For the session's own task, which needs no waking.
    pub fn own_core<T>(&self, act: impl FnOnce(&mut Core) -> T) -> T {
        act(&mut self.inner.lock().core)
    }

    /// From now on whoever pushes to the session writes to `outlet`.
    pub fn attach(&self, outlet: Box<dyn Outlet>) {
        self.inner.lock().outlet = Some(outlet);
    }

    /// The session's task is gone: nothing is written any more.
    pub(super) fn detach(&self) {
        self.inner.lock().outlet = None;
    }

    /// Wakes the session's task, which writes on.
    pub fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    /// Writes what found no room before and what the core has, as much as goes without waiting. For the session's own
    /// task.
    pub fn write(&self, now: Now) -> Result<(), String> {
        let mut inner = self.inner.lock();
        if let Some(outlet) = &mut inner.outlet {
            outlet.resume()?;
        }
        inner.write(now)
    }

    /// Resolves when somebody changed the core.
    pub async fn woken(&self) {
        // In turn with other tasks, however often it is woken.
        cooperative(std::future::poll_fn(|cx| self.bell.poll_rung(cx))).await;
    }

    /// Offers `note` to the core and writes what that leaves to be written, as much as goes without waiting.
    pub(super) fn offer(
        &self,
        note: &Arc<Notification>,
        recipient: &Recipient,
        receipts: Option<&Receipts>,
        now: Now,
    ) -> Offer {
        let receipt = || receipts.map(|receipts| receipts.receipt(&self.user, &self.device));
        let mut inner = self.inner.lock();
        let offer = inner.core.offer(note, recipient, receipt, now);
        // Written here and now: waking the session's task for it would take longer than the write.
        let written = inner.write(now);
        let due = inner.core.is_due();
        drop(inner);
        if due || written.is_err() {
            self.bell.ring();
        }
        offer
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use serde_json::json;

    use super::*;
    use crate::protocol::frame::SessionLane;
    use crate::protocol::{CloseCode, Encoding};
    use crate::session::inbox::{Cursor, Missed};
    use crate::session::tests::note;
    use crate::session::{Limits, Rotation};

    /// Takes what it is given until it breaks.
    #[derive(Debug, Default)]
    struct Written {
        frames: Arc<Mutex<usize>>,
        broken: bool,
    }

    impl Outlet for Written {
        fn write(&mut self, core: &mut Core, now: Now) -> Result<(), String> {
            self.resume()?;
            let mut frames = Vec::new();
            for lane in SessionLane::ALL {
                core.take(lane, now, &mut frames);
            }
            *self.frames.lock() += frames.len();
            Ok(())
        }

        fn resume(&mut self) -> Result<(), String> {
            if self.broken { Err("broken".to_owned()) } else { Ok(()) }
        }
    }

    fn session(rotation: Rotation) -> Session {
        let limits = Limits {
            window: 4,
            queue_frames: 2,
            heartbeat: Duration::from_secs(25),
            slow_after: Duration::from_secs(30),
            rotation,
        };
        let now = Now::read();
        let mut core = Core::new(limits, Encoding::Json, true, u64::MAX, now);
        core.welcome(Vec::new().into(), Cursor::default(), Missed::default());
        let (user, device) = (UserId::new("u").unwrap(), DeviceId::new("d").unwrap());
        Session::new(1, (user, device, "web".to_owned()), core, now)
    }

    fn offer(session: &Session, event: &str, seq: u64) -> Offer {
        let note = Arc::new(note(event, seq, &json!({ "status": seq })));
        session.offer(&note, &Recipient::online(session.user.clone()), None, Now::read())
    }

    fn is_woken(session: &Session) -> bool {
        session.woken().now_or_never().is_some()
    }

    #[test]
    fn a_push_is_written_at_once_and_wakes_nobody() {
        let session = session(Rotation::new(0, Duration::ZERO));
        assert_eq!(offer(&session, "group.member_joined", 1), Offer::Accepted);
        let written = Written::default();
        let frames = written.frames.clone();
        session.attach(Box::new(written));
        assert_eq!(*frames.lock(), 0, "what came before the task waits for its first turn");
        session.write(Now::read()).unwrap();
        assert_eq!(*frames.lock(), 1);
        assert_eq!(offer(&session, "group.member_joined", 2), Offer::Accepted);
        assert_eq!(*frames.lock(), 2);
        assert!(!is_woken(&session));
        session.detach();
        assert_eq!(offer(&session, "group.member_joined", 3), Offer::Accepted);
        assert_eq!(*frames.lock(), 2, "nobody writes without the task");
    }

    #[test]
    fn the_task_is_woken_for_what_only_it_can_do() {
        let carried = session(Rotation::new(1, Duration::ZERO));
        carried.attach(Box::new(Written::default()));
        offer(&carried, "group.member_joined", 1);
        assert!(is_woken(&carried), "to ask for a fresh session");

        let broken = session(Rotation::new(0, Duration::ZERO));
        broken.attach(Box::new(Written { broken: true, ..Written::default() }));
        assert_eq!(offer(&broken, "group.member_joined", 1), Offer::Accepted);
        assert!(is_woken(&broken), "to end the session");
        assert!(broken.write(Now::read()).is_err(), "it is told again");

        let ended = session(Rotation::new(0, Duration::ZERO));
        let written = Written::default();
        let frames = written.frames.clone();
        ended.attach(Box::new(written));
        ended.with_core(|core| core.close(CloseCode::Banned, "", 0));
        assert!(is_woken(&ended));
        assert_eq!(offer(&ended, "group.member_joined", 1), Offer::Gone);
        assert!(is_woken(&ended) && *frames.lock() == 0);
    }
}
