//! What lies behind an error, in one line.

/// An error with its causes: a library's own words for the outermost may be no more than `connection error`.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let mut text = error.to_string();
    for cause in causes.map(ToString::to_string).filter(|cause| !cause.is_empty()) {
        // Many errors say what lies behind them, too.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
