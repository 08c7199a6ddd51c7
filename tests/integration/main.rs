//! Integration tests: each starts a real nats-server on a free port and ends it when it is done.

mod provision;
mod support;
mod worker;
