//! The columns of the catalog, each for every row: what a row says is what the service does.
//!
//! Driven by the rows, so a new row is tested by being there; it needs a sample in `src/demo/samples.json`.

mod away;
mod case;
mod crowd;
mod present;
mod queued;
mod shape;

/// So that a row cannot be left out in silence.
#[test]
#[should_panic(expected = "row test.new has no sample in src/demo/samples.json: add one")]
fn a_new_row_needs_a_sample() {
    let row = r#"
        [[event]]
        type = "test.new"
        target = "user"
        lane = "low"
        rank = 1
        audience = [{ to = "user" }]
    "#;
    case::all(&fanfare::catalog::Catalog::from_toml(row).unwrap(), "new");
}
