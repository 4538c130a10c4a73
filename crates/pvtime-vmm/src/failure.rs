//! What went wrong, for people.

/// An error and its causes in one line. Some errors name their cause themselves; it is not said
/// twice.
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
    line
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
