//! Memberships as text: CSV with a header line, or one JSON object a line. Pure.
//!
//! Ids have no commas, quotes or line ends, so a line of CSV is cut at its commas; quotes around a field are taken off.

use serde::Deserialize;

use super::members::{self, Key};
use crate::catalog::Role;
use crate::id::{InvalidId, UserId};

/// How memberships are written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A header line that names the columns `kind`, `id`, `user` and, if there is one, `role`, in any order.
    Csv,
    /// `{"kind":"group","id":"g1","user":"u1","role":"admin"}` a line; `role` may be missing.
    Ndjson,
}

/// One membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The audience.
    pub of: Key,
    /// The member.
    pub user: UserId,
    /// The member's role; `member` where the text says none.
    pub role: Role,
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Without a good header no line can be read.
    #[error("the header must name the columns kind, id, user and may name role, once each: {0}")]
    Header(String),
    /// More or fewer fields than the header has.
    #[error("{found} columns where the header has {wanted}")]
    Columns {
        /// In this line.
        found: usize,
        /// In the header.
        wanted: usize,
    },
    /// No JSON object of the expected shape.
    #[error("not an object with kind, id, user and perhaps role: {0}")]
    Json(String),
    /// Not UTF-8.
    #[error("not UTF-8")]
    Encoding,
    /// No such kind.
    #[error("kind `{0}` is none of group, conversation, call, followers")]
    Kind(String),
    /// Not the id of an audience.
    #[error("id `{0}`: {InvalidId}")]
    Id(String),
    /// Not the id of a user.
    #[error("user `{0}`: {InvalidId}")]
    User(String),
    /// No such role.
    #[error("role `{0}` is none of owner, admin, member")]
    Role(String),
}

/// Reads lines one after the other; remembers the header.
#[derive(Debug)]
pub struct Parser {
    format: Format,
    columns: Option<Columns>,
}

/// Where the fields of a CSV line are.
#[derive(Debug, Clone, Copy)]
struct Columns {
    count: usize,
    kind: usize,
    id: usize,
    user: usize,
    role: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Object<'a> {
    #[serde(borrow)]
    kind: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    id: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    user: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    role: std::borrow::Cow<'a, str>,
}

impl Parser {
    /// A parser at the start of its input.
    pub fn new(format: Format) -> Self {
        Self { format, columns: None }
    }

    /// Reads the next line, with or without its line end. `None` for the header and for blank lines.
    pub fn line(&mut self, line: &[u8]) -> Result<Option<Row>, RowError> {
        let text = std::str::from_utf8(line).map_err(|_| RowError::Encoding)?;
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            return Ok(None);
        }
        match (self.format, self.columns) {
            (Format::Ndjson, _) => {
                let object: Object<'_> =
                    serde_json::from_str(text).map_err(|error| RowError::Json(error.to_string()))?;
                row(&object.kind, &object.id, &object.user, &object.role).map(Some)
            }
            (Format::Csv, None) => {
                self.columns = Some(header(text)?);
                Ok(None)
            }
            (Format::Csv, Some(columns)) => csv(text, columns).map(Some),
        }
    }
}

fn fields(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(|field| {
        let field = field.trim();
        field.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')).unwrap_or(field)
    })
}

fn header(text: &str) -> Result<Columns, RowError> {
    let wrong = || RowError::Header(format!("it is `{text}`"));
    let (mut at, mut count) = ([None; 4], 0);
    for name in fields(text) {
        let column = ["kind", "id", "user", "role"].iter().position(|known| *known == name);
        let slot = &mut at[column.ok_or_else(wrong)?];
        if slot.replace(count).is_some() {
            return Err(wrong());
        }
        count += 1;
    }
    let [Some(kind), Some(id), Some(user), role] = at else { return Err(wrong()) };
    Ok(Columns { count, kind, id, user, role })
}

fn csv(text: &str, columns: Columns) -> Result<Row, RowError> {
    let mut found = [""; 4];
    let mut count = 0;
    for field in fields(text) {
        if let Some(slot) = found.get_mut(count) {
            *slot = field;
        }
        count += 1;
    }
    if count != columns.count {
        return Err(RowError::Columns { found: count, wanted: columns.count });
    }
    let role = columns.role.map_or("", |at| found[at]);
    row(found[columns.kind], found[columns.id], found[columns.user], role)
}

fn row(kind: &str, id: &str, user: &str, role: &str) -> Result<Row, RowError> {
    let kind = members::stored_kind(kind).ok_or_else(|| RowError::Kind(kind.to_owned()))?;
    Ok(Row {
        of: Key::new(kind, id).ok_or_else(|| RowError::Id(id.to_owned()))?,
        user: UserId::new(user).map_err(|_| RowError::User(user.to_owned()))?,
        role: match role {
            "owner" => Role::Owner,
            "admin" => Role::Admin,
            "member" | "" => Role::Member,
            _ => return Err(RowError::Role(role.to_owned())),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Kind;

    fn group(user: &str, role: Role) -> Row {
        Row { of: Key::new(Kind::Group, "g1").unwrap(), user: UserId::new(user).unwrap(), role }
    }

    fn read(format: Format, lines: &[&str]) -> Vec<Result<Option<Row>, RowError>> {
        let mut parser = Parser::new(format);
        lines.iter().map(|line| parser.line(line.as_bytes())).collect()
    }

    #[test]
    fn columns_come_in_any_order_and_the_role_may_be_missing() {
        let rows =
            read(Format::Csv, &["\u{feff}user,kind,id\r\n", "\n", "u1,group,g1\r\n", "\"u2\", group ,g1"]);
        assert_eq!(rows[..2], [Ok(None), Ok(None)]);
        assert_eq!(rows[2], Ok(Some(group("u1", Role::Member))));
        assert_eq!(rows[3], Ok(Some(group("u2", Role::Member))));
        let rows = read(Format::Csv, &["kind,id,user,role", "group,g1,u1,owner", "group,g1,u1,"]);
        assert_eq!(rows[1], Ok(Some(group("u1", Role::Owner))));
        assert_eq!(rows[2], Ok(Some(group("u1", Role::Member))));
    }

    #[test]
    fn objects_are_read_a_line_each() {
        let rows = read(
            Format::Ndjson,
            &[
                r#"{"kind":"group","id":"g1","user":"u1","role":"admin"}"#,
                r#"{"kind":"group","id":"g1","user":"u1"}"#,
            ],
        );
        assert_eq!(rows, [Ok(Some(group("u1", Role::Admin))), Ok(Some(group("u1", Role::Member)))]);
        for bad in ["[]", "{}", r#"{"kind":"group","id":"g1","user":"u1","rule":"admin"}"#] {
            assert!(matches!(read(Format::Ndjson, &[bad])[0], Err(RowError::Json(_))), "{bad}");
        }
    }

    #[test]
    fn each_mistake_is_named() {
        for header in ["kind,id", "kind,id,user,user", "kind,id,user,rank", "group,g1,u1,owner"] {
            assert!(matches!(read(Format::Csv, &[header])[0], Err(RowError::Header(_))), "{header}");
        }
        let wrong = |line| read(Format::Csv, &["kind,id,user,role", line])[1].clone().unwrap_err();
        assert_eq!(wrong("group,g1,u1"), RowError::Columns { found: 3, wanted: 4 });
        assert_eq!(wrong("group,g1,u1,owner,x"), RowError::Columns { found: 5, wanted: 4 });
        assert_eq!(wrong("user,g1,u1,owner"), RowError::Kind("user".into()));
        assert_eq!(wrong("group,g.1,u1,owner"), RowError::Id("g.1".into()));
        assert_eq!(wrong("group,g1,,owner"), RowError::User(String::new()));
        assert_eq!(wrong("group,g1,u1,boss"), RowError::Role("boss".into()));
        assert_eq!(Parser::new(Format::Csv).line(&[0xff]), Err(RowError::Encoding));
    }
}
