//! How much processor time this process uses.

use std::time::Duration;

use tokio::time::Instant;

/// Ticks a second in which Linux counts processor time for programs, on every architecture it is built for by default.
const TICKS_PER_S: u32 = 100;

/// Shorter stretches say nothing, as Linux counts in hundredths of a second.
const STRETCH_MIN: Duration = Duration::from_millis(500);

/// A meter that is read now and then.
#[derive(Debug)]
pub struct Meter {
    last: (Instant, Option<Duration>),
    cores: Option<f32>,
}

impl Meter {
    /// Begins now.
    pub fn start(now: Instant) -> Self {
        Self { last: (now, used()), cores: None }
    }

    /// Cores in use since the last time, such as 0.35; `None` where the system does not say, and at first.
    pub fn cores(&mut self, now: Instant) -> Option<f32> {
        let (then, before) = self.last;
        let stretch = now.duration_since(then);
        if stretch >= STRETCH_MIN {
            let used = used();
            let both = used.zip(before);
            self.cores =
                both.map(|(used, before)| used.saturating_sub(before).as_secs_f32() / stretch.as_secs_f32());
            self.last = (now, used);
        }
        self.cores
    }
}

/// Processor time of all threads since the start of this process.
fn used() -> Option<Duration> {
    parse(&std::fs::read_to_string("/proc/self/stat").ok()?)
}

/// The same of another process.
pub(crate) fn used_by(pid: u32) -> Option<Duration> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The sum of fields 14 and 15 of `/proc/self/stat`: time in the program and in the kernel. Field 2 is the program's name
/// and may hold anything, so fields are counted from its closing bracket.
fn parse(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut ticks = fields.split_whitespace().skip(11).map(str::parse::<u32>);
    let (user, system) = (ticks.next()?.ok()?, ticks.next()?.ok()?);
    Some(Duration::from_secs(u64::from(user) + u64::from(system)) / TICKS_PER_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_whatever_the_program_is_called() {
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 9 0 1 2 3";
        assert_eq!(parse(stat), Some(Duration::from_secs(2)));
        assert_eq!(parse("42 (a) S 1"), None);
        assert_eq!(parse(""), None);
    }
}
