//! The shape of the tree, held by tests: which module may name which, how long a file may be, what must not be left
//! behind. Each rule is a function from a file to its faults, listed in [`RULES`] with samples that it must catch and
//! samples that it must let pass, so that a rule cannot stop working unseen. Needs nothing but the standard library.

use std::fs;
use std::path::{Path, PathBuf};

use May::{AllBut, Only};

/// The modules of `src`, top to bottom as data goes, and which others each may name. A new module is a new line.
const LAYERS: &[(&str, May)] = &[
    ("id", Only(&[])),
    ("clock", Only(&[])),
    ("causes", Only(&[])),
    ("turn", Only(&[])),
    ("telemetry", Only(&[])),
    ("nats", Only(&[])),
    ("catalog", Only(&[])),
    ("protocol", Only(&["catalog"])),
    ("provision", Only(&["catalog", "nats", "config"])),
    ("directory", Only(&["catalog", "nats", "telemetry"])),
    ("session", Only(&["protocol", "catalog", "telemetry"])),
    ("control", Only(&["session", "protocol", "catalog", "nats", "telemetry"])),
    ("transport", Only(&["control", "session", "protocol", "catalog", "telemetry"])),
    ("pipeline", Only(&["control", "directory", "session", "protocol", "catalog", "nats", "telemetry"])),
    ("cluster", Only(&["pipeline", "session", "protocol", "catalog", "nats", "telemetry"])),
    ("delivery", Only(&["pipeline", "session", "protocol", "catalog", "nats", "telemetry"])),
    (
        "worker",
        Only(&[
            "delivery",
            "pipeline",
            "control",
            "directory",
            "session",
            "protocol",
            "catalog",
            "nats",
            "telemetry",
        ]),
    ),
    ("client", Only(&["protocol"])),
    ("publisher", Only(&["protocol", "catalog", "nats"])),
    ("config", AllBut(&["cli", "bench", "lifecycle"])),
    ("lifecycle", AllBut(&["cli", "bench"])),
    ("permissions", Only(&["cluster", "directory", "provision", "catalog", "nats"])),
    ("demo", AllBut(&["cli", "bench"])),
    ("bench", AllBut(&["cli"])),
    ("cli", AllBut(&[])),
];

/// Small modules of shared types, which every other may name.
const VOCABULARY: &[&str] = &["id", "clock", "causes", "turn"];

/// Crates that one part of `src` keeps to itself, and the modules which may name them.
const CONFINED: &[(&str, &[&str])] = &[
    ("anyhow", &["cli"]),
    ("quinn", &["transport", "client", "bench"]),
    ("quinn_proto", &["transport", "client"]),
    ("web_transport_quinn", &["transport", "client", "bench"]),
];

/// Marks of unfinished work. They are written in halves, so that this file does not hold them.
const LEFTOVERS: &[&str] = &[
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("dbg", "!("),
    concat!("#[", "ignore"),
    concat!("FIX", "ME"),
    concat!("TO", "DO"),
    concat!("XX", "X"),
];

/// Lines in a source file, without the tests at the end of a Rust file.
const LINES_MAX: usize = 500;

const RULES: &[Rule] = &[
    Rule {
        why: "data goes one way: see LAYERS in tests/tidy.rs",
        faults: layers,
        bad: &[
            "src/session/lanes.rs: use crate::delivery::Ledger;",
            "src/session/lanes.rs: use super::super::delivery::Ledger;",
            "src/session.rs: use super::{\n    catalog::Rule,\n    delivery::{Ledger, Outcome},\n};",
            "src/session.rs: fn f(l: &crate::delivery::Ledger) {}",
            "src/session.rs: use crate::{delivery as d, protocol};",
            "src/session.rs: use crate::RootItem;",
            "src/session.rs: use crate::*;",
            "src/session.rs: #[cfg(test)]\nmod tests;\nuse crate::delivery::Ledger;",
            "src/unheard_of.rs: //! A module without a line.",
        ],
        good: &[
            "src/session/lanes.rs: use crate::{id::UserId, session::Id};",
            "src/session/lanes.rs: use super::delivery;\nuse super::super::protocol::Frame;",
            "src/session.rs: use crate::{catalog::Rule, protocol::{self, Frame}};",
            "src/session.rs: /// What [`crate::delivery`] waits for.\nstruct Receipt;",
            "src/session.rs: #[cfg(test)]\nmod tests {\n    use crate::delivery::Ledger;\n}",
            "src/cli/serve.rs: use crate::lifecycle;",
            "src/lib.rs: pub use crate::publisher::Publisher;",
        ],
    },
    Rule {
        why: "a crate stays in the modules that CONFINED in tests/tidy.rs gives it",
        faults: confined,
        bad: &[
            "src/session.rs: use anyhow::Context;",
            "src/client/wire.rs: return Err(anyhow!(\"no\"));",
            "src/main.rs: fn main() -> anyhow::Result<()> {}",
            "src/session/task.rs: use quinn as q;",
            "src/session/task.rs: fn f(session: web_transport_quinn::Session) {}",
        ],
        good: &[
            "src/cli/serve.rs: use anyhow::Context;",
            "src/transport/endpoint.rs: use web_transport_quinn::Session;",
            "src/session.rs: // quinn::Connection is hidden.\nlet quinn_window = \"quinn=warn\";",
        ],
    },
    Rule {
        why: "a file of more than 500 lines, tests at its end not counted, is two files",
        faults: too_long,
        bad: &[
            "src/session.rs: <501 lines>",
            "src/session.rs: #[cfg(test)]\nmod tests;<501 lines>",
            "clients/web/src/client.ts: <501 lines>",
        ],
        good: &["src/session.rs: #[cfg(test)]\nmod tests {<501 lines>}", "docs/protocol.md: <501 lines>"],
    },
    Rule {
        why: "a file starts with //! and says what it is for, its place in the path and its limits",
        faults: undescribed,
        bad: &["src/session.rs: use std::fmt;", "src/session/lanes.rs: "],
        good: &["src/session.rs: //! Sessions.", "tests/integration/main.rs: mod support;"],
    },
    Rule {
        why: "a module is foo.rs beside foo/",
        faults: mod_rs,
        bad: &["src/session/mod.rs: //! Sessions."],
        good: &["src/session.rs: //! Sessions.", "tests/integration/support/mod.rs: //! Support."],
    },
    Rule {
        why: "the public API is named item by item",
        faults: wildcard_export,
        bad: &["src/lib.rs: pub use session::*;", "src/lib.rs: pub use session::{\n    lanes::*,\n};"],
        good: &[
            "src/lib.rs: pub use session::{Id, Lane};\nstatic A: *const u8;",
            "src/cli.rs: pub use a::*;",
        ],
    },
    Rule {
        why: "a task has an owner: JoinSet or TaskTracker",
        faults: bare_spawn,
        bad: &["src/session.rs: tokio::spawn(run());", "src/nats.rs: let t = tokio::task::spawn(run());"],
        good: &["src/session.rs: tasks.spawn(run());\n// not tokio::spawn( here"],
    },
    Rule {
        why: "finish it, or say in the documentation that it is not there",
        faults: leftovers,
        bad: &[
            concat!("src/session.rs: todo", "!()"),
            concat!("src/session.rs: let x = dbg", "!(y);"),
            concat!("clients/web/src/client.ts: // FIX", "ME: later"),
            concat!("docs/operations.md: (XX", "X)"),
        ],
        good: &[concat!("dev: mktemp -d partial.XX", "XXXX"), concat!("Cargo.lock: XX", "X")],
    },
    Rule {
        why: "a link leads to a file that is there",
        faults: dead_links,
        bad: &[
            "README.md: See [how](docs/nowhere.md#part).",
            "tests/README.md: [how](Cargo.toml)",
            "tests/README.md: text\n\n[how]: nowhere.md\n",
        ],
        good: &[
            "README.md: [a](Cargo.toml) [b](https://example.org/x) [c](#part) `[d](nowhere.md)`",
            "tests/README.md: [a](../Cargo.toml#package \"title\")\n```\n[b](nowhere.md)\n```\n",
        ],
    },
];

#[test]
fn the_tree_keeps_every_rule() {
    let files = tree();
    assert!(files.iter().any(|file| file.path == "src/lib.rs"), "the walk did not find src/lib.rs");
    let faults: Vec<String> =
        RULES.iter().flat_map(|rule| files.iter().flat_map(|file| report(rule, file))).collect();
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn every_rule_catches_its_bad_samples_and_passes_the_good() {
    for rule in RULES {
        assert!(!rule.bad.is_empty(), "nothing shows that `{}` works", rule.why);
        for sample in rule.bad {
            assert!(!report(rule, &File::sample(sample)).is_empty(), "`{}` passes {sample}", rule.why);
        }
        for sample in rule.good {
            assert_eq!(report(rule, &File::sample(sample)), [""; 0], "{sample}");
        }
    }
}

#[test]
fn a_fault_is_reported_with_file_line_and_reason() {
    let file = File::sample("src/session.rs: use crate::{\n    catalog::Rule,\n    cli::Args,\n};");
    let expected =
        "src/session.rs:3: session names crate::cli (data goes one way: see LAYERS in tests/tidy.rs)";
    assert_eq!(report(&RULES[0], &file), [expected]);
}

#[test]
fn every_module_named_in_a_table_has_a_line_in_layers() {
    let named_by_layers = LAYERS.iter().flat_map(|(_, Only(list) | AllBut(list))| *list);
    let named_by_confined = CONFINED.iter().flat_map(|(_, owners)| *owners);
    for name in named_by_layers.chain(named_by_confined).chain(VOCABULARY) {
        assert!(line_in_layers(name).is_some(), "{name} has no line");
    }
}

struct Rule {
    why: &'static str,
    faults: fn(&File) -> Vec<Fault>,
    /// Samples are `path: text`; `<501 lines>` stands for as many empty ones.
    bad: &'static [&'static str],
    good: &'static [&'static str],
}

/// A line number, from 1, and what is wrong there.
type Fault = (usize, String);

/// Which modules of `src` a module may name beside itself.
enum May {
    Only(&'static [&'static str]),
    AllBut(&'static [&'static str]),
}

impl May {
    fn name(&self, module: &str) -> bool {
        match self {
            Only(list) => list.contains(&module) || VOCABULARY.contains(&module),
            AllBut(list) => !list.contains(&module),
        }
    }
}

fn line_in_layers(module: &str) -> Option<&'static May> {
    LAYERS.iter().find(|(name, _)| *name == module).map(|(_, may)| may)
}

/// A text file; `path` is relative to the root of the repository, with `/` on every system.
struct File {
    path: String,
    text: String,
}

impl File {
    fn sample(sample: &str) -> Self {
        let (path, text) = sample.split_once(": ").expect("a sample is `path: text`");
        Self { path: path.to_owned(), text: text.replace("<501 lines>", &"\n".repeat(501)) }
    }

    fn is(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|found| found == extension)
    }

    /// The path as modules for a Rust file of `src`: `session`, `lanes` for `src/session/lanes.rs`.
    fn modules(&self) -> Option<Vec<&str>> {
        Some(self.path.strip_prefix("src/")?.strip_suffix(".rs")?.split('/').collect())
    }

    /// The top-level module of `src` that the file belongs to; none for the two roots.
    fn module(&self) -> Option<&str> {
        self.modules().map(|path| path[0]).filter(|name| !["lib", "main"].contains(name))
    }

    /// The text up to the `mod tests {` that ends a Rust file. Tests in a file of their own are no end.
    fn without_tests(&self) -> &str {
        let tail = self.text.find("#[cfg(test)]\nmod tests {").filter(|_| self.is("rs"));
        &self.text[..tail.unwrap_or(self.text.len())]
    }
}

fn layers(file: &File) -> Vec<Fault> {
    let Some(module) = file.module() else {
        return Vec::new();
    };
    let Some(may) = line_in_layers(module) else {
        return vec![(1, format!("{module} has no line in LAYERS"))];
    };
    let code = without_comments(file.without_tests());
    let from_crate = root_names(&code, "crate::");
    // As many `super` as the file is deep reach the root. From a module within the file they do not, so what they
    // name counts only if it is a module of `src`.
    let supers = "super::".repeat(file.modules().map_or(0, |path| path.len()));
    let from_super =
        root_names(&code, &supers).into_iter().filter(|(_, name)| line_in_layers(name).is_some());
    from_crate
        .into_iter()
        .chain(from_super)
        .filter(|(_, name)| *name != module)
        .filter_map(|(at, name)| {
            let what = match line_in_layers(name) {
                None => format!("{module} names crate::{name}, which has no line in LAYERS"),
                Some(_) if may.name(name) => return None,
                Some(_) => format!("{module} names crate::{name}"),
            };
            Some((line_of(&code, at), what))
        })
        .collect()
}

fn confined(file: &File) -> Vec<Fault> {
    let Some(path) = file.modules() else { return Vec::new() };
    let module = path[0];
    let foreign: Vec<_> = CONFINED.iter().filter(|(_, owners)| !owners.contains(&module)).collect();
    faulty_lines(&without_comments(&file.text), |line| {
        let (name, _) = foreign.iter().find(|(name, _)| names_crate(line, name))?;
        Some(format!("{module} names {name}"))
    })
}

fn too_long(file: &File) -> Vec<Fault> {
    let count = file.without_tests().lines().count();
    if count > LINES_MAX && (file.is("rs") || file.is("ts")) {
        return vec![(LINES_MAX + 1, format!("{count} lines"))];
    }
    Vec::new()
}

fn undescribed(file: &File) -> Vec<Fault> {
    let silent = file.modules().is_some() && !file.text.starts_with("//!");
    silent.then(|| (1, "no //! on the first line".to_owned())).into_iter().collect()
}

fn mod_rs(file: &File) -> Vec<Fault> {
    let old_style = file.modules().is_some_and(|path| path.last() == Some(&"mod"));
    old_style.then(|| (1, "mod.rs".to_owned())).into_iter().collect()
}

fn wildcard_export(file: &File) -> Vec<Fault> {
    if file.path != "src/lib.rs" {
        return Vec::new();
    }
    let code = without_comments(&file.text);
    let exports =
        code.match_indices("pub use ").map(|(at, _)| (at, code[at..].split(';').next().unwrap_or("")));
    exports
        .filter(|(_, export)| export.contains('*'))
        .map(|(at, export)| (line_of(&code, at), export.to_owned()))
        .collect()
}

fn bare_spawn(file: &File) -> Vec<Fault> {
    if file.modules().is_none() {
        return Vec::new();
    }
    faulty_lines(&without_comments(&file.text), |line| {
        let bare = ["tokio::spawn(", "tokio::task::spawn("].into_iter().find(|call| line.contains(call))?;
        Some(format!("{bare}..)"))
    })
}

fn leftovers(file: &File) -> Vec<Fault> {
    // The sums in lock files can spell anything.
    if file.is("lock") || file.path.ends_with("package-lock.json") {
        return Vec::new();
    }
    faulty_lines(&file.text, |line| {
        let mark = LEFTOVERS.iter().find(|mark| !words(line, mark).is_empty())?;
        Some(format!("{mark} is left"))
    })
}

fn dead_links(file: &File) -> Vec<Fault> {
    if !file.is("md") {
        return Vec::new();
    }
    let folder = root().join(&file.path).parent().map(Path::to_path_buf).unwrap_or_default();
    let mut in_code = false;
    faulty_lines(&file.text, |line| {
        in_code ^= line.trim_start().starts_with("```");
        let prose = if in_code { String::new() } else { line.split('`').step_by(2).collect::<String>() };
        let inline = prose.split("](").skip(1).filter_map(|rest| rest.split([')', ' ', '#']).next());
        let reference = prose.strip_prefix('[').and_then(|rest| rest.split_once("]: "));
        let target = reference.and_then(|(_, rest)| rest.split([' ', '#']).next());
        inline
            .chain(target)
            .find(|link| !link.is_empty() && !link.contains(':') && !folder.join(link).exists())
            .map(|link| format!("no file {link}"))
    })
}

fn report(rule: &Rule, file: &File) -> Vec<String> {
    let faults = (rule.faults)(file).into_iter();
    faults.map(|(line, what)| format!("{}:{line}: {what} ({})", file.path, rule.why)).collect()
}

/// The first name of each path after `prefix`, and where it stands: `a` and `b` for `crate::{a::X, b}`.
fn root_names<'a>(code: &'a str, prefix: &str) -> Vec<(usize, &'a str)> {
    let starts = code
        .match_indices(prefix)
        .map(|(at, _)| at)
        .filter(|&at| !code[..at].ends_with(|c| is_word(c) || c == ':'));
    starts.flat_map(|at| first_names(code, at + prefix.len())).collect()
}

fn first_names(code: &str, start: usize) -> Vec<(usize, &str)> {
    if !code[start..].starts_with('{') {
        return vec![(start, identifier(&code[start..]))];
    }
    let (mut depth, mut names) = (0, Vec::new());
    for (at, character) in code[start..].char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && ['{', ','].contains(&character) {
            let rest = &code[start + at + 1..];
            let name = start + at + 1 + (rest.len() - rest.trim_start().len());
            names.push((name, identifier(&code[name..])));
        }
    }
    names.retain(|(at, name)| *name != "self" && !code[*at..].starts_with('}'));
    names
}

/// The identifier that the text starts with, or its first character where there is none, as in `*`.
fn identifier(text: &str) -> &str {
    let end = text.find(|c: char| !is_word(c)).unwrap_or(text.len());
    &text[..end.max(text.chars().next().map_or(0, char::len_utf8))]
}

fn names_crate(line: &str, name: &str) -> bool {
    words(line, name).into_iter().any(|at| {
        let after = &line[at + name.len()..];
        line[..at].ends_with("use ") || after.starts_with("::") || after.starts_with('!')
    })
}

/// Where `word` stands in the line by itself, not as a part of a longer word.
fn words(line: &str, word: &str) -> Vec<usize> {
    let whole = |&at: &usize| {
        let ends_open = word.ends_with(|c| !is_word(c));
        !line[..at].ends_with(is_word) && (ends_open || !line[at + word.len()..].starts_with(is_word))
    };
    line.match_indices(word).map(|(at, _)| at).filter(whole).collect()
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// The same lines, without what follows `//`; a `//` inside a word, as in an address, is left.
fn without_comments(text: &str) -> String {
    let code = |line: &str| {
        let comment = line.trim_start().starts_with("//");
        if comment { String::new() } else { line.split(" //").next().unwrap_or("").to_owned() }
    };
    text.lines().map(code).collect::<Vec<_>>().join("\n")
}

fn faulty_lines(text: &str, mut fault: impl FnMut(&str) -> Option<String>) -> Vec<Fault> {
    text.lines().enumerate().filter_map(|(index, line)| Some((index + 1, fault(line)?))).collect()
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file that people write: no hidden folders, no caches, nothing that a package manager or a build made.
fn tree() -> Vec<File> {
    let (mut files, mut folders) = (Vec::new(), vec![root()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the tree can be listed") {
            let path = entry.expect("a folder of the tree can be listed").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let made =
                ["target", "node_modules", "dist"].contains(&&*name) || path.join("CACHEDIR.TAG").exists();
            if name.starts_with('.') || made {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                let relative = path.strip_prefix(root()).expect("the walk starts at the root");
                files.push(File { path: relative.to_string_lossy().replace('\\', "/"), text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}
