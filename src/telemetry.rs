//! What an operator sees: logs, metrics, and the admin port with `/metrics`, `/livez` and `/readyz`.

pub mod admin;
pub mod cpu;
pub mod logs;
pub mod metrics;

pub use admin::{Admin, AdminError, Readiness};
