//! What went wrong, for people.

use anyhow::Result;

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

/// The last thing that was said of something that is tried again and again.
#[derive(Debug, Default)]
pub struct LastSaid(Option<String>);

impl LastSaid {
    /// A text that is to be said, if it is not what was said last.
    pub fn news(&mut self, text: String) -> Option<&str> {
        let is_news = self.0.as_ref() != Some(&text);
        is_news.then(|| self.0.insert(text).as_str())
    }

    /// What there is to say of something after a try, or after none; `is_over` where it need not be tried
    /// any more. What was over is news if it comes again.
    pub fn after(&mut self, tried: Option<Result<()>>, is_over: bool) -> Option<String> {
        match tried {
            Some(Err(error)) => self.news(in_one_line(&error)).map(str::to_owned),
            None if !is_over => None,
            Some(Ok(())) | None => self.0.take().map(|line| format!("no longer so: {line}")),
        }
    }
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
    fn a_reason_is_said_once_until_it_changes_or_is_over() {
        let mut said = LastSaid::default();
        let mut after = |tried: Option<Result<(), &'static str>>, is_over| {
            said.after(
                tried.map(|it| it.map_err(|reason| anyhow!(reason))),
                is_over,
            )
        };
        assert_eq!(after(Some(Ok(())), true), None);
        assert_eq!(after(Some(Err("busy")), true).as_deref(), Some("busy"));
        assert_eq!(after(Some(Err("busy")), false), None);
        assert_eq!(after(None, false), None, "it will be tried again");
        assert_eq!(after(Some(Err("busy")), false), None);
        assert_eq!(after(Some(Err("away")), false).as_deref(), Some("away"));
        let over = after(Some(Ok(())), false);
        assert_eq!(over.as_deref(), Some("no longer so: away"));
        assert_eq!(after(Some(Ok(())), false), None);
        assert_eq!(after(Some(Err("away")), false).as_deref(), Some("away"));
        let over = after(None, true);
        assert_eq!(
            over.as_deref(),
            Some("no longer so: away"),
            "somebody else did it"
        );
    }

    #[test]
    fn the_same_is_no_news() {
        let mut said = LastSaid::default();
        let seen = ["there", "there", "gone", "there"].map(|text| said.news(text.into()).is_some());
        assert_eq!(seen, [true, false, true, true]);
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
