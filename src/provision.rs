//! Provisioning: makes the streams and consumers of a NATS account what the declarations say, and nothing more.
//!
//! `declaration` (files to wanted objects) → `lint` (checks without a server) → `observe` (reads, cannot write) →
//! `plan` (pure: changes, and the steps in the order in which they are safe) → `apply` (sends the steps, looks again).
//! Nothing is deleted but what carries our label, and what is made again at once. A plan that is empty sends nothing: an
//! update without a change has been seen to lose delayed messages on replicated work queues. `import` goes the other way.

pub mod apply;
pub mod declaration;
pub mod field;
pub mod finding;
pub mod import;
pub mod lint;
mod normalise;
pub mod observe;
pub mod plan;
pub mod schema;
pub mod step;
pub mod subject;
mod units;

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

pub use apply::Report;
pub use declaration::{Declarations, Desired, Env, Wanted};
pub use finding::Finding;
pub use observe::{Live, LiveConsumer, LiveStream};
pub use plan::{Change, Options, Plan};
pub use step::Step;

use crate::catalog::Catalog;

/// Key of the metadata that says whose a stream, bucket or consumer is. Every declared object carries it, so that a
/// command which deletes or reports can tell ours from those of others in the same account.
pub const OWNER_LABEL: &str = "fanfare.owner";

/// Why provisioning stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A declaration cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The declarations have no such environment.
    #[error("there is no environment `{name}`: the declarations have {known}")]
    Environment {
        /// The name that was asked for.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// A value was given to a variable that there is not.
    #[error("{0}")]
    Variable(String),
    /// The declarations are not what they should be, or contradict the catalog or each other.
    #[error("declarations have {} mistake(s):\n{}", .0.len(), finding::list(.0))]
    Lint(Vec<Finding>),
    /// The server has no JetStream, or this account may not use it.
    #[error("JetStream does not answer: start nats-server with -js, and enable JetStream for this account")]
    NoJetStream,
    /// No answer in time. The server never answers a request that the account may not send.
    #[error(
        "no answer to {subject} within {seconds} s: the server is gone or overloaded, or this user may not publish to \
         that subject (a denied request looks the same; see the server's log for a permissions violation)"
    )]
    NoAnswer {
        /// The request's subject.
        subject: String,
        /// How long we waited.
        seconds: u64,
    },
    /// The request could not be sent.
    #[error("cannot send {subject}: {source}")]
    Request {
        /// The request's subject.
        subject: String,
        /// What the client said.
        source: async_nats::RequestError,
    },
    /// The answer is not JSON of the JetStream API.
    #[error("cannot understand the answer to {subject}: {source}")]
    Answer {
        /// The request's subject.
        subject: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The server said no.
    #[error("the server refused {subject}: {description} (code {code})")]
    Server {
        /// The request's subject.
        subject: String,
        /// The JetStream error code.
        code: u64,
        /// The server's words.
        description: String,
    },
    /// The server is too old.
    #[error(
        "nats-server {found} is too old: schedules and message TTLs need {}.{} or later",
        observe::SERVER_MIN.0,
        observe::SERVER_MIN.1
    )]
    OldServer {
        /// The version it reports.
        found: String,
    },
    /// A listing lacks what did not answer.
    #[error(
        "the answer to {subject} lacks {missing}, whose servers do not answer: wait until the cluster is complete, then \
         try again"
    )]
    Incomplete {
        /// The request's subject.
        subject: String,
        /// The names.
        missing: String,
    },
    /// A stream to be made again is not declared.
    #[error("stream {name} is not declared, so it cannot be made again; declared are {known}")]
    UnknownStream {
        /// The name that was given.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// A wait took too long.
    #[error(
        "{place} has {left} message(s) {what}{}. Are its workers running? What a worker that died had in hand comes to another \
         one only while the consumer is not paused: let it run for longer than its ack_wait, then apply again, with a longer \
         --wait, or with --force to go on without them",
        after(*seconds)
    )]
    Busy {
        /// The stream or consumer.
        place: String,
        /// How many messages.
        left: u64,
        /// What is the matter with them.
        what: &'static str,
        /// How long we waited; 0 when we did not.
        seconds: u64,
    },
    /// It was to be left.
    #[error("interrupted; what is not done is done by the next apply")]
    Interrupted,
    /// A stream or consumer is not the one that the plan was made for.
    #[error(
        "{place} was made anew meanwhile, so it is not deleted: somebody else is changing the account; plan again"
    )]
    Replaced {
        /// The stream or consumer.
        place: String,
    },
    /// A consumer is not as it was when the plan was made.
    #[error(
        "{place} was changed meanwhile, perhaps by another apply: it is left as it is; plan again when the other one is done"
    )]
    Overtaken {
        /// The consumer.
        place: String,
    },
    /// A consumer is not paused that has to be.
    #[error("{place} has to be paused and is not: somebody else is changing the account; plan again")]
    NotPaused {
        /// The consumer.
        place: String,
    },
    /// What exists cannot be written as a declaration.
    #[error("cannot write a declaration {path}: {problem}")]
    Import {
        /// The file.
        path: String,
        /// Why.
        problem: String,
    },
    /// A declaration cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The plan has changes that cannot be made.
    #[error("these changes cannot be made, so nothing was changed:\n{0}")]
    Refused(Box<Plan>),
    /// The server took every change and still differs.
    #[error("the server took the changes and still differs; somebody else may be changing it:\n{0}")]
    NotSettled(Box<Plan>),
}

fn after(seconds: u64) -> String {
    if seconds == 0 { String::new() } else { format!(" after {seconds} s") }
}

/// Brings the account of `client` to what the built-in declarations say for `env`: lints, reads, plans, applies and
/// looks again. Sends no write when nothing differs.
pub async fn apply_all(client: &async_nats::Client, catalog: &Catalog, env: Env) -> Result<Report, Error> {
    apply_desired(client, catalog, &Declarations::built_in()?.desired(catalog, env)?).await
}

/// The same for these declarations.
pub async fn apply_desired(
    client: &async_nats::Client,
    catalog: &Catalog,
    desired: &Desired,
) -> Result<Report, Error> {
    let options = Options::default();
    let plan = plan_for(client, catalog, desired, &options).await?;
    apply::apply(client, desired, &plan, &options, &CancellationToken::new(), &mut |_| {}).await
}

/// Lints `desired`, reads the account and returns what would change. Sends no write.
pub async fn plan_for(
    client: &async_nats::Client,
    catalog: &Catalog,
    desired: &Desired,
    options: &Options,
) -> Result<Plan, Error> {
    let findings = lint::lint(desired, catalog);
    if !findings.is_empty() {
        return Err(Error::Lint(findings));
    }
    let known: Vec<&str> = desired.streams.iter().map(|stream| stream.stream.as_str()).collect();
    if let Some(name) = options.recreate.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(Error::UnknownStream { name: name.clone(), known: known.join(", ") });
    }
    Ok(plan::plan(desired, &observe::observe(client, desired).await?, options))
}
