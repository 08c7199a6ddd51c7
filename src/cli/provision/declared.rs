//! Which declarations are meant: the arguments that every step of `fanfare provision` has in common.

use std::path::PathBuf;

use clap::Args;

use crate::catalog::Catalog;
use crate::provision::{Declarations, Desired, Env, Error};

/// Arguments that choose declarations and what they mean.
#[derive(Debug, Args)]
pub(super) struct Declared {
    /// Which environment's limits and replicas.
    #[arg(long, global = true, value_name = "NAME", default_value = Env::DEV.as_str())]
    env: String,
    /// Directory with streams/ and consumers/, instead of the built-in declarations.
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Value of a variable of the declarations, over the one that they have. May be given several times.
    #[arg(long = "var", global = true, value_name = "NAME=VALUE", value_parser = variable)]
    variables: Vec<(String, String)>,
    /// Whose the streams, buckets and consumers are, over the owner that the declarations name.
    #[arg(long, global = true, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    owner: Option<String>,
}

impl Declared {
    /// What should exist for the events of `catalog`.
    pub(super) fn desired(&self, catalog: &Catalog) -> Result<Desired, Error> {
        let mut declarations = match &self.dir {
            Some(dir) => Declarations::read(dir)?,
            None => Declarations::built_in()?,
        };
        for (name, value) in &self.variables {
            declarations = declarations.with_variable(name, value)?;
        }
        if let Some(owner) = &self.owner {
            declarations = declarations.with_owner(owner);
        }
        declarations.desired(catalog, Env::named(&self.env))
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.trim().to_owned(), value.to_owned()))
}
