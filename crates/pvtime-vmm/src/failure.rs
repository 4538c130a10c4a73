//! What went wrong, for people.

/// Text from somebody else with nothing in it that a terminal or a log takes for more than text:
/// control characters, ends of lines, and what changes the direction of writing are spaces.
#[must_use]
pub fn printable(text: &str) -> String {
    let acts = |it: char| {
        it.is_control()
            || matches!(it, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(it, '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    text.chars()
        .map(|it| if acts(it) { ' ' } else { it })
        .collect()
}

/// An error and its causes in one printable line. Some errors name their cause themselves; it is not
/// said twice.
#[must_use]
pub fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line += ": ";
            line += &cause;
        }
    }
    printable(&line)
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open the door: {source}; knock")]
    struct Door {
        source: std::io::Error,
    }

    #[test]
    fn nothing_of_a_text_acts_on_a_terminal() {
        let text = "a\u{1b}[31mb\nc\u{9b}d\u{202e}e\u{2028}f é";
        assert_eq!(printable(text), "a [31mb c d e f é");
        let error = anyhow!("the field\npvtime: a VM came");
        assert_eq!(in_one_line(&error), "the field pvtime: a VM came");
    }

    #[test]
    fn causes_follow_and_none_is_said_twice() {
        let door = || Door {
            source: std::io::Error::other("it is locked"),
        };
        let error = anyhow::Error::from(door()).context("cannot enter");
        assert_eq!(
            in_one_line(&error),
            "cannot enter: cannot open the door: it is locked; knock"
        );
        let error = anyhow!("it is locked").context("cannot enter");
        assert_eq!(in_one_line(&error), "cannot enter: it is locked");
    }
}
