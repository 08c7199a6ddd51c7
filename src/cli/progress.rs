//! How far a long command is: one line that is written over on a terminal, a plain line now and then elsewhere.

use std::io::Write;
use std::time::Duration;

use tokio::time::Instant;

/// Time between two lines on a terminal: as often as one can read.
const EVERY_ON_TERMINAL: Duration = Duration::from_millis(200);

/// Time between two lines elsewhere, where each one stays.
const EVERY: Duration = Duration::from_secs(10);

/// Characters of the bar.
const BAR: u64 = 24;

/// Counts what is done and shows it.
#[derive(Debug)]
pub(super) struct Progress {
    total: Option<u64>,
    done: u64,
    started: Instant,
    shown: Instant,
    terminal: bool,
}

impl Progress {
    /// Nothing of `total` is done; `None` when nobody knows how many there are.
    pub(super) fn new(total: Option<u64>, now: Instant, terminal: bool) -> Self {
        Self { total, done: 0, started: now, shown: now, terminal }
    }

    /// One more is done.
    pub(super) fn advance(&mut self, now: Instant) {
        self.done += 1;
        let every = if self.terminal { EVERY_ON_TERMINAL } else { EVERY };
        if now.duration_since(self.shown) >= every {
            self.shown = now;
            let line = self.line(now);
            if self.terminal {
                eprint!("\r{line}\x1b[K");
                // A terminal that is gone is no reason to stop.
                let _ = std::io::stderr().flush();
            } else {
                eprintln!("{line}");
            }
        }
    }

    /// Takes the line off the terminal.
    pub(super) fn finish(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }

    /// How long it took.
    pub(super) fn summary(&self, now: Instant) -> String {
        let elapsed = now.duration_since(self.started).as_secs_f64();
        format!("{elapsed:.1} s, {}/s", grouped(self.rate(now)))
    }

    fn rate(&self, now: Instant) -> u64 {
        (self.done as f64 / now.duration_since(self.started).as_secs_f64().max(0.001)) as u64
    }

    fn line(&self, now: Instant) -> String {
        let rate = self.rate(now);
        let Some(total) = self.total.filter(|total| *total > 0) else {
            return format!("{}  {}/s", grouped(self.done), grouped(rate));
        };
        let done = self.done.min(total);
        let full = done * BAR / total;
        let bar = if self.terminal {
            format!("[{}{}] ", "#".repeat(full as usize), ".".repeat((BAR - full) as usize))
        } else {
            String::new()
        };
        let left = (total - done).checked_div(rate).map_or_else(|| "?".to_owned(), clock);
        format!(
            "{bar}{:.1} %  {} of {}  {}/s  {left} left",
            done as f64 * 100.0 / total as f64,
            grouped(done),
            grouped(total),
            grouped(rate)
        )
    }
}

/// Seconds as `1 m 05 s`.
fn clock(seconds: u64) -> String {
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds} s"),
        (minutes, seconds) => format!("{minutes} m {seconds:02} s"),
    }
}

/// `1,234,567`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_bar_share_rate_and_time_left() {
        let start = Instant::now();
        let mut progress = Progress::new(Some(1_000_000), start, true);
        progress.done = 250_000;
        assert_eq!(
            progress.line(start + Duration::from_secs(10)),
            "[######..................] 25.0 %  250,000 of 1,000,000  25,000/s  30 s left"
        );
        progress.terminal = false;
        assert_eq!(
            progress.line(start + Duration::from_secs(100)),
            "25.0 %  250,000 of 1,000,000  2,500/s  5 m 00 s left"
        );
        progress.total = None;
        assert_eq!(progress.line(start + Duration::from_secs(10)), "250,000  25,000/s");
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
