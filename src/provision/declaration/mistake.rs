//! Collects what is wrong with a file, so that one round of edits is enough.

use crate::provision::Error;
use crate::provision::finding::{Code, Finding, Place, sorted};

/// The mistakes of the file that is being read, and of those before it.
#[derive(Debug, Default)]
pub(super) struct Mistakes {
    /// The file that is being read.
    pub(super) file: String,
    /// The object that is being read; empty when it is none.
    pub(super) object: String,
    found: Vec<Finding>,
}

impl Mistakes {
    pub(super) fn place(&self, line: usize) -> Place {
        Place { file: self.file.clone(), line }
    }

    pub(super) fn add(&mut self, code: Code, line: usize, reason: impl Into<String>, fix: impl Into<String>) {
        let place = self.place(line);
        self.add_at(code, Some(place), reason, fix);
    }

    pub(super) fn add_at(
        &mut self,
        code: Code,
        place: Option<Place>,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) {
        let object = self.object.clone();
        self.found.push(Finding { code, place, object, reason: reason.into(), fix: fix.into() });
    }

    /// `value` unless something was wrong.
    pub(super) fn or<T>(self, value: T) -> Result<T, Error> {
        if self.found.is_empty() { Ok(value) } else { Err(Error::Lint(sorted(self.found))) }
    }
}
