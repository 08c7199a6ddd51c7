//! `fanfare provision permissions`: what each role may do, for the configuration of nats-server. Needs no server.

use anyhow::bail;
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
    #[arg(value_enum)]
    role: Option<Kind>,
    /// Only the publisher of this service.
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// For a file that nats-server includes, or for other tools.
    #[arg(long, value_enum, default_value = "conf")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Services that publish notifications, one for each service of the catalog.
    Publisher,
    /// `serve --role worker`.
    Worker,
    /// `serve --role edge`.
    Edge,
    /// `serve` with both.
    All,
    /// The push service that consumes OFFLINE_PUSH.
    PushService,
    /// A service that writes members, or is asked for them.
    Members,
    /// `provision`.
    Provisioner,
    /// `nodes`, `sessions` and `trace`.
    Monitor,
    /// `dlq`, `ban` and `audience`, and what the monitor may.
    Operator,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Conf,
    Json,
}

impl Kind {
    fn of(role: &Role) -> Self {
        match role {
            Role::Publisher(_) => Self::Publisher,
            Role::Worker => Self::Worker,
            Role::Edge => Self::Edge,
            Role::All => Self::All,
            Role::PushService => Self::PushService,
            Role::Members => Self::Members,
            Role::Provisioner => Self::Provisioner,
            Role::Monitor => Self::Monitor,
            Role::Operator => Self::Operator,
        }
    }
}

/// Prints them.
pub(super) fn run(
    args: &Permissions,
    config: &Config,
    catalog: &Catalog,
    desired: &Desired,
) -> anyhow::Result<()> {
    let kind = match (args.role, &args.service) {
        (Some(kind), Some(_)) if kind != Kind::Publisher => {
            bail!("--service goes with the role publisher only")
        }
        (None, Some(_)) => Some(Kind::Publisher),
        (kind, _) => kind,
    };
    let services = permissions::services(catalog);
    if let Some(service) = args.service.as_deref().filter(|service| !services.contains(service)) {
        let known = services.into_iter().collect::<Vec<_>>().join(", ");
        bail!("the catalog has no event of service {service}; it has {known}");
    }
    let wanted = |role: &Role| match (role, &args.service) {
        (Role::Publisher(service), Some(only)) => service == only,
        _ => kind.is_none_or(|kind| kind == Kind::of(role)),
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
