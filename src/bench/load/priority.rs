//! Whoever publishes by the clock goes before everything else that wants the machine's processors, so that a gateway that
//! takes them all shows in its own latency, not in a load that was late.

use rustix::process::{Pid, setpriority_process};

/// The highest there is, and the one that everybody has.
const FIRST: i32 = -20;
const COMMON: i32 = 0;

/// Puts the threads that this process has now before all others, where that is permitted; where it is not, messages
/// may leave late, and the report says how many did.
pub(super) fn before_others() {
    // On Linux a priority belongs to a thread.
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let threads = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
    for thread in threads.filter_map(Pid::from_raw) {
        let _ = setpriority_process(Some(thread), FIRST);
    }
}

/// Gives this thread the priority that everybody has: it inherits that of who starts it.
pub(super) fn like_others() {
    let _ = setpriority_process(None, COMMON);
}
