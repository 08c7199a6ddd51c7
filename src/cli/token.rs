//! `fanfare token`: a token for a user, signed with a configured secret. For development and support.

use std::time::Duration;

use anyhow::Context;
use clap::Args;

use crate::clock::Now;
use crate::config::Config;
use crate::id::UserId;
use crate::transport::auth::{self, KeyAlgorithm};

/// Arguments of `fanfare token`.
#[derive(Debug, Args)]
pub(crate) struct Token {
    /// The user the token is for.
    #[arg(long, value_parser = UserId::new)]
    user: UserId,
    /// Seconds it is good for.
    #[arg(long, default_value_t = 3_600)]
    ttl_s: u64,
}

/// Prints a token signed with the first HS256 key of the configuration.
pub(crate) fn run(args: &Token, config: &Config) -> anyhow::Result<()> {
    println!("{}", sign(config, &args.user, Duration::from_secs(args.ttl_s))?);
    Ok(())
}

/// A token for `user`. The gateway has only the public half of other keys, so only HS256 can sign here.
pub(super) fn sign(config: &Config, user: &UserId, ttl: Duration) -> anyhow::Result<String> {
    let key = config
        .auth
        .keys
        .iter()
        .find(|key| key.algorithm == KeyAlgorithm::HS256)
        .context("no HS256 key is configured: set auth.keys, or give a token of your own with --token")?;
    let secret =
        std::fs::read(&key.file).with_context(|| format!("read the token key {}", key.file.display()))?;
    Ok(auth::sign_hs256(secret.trim_ascii(), user, Now::read(), ttl))
}
