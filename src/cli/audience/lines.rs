//! Reads an import line by line, with bounded memory.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, bail};
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::directory::{Format, Parser, Row, RowError};

/// Longest line in bytes: three ids of 128 bytes and the words around them take a fifth of it.
const LINE_BYTES_MAX: u64 = 2_048;

/// Bytes read at once; a file is read by a thread that has to be asked each time.
const BUFFER_BYTES: usize = 256 * 1024;

/// The rows of an input with the numbers of their lines.
pub(super) struct Lines {
    reader: BufReader<File>,
    parser: Parser,
    line: u64,
    buffer: Vec<u8>,
}

impl Lines {
    /// Opens `file`; `-` is standard input.
    pub(super) async fn open(file: &Path, format: Format) -> anyhow::Result<Self> {
        let opened = if file == Path::new("-") {
            let stdin = std::io::stdin().as_fd().try_clone_to_owned();
            stdin.map(|stdin| File::from_std(stdin.into()))
        } else {
            File::open(file).await
        };
        let opened = opened.with_context(|| format!("open {}", file.display()))?;
        let reader = BufReader::with_capacity(BUFFER_BYTES, opened);
        Ok(Self { reader, parser: Parser::new(format), line: 0, buffer: Vec::new() })
    }

    /// The next row, or what is wrong with its line; nothing at the end. The header's mistakes are errors, since
    /// nothing can be read after them. Not cancel-safe: the line that was begun is lost.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<(u64, Result<Row, RowError>)>> {
        loop {
            self.buffer.clear();
            self.line += 1;
            let mut limited = (&mut self.reader).take(LINE_BYTES_MAX);
            let read = limited.read_until(b'\n', &mut self.buffer).await.context("read the memberships")?;
            if read == 0 {
                return Ok(None);
            }
            if read as u64 == LINE_BYTES_MAX && self.buffer.last() != Some(&b'\n') {
                bail!("line {} is longer than {LINE_BYTES_MAX} bytes", self.line);
            }
            match self.parser.line(&self.buffer) {
                Ok(None) => {}
                Ok(Some(row)) => return Ok(Some((self.line, Ok(row)))),
                Err(error @ RowError::Header(_)) => bail!("line {}: {error}", self.line),
                Err(error) => return Ok(Some((self.line, Err(error)))),
            }
        }
    }
}
