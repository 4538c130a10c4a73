//! C text as tokens, one logical line at a time.

use anyhow::{Context as _, Result, bail};

/// What a header's declarations and macros are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A name or a keyword.
    Name(String),
    /// An integer literal without its suffix.
    Number(i128),
    /// An operator or a bracket, one or more characters.
    Mark(&'static str),
    /// A string or character literal, or a character that no check needs.
    Other,
}

impl Token {
    /// Whether the token is this operator or bracket.
    pub fn is(&self, mark: &str) -> bool {
        matches!(self, Self::Mark(own) if *own == mark)
    }

    /// The name, if it is one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            _ => None,
        }
    }
}

/// Longer marks first, so that `<<` is not two of `<`.
const MARKS: [&str; 25] = [
    "...", "<<", ">>", "##", "==", "!=", "(", ")", "{", "}", "[", "]", ",", ";", "|", "&", "^",
    "~", "+", "-", "*", "/", "=", "<", ">",
];

/// The lines of a file without comments; a line that ends with `\` goes on with the next.
pub fn logical_lines(text: &str) -> Vec<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("/*") {
        plain.push_str(&rest[..start]);
        plain.push(' ');
        let comment = &rest[start + 2..];
        rest = comment.find("*/").map_or("", |end| &comment[end + 2..]);
    }
    plain.push_str(rest);
    let joined = plain.replace("\\\n", " ");
    joined
        .lines()
        .map(|line| line.split("//").next().unwrap_or("").to_owned())
        .collect()
}

/// The tokens of a line.
///
/// # Errors
///
/// A number that is none.
pub fn tokens(line: &str) -> Result<Vec<Token>> {
    let mut found = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first.is_ascii_alphabetic() || first == '_' {
            let length = word_length(rest);
            found.push(Token::Name(rest[..length].to_owned()));
            length
        } else if first.is_ascii_digit() {
            let length = word_length(rest);
            found.push(Token::Number(number(&rest[..length])?));
            length
        } else if let Some(mark) = MARKS.into_iter().find(|mark| rest.starts_with(mark)) {
            found.push(Token::Mark(mark));
            mark.len()
        } else {
            found.push(Token::Other);
            literal_length(rest, first)
        };
        rest = rest[length..].trim_start();
    }
    Ok(found)
}

fn word_length(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .unwrap_or(text.len())
}

/// Length of a quoted literal, or of the one character.
fn literal_length(text: &str, first: char) -> usize {
    let one = first.len_utf8();
    if first != '"' && first != '\'' {
        return one;
    }
    text[one..]
        .find(first)
        .map_or(text.len(), |end| end + 2 * one)
}

fn number(word: &str) -> Result<i128> {
    let digits = word.trim_end_matches(['u', 'U', 'l', 'L']);
    let (digits, radix) = if let Some(hex) = digits.strip_prefix("0x").or(digits.strip_prefix("0X"))
    {
        (hex, 16)
    } else if digits.len() > 1 && digits.starts_with('0') {
        (&digits[1..], 8)
    } else {
        (digits, 10)
    };
    if digits.is_empty() {
        bail!("`{word}` is no integer");
    }
    i128::from_str_radix(digits, radix).with_context(|| format!("`{word}` is no integer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_continuations_vanish() {
        let lines = logical_lines("a /* b\n c */ d \\\n e // f\ng /* open");
        assert_eq!(lines, ["a   d   e ", "g  "]);
    }

    #[test]
    fn words_numbers_and_marks_are_told_apart() {
        use Token::{Mark, Name, Number, Other};
        let expected = vec![
            Name("_IOW".into()),
            Mark("("),
            Number(0xAE),
            Mark("<<"),
            Number(8),
            Mark("|"),
            Number(10),
            Mark(")"),
            Other,
            Mark("..."),
            Other,
        ];
        assert_eq!(
            tokens("_IOW(0xAEULL<<010|10u) \"x y\"...?").unwrap(),
            expected
        );
        assert!(tokens("12monkeys").is_err());
    }
}
