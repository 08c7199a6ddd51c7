//! Processor time and memory of a process, from `/proc`.

use std::time::Duration;

use crate::telemetry::cpu;

/// What a process has used up to now.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Processor time, in the program and in the kernel, of all threads; in steps of 10 ms.
    pub cpu: Duration,
    /// Resident memory in bytes.
    pub rss: u64,
}

impl Usage {
    /// Reads it; `None` when the process is gone or the system does not say.
    pub fn of(pid: u32) -> Option<Self> {
        Some(Self { cpu: cpu::used_by(pid)?, rss: rss(pid)? })
    }

    /// Processor time since `before`.
    pub fn cpu_since(&self, before: &Self) -> Duration {
        self.cpu.saturating_sub(before.cpu)
    }
}

/// From `smaps_rollup`, which is counted now; where there is none from `status`, which lags by some pages a thread.
fn rss(pid: u32) -> Option<u64> {
    ["smaps_rollup", "status"]
        .iter()
        .find_map(|file| parse(&std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?))
}

/// The line `Rss:` or `VmRSS:`, in units of 1,024 bytes.
fn parse(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:").or(line.strip_prefix("VmRSS:")))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_either_file() {
        assert_eq!(parse("55d1-7fff ---p 00000000 00:00 0 [rollup]\nRss:    2 kB\nPss: 1 kB\n"), Some(2_048));
        assert_eq!(parse("Name: x\nVmRSS:\t  100 kB\n"), Some(102_400));
        assert_eq!(parse("Name: x\n"), None);
    }

    #[test]
    fn this_process_uses_memory_and_a_missing_one_nothing() {
        assert!(Usage::of(std::process::id()).is_some_and(|usage| usage.rss > 0));
        assert!(Usage::of(u32::MAX).is_none());
    }
}
