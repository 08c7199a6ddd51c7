//! Giving way: who routes to many users lets other tasks have their turn now and then.

/// Users to whom a task routes before it gives way, at some 2 µs each: connections that have something to send, and urgent
/// messages, wait no longer for it.
const USERS: u64 = 2_000;

/// What a task has done since others had their turn.
#[derive(Debug, Default)]
pub struct Turn {
    users: u64,
}

impl Turn {
    /// Something was routed to so many users.
    pub fn spend(&mut self, users: u64) {
        self.users += users;
    }

    /// Lets others have their turn when it is time.
    pub async fn give_way(&mut self) {
        if self.users >= USERS {
            self.users = 0;
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn others_have_their_turn_after_many_users() {
        let mut turn = Turn::default();
        turn.spend(USERS - 1);
        assert!(turn.give_way().now_or_never().is_some());
        turn.spend(1);
        assert!(turn.give_way().now_or_never().is_none());
        assert!(turn.give_way().now_or_never().is_some(), "it begins anew");
    }
}
