//! Selections of the catalog's stored events: `@catalog`, `@catalog:LANE`, `@catalog:LANE:SERVICE,SERVICE`. `*` stands
//! for any lane, as in a subject.

use crate::catalog::{Catalog, Lane};
use crate::provision::field::advice;

/// What one takes to be written.
const SHAPE: &str = "write @catalog, @catalog:LANE or @catalog:LANE:SERVICE,SERVICE";

/// The subjects that a selection stands for; else a reason and an advice. Never an empty list, which the server
/// understands as everything.
pub(super) fn select(text: &str, catalog: &Catalog) -> Result<Vec<String>, (String, String)> {
    let mut parts = text.split(':');
    if parts.next() != Some("@catalog") {
        return Err((format!("`{text}` is not a selection"), SHAPE.to_owned()));
    }
    let lane = match parts.next() {
        None | Some("*") => None,
        Some(word) => Some(*Lane::ALL.iter().find(|lane| lane.as_str() == word).ok_or_else(|| {
            (format!("`{word}` is not a lane"), "write high, normal, low or * for any".to_owned())
        })?),
    };
    let services: Option<Vec<&str>> = parts.next().map(|list| list.split(',').map(str::trim).collect());
    if parts.next().is_some() {
        return Err((format!("`{text}` has too many parts"), SHAPE.to_owned()));
    }
    let known = catalog.services();
    for service in services.iter().flatten() {
        if !known.contains(service) {
            let fix = advice(service, known.iter().copied());
            return Err((format!("the catalog has no service `{service}`"), fix));
        }
    }
    let subjects = catalog.stored_filters(|event| {
        lane.is_none_or(|lane| event.lane == lane)
            && services.as_ref().is_none_or(|services| services.contains(&event.service()))
    });
    if subjects.is_empty() {
        let fix = "choose another lane or service, or remove it".to_owned();
        return Err((format!("`{text}` selects no stored event"), fix));
    }
    Ok(subjects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_and_services_select() {
        let catalog = Catalog::built_in().unwrap();
        let select = |text| select(text, &catalog);

        for all in ["@catalog", "@catalog:*"] {
            assert_eq!(select(all).unwrap(), catalog.stored_subjects(), "{all}");
        }
        assert_eq!(select("@catalog:low").unwrap(), catalog.subject_filters(Lane::Low));
        assert_eq!(
            select("@catalog:low:file, push").unwrap(),
            [
                "notification.file.processing.*",
                "notification.push.delivery_status.*",
                "notification.push.token_invalid.*"
            ]
        );
        let friends = select("@catalog:*:friend").unwrap();
        assert_eq!(friends.len(), 5);
        assert!(friends.iter().all(|subject| subject.starts_with("notification.friend.")));
    }

    #[test]
    fn what_selects_nothing_is_a_mistake() {
        let catalog = Catalog::built_in().unwrap();
        for (text, reason, fix) in [
            ("@events", "`@events` is not a selection", SHAPE),
            ("@catalog:urgent", "`urgent` is not a lane", "write high, normal, low or * for any"),
            ("@catalog:*:mesage", "the catalog has no service `mesage`", "did you mean `message`?"),
            ("@catalog:high:file:x", "`@catalog:high:file:x` has too many parts", SHAPE),
            (
                "@catalog:high:file",
                "`@catalog:high:file` selects no stored event",
                "choose another lane or service, or remove it",
            ),
        ] {
            assert_eq!(select(text, &catalog), Err((reason.to_owned(), fix.to_owned())));
        }
    }
}
