//! `fanfare provision permissions`: what each role may do, for the configuration of nats-server. Needs no server.

use std::iter;

use anyhow::bail;
use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, ValueEnum};

use crate::catalog::Catalog;
use crate::config::Config;
use crate::nats::Role;
use crate::permissions::{self, conf, json};
use crate::provision::Desired;

/// Arguments of `fanfare provision permissions`.
#[derive(Debug, Args)]
pub(crate) struct Permissions {
    /// Only this role.
    #[arg(value_parser = kinds())]
    role: Option<String>,
    /// Only the publisher of this service.
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// For a file that nats-server includes, or for other tools.
    #[arg(long, value_enum, default_value = "conf")]
    format: Format,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Conf,
    Json,
}

/// What ROLE may be. The NAME of the publisher's service is the one of `--service`.
fn kinds() -> PossibleValuesParser {
    let roles = iter::once(Role::Publisher("NAME".to_owned())).chain(Role::SHARED);
    roles.map(|role| PossibleValue::new(role.kind()).help(permissions::purpose(&role))).into()
}

/// Prints them.
pub(super) fn run(
    args: &Permissions,
    config: &Config,
    catalog: &Catalog,
    desired: &Desired,
) -> anyhow::Result<()> {
    let publisher = args.service.clone().map(Role::Publisher);
    if let (Some(kind), Some(publisher)) = (&args.role, &publisher)
        && kind != publisher.kind()
    {
        bail!("--service goes with the role {} only", publisher.kind());
    }
    let services = permissions::services(catalog);
    if let Some(service) = args.service.as_deref().filter(|service| !services.contains(service)) {
        let known = services.into_iter().collect::<Vec<_>>().join(", ");
        bail!("the catalog has no event of service {service}; it has {known}");
    }
    let wanted = |role: &Role| match &publisher {
        Some(publisher) => role == publisher,
        None => args.role.as_ref().is_none_or(|kind| kind == role.kind()),
    };
    let prefix = config.nats.inbox_prefix.as_deref();
    let all: Vec<_> = permissions::roles(catalog)
        .into_iter()
        .filter(wanted)
        .map(|role| permissions::of(role, catalog, desired, prefix))
        .collect();
    println!(
        "{}",
        match args.format {
            Format::Conf => conf(&all),
            Format::Json => json(&all),
        }
    );
    Ok(())
}
