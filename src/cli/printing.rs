//! What becomes of a command that cannot print: `println!` and its like panic, which is no way to end because `head` has
//! read enough.

use std::any::Any;
use std::io::Write;
use std::panic;
use std::process::ExitCode;

/// Runs a command. When it cannot print it is unwound, so that everything it owns is dropped, and fails: quietly when the
/// reader has gone away, else with the reason.
pub(super) fn guarded(command: impl FnOnce() -> ExitCode + panic::UnwindSafe) -> ExitCode {
    let others = panic::take_hook();
    panic::set_hook(Box::new(move |info| match failure(info.payload()) {
        None => others(info),
        Some(text) if is_broken_pipe(text) => {}
        Some(text) => {
            // It may be this very output that cannot be written.
            let _ = writeln!(std::io::stderr(), "fanfare: {text}");
        }
    }));
    match panic::catch_unwind(command) {
        Ok(code) => code,
        Err(panic) if failure(&*panic).is_some() => ExitCode::FAILURE,
        Err(panic) => panic::resume_unwind(panic),
    }
}

/// What `println!` and its like say when they panic; `None` for any other panic.
fn failure(panic: &(dyn Any + Send)) -> Option<&str> {
    let text = panic.downcast_ref::<String>()?;
    text.starts_with("failed printing to std").then_some(text)
}

fn is_broken_pipe(text: &str) -> bool {
    // As the standard library prints EPIPE.
    text.ends_with("(os error 32)")
}
