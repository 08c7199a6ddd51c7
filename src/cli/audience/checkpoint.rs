//! Where an import stands: a small file beside its input, `{FILE}.import.json`, gone when the import is complete.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::directory::Imported;

/// Everything up to `line` is in the bucket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Checkpoint {
    /// The last line that is done, from 1.
    pub(super) line: u64,
    /// The import's version, Unix microseconds.
    pub(super) v: u64,
    /// Memberships written so far.
    pub(super) written: u64,
    /// Memberships that the bucket had, or knew better.
    pub(super) unchanged: u64,
    /// Lines left out.
    pub(super) skipped: u64,
}

impl Checkpoint {
    /// The checkpoint of an interrupted import of `input`, if there is one.
    pub(super) async fn load(input: &Path) -> anyhow::Result<Option<Self>> {
        let path = path(input);
        match tokio::fs::read(&path).await {
            Ok(bytes) => {
                let known = serde_json::from_slice(&bytes);
                known
                    .map(Some)
                    .with_context(|| format!("{} cannot be read; remove it to begin again", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Notes one more row.
    pub(super) fn take(&mut self, imported: Imported) {
        self.line = imported.line;
        *if imported.written { &mut self.written } else { &mut self.unchanged } += 1;
    }

    /// Writes it beside `input`, whole or not at all.
    pub(super) async fn save(&self, input: &Path) -> anyhow::Result<()> {
        let path = path(input);
        let partial = path.with_extension("json.partial");
        let text = serde_json::to_vec(self).context("encode the checkpoint")?;
        tokio::fs::write(&partial, text).await.with_context(|| format!("write {}", partial.display()))?;
        tokio::fs::rename(&partial, &path).await.with_context(|| format!("write {}", path.display()))
    }

    /// Removes it, if there is one.
    pub(super) async fn remove(input: &Path) -> anyhow::Result<()> {
        let path = path(input);
        match tokio::fs::remove_file(&path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

fn path(input: &Path) -> PathBuf {
    let mut name = input.as_os_str().to_owned();
    name.push(".import.json");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_comes_back_as_it_was_and_goes_when_it_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("members.csv");
        let mut at = Checkpoint { v: 7, ..Checkpoint::default() };
        at.take(Imported { line: 3, written: true });
        at.take(Imported { line: 5, written: false });
        assert_eq!(Checkpoint::load(&input).await.unwrap(), None);
        at.save(&input).await.unwrap();
        let known = Checkpoint { line: 5, v: 7, written: 1, unchanged: 1, skipped: 0 };
        assert_eq!(Checkpoint::load(&input).await.unwrap(), Some(known));
        Checkpoint::remove(&input).await.unwrap();
        Checkpoint::remove(&input).await.unwrap();
        assert_eq!(Checkpoint::load(&input).await.unwrap(), None);
    }
}
