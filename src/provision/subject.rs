//! Subject filters with wildcards: which cover which, and which have a subject in common. Pure.

/// True when the server takes it as a filter: no empty token, no blank, `>` at its end only.
pub fn is_valid(filter: &str) -> bool {
    let tokens: Vec<&str> = filter.split('.').collect();
    let last = tokens.len() - 1;
    let sound =
        |token: &str| !token.is_empty() && !token.contains(|c: char| c.is_whitespace() || c.is_control());
    tokens.iter().enumerate().all(|(at, token)| sound(token) && (*token != ">" || at == last))
}

/// True when every subject that `inner` matches is matched by `outer`, too.
pub fn covers(outer: &str, inner: &str) -> bool {
    let mut outer = outer.split('.');
    let mut inner = inner.split('.');
    loop {
        match (outer.next(), inner.next()) {
            (None, None) | (Some(">"), Some(_)) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

/// True when some subject is matched by both filters.
pub fn overlap(a: &str, b: &str) -> bool {
    let mut a = a.split('.');
    let mut b = b.split('.');
    loop {
        match (a.next(), b.next()) {
            (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some("*"), Some(_)) | (Some(_), Some("*")) => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_tokens_between_dots() {
        for valid in ["a", "a.b", "a.*", "a.>", ">", "*.b.>", "$KV.x.>", "a*.b"] {
            assert!(is_valid(valid), "{valid}");
        }
        for invalid in ["", ".", "a.", ".a", "a..b", "a b", "a.>.b", "a.\t"] {
            assert!(!is_valid(invalid), "{invalid}");
        }
    }

    #[test]
    fn wildcards_cover_what_they_match() {
        for (outer, inner) in
            [("a.>", "a.b"), ("a.>", "a.*.c"), ("a.*", "a.b"), ("a.*", "a.*"), (">", "a"), ("a", "a")]
        {
            assert!(covers(outer, inner), "{outer} {inner}");
        }
        for (outer, inner) in
            [("a.>", "a"), ("a.*", "a.>"), ("a.*", "a.b.c"), ("a.b", "a.*"), ("a.b.c", "a.b")]
        {
            assert!(!covers(outer, inner), "{outer} {inner}");
        }
    }

    #[test]
    fn filters_overlap_when_a_subject_matches_both() {
        for (a, b) in [("a.*", "*.b"), ("a.>", "a.b.c"), ("a.*.c", "a.b.*"), (">", "x.y"), ("a.b", "a.b")] {
            assert!(overlap(a, b) && overlap(b, a), "{a} {b}");
        }
        for (a, b) in [("a.*", "b.*"), ("a.b", "a.b.c"), ("a.>", "a"), ("a.*.c", "a.b.d")] {
            assert!(!overlap(a, b) && !overlap(b, a), "{a} {b}");
        }
    }
}
