//! Constant integer expressions of C.

use crate::tokens::Token;
use anyhow::{Context as _, Result, bail, ensure};

/// The value of an expression of integers; `size_of` knows the sizes of types.
///
/// # Errors
///
/// A name that is no macro, an operator that headers do not use, or what is not an expression.
pub fn evaluate(tokens: &[Token], size_of: impl Fn(&[Token]) -> Result<usize>) -> Result<i128> {
    let mut parser = Parser {
        rest: tokens,
        size_of,
    };
    let value = parser.binary(0)?;
    ensure!(parser.rest.is_empty(), "more follows the expression");
    Ok(value)
}

/// Binary operators that bind weakest first; those of one row bind alike.
const ROWS: [&[&str]; 6] = [
    &["|"],
    &["^"],
    &["&"],
    &["<<", ">>"],
    &["+", "-"],
    &["*", "/"],
];

struct Parser<'a, F> {
    rest: &'a [Token],
    size_of: F,
}

impl<F: Fn(&[Token]) -> Result<usize>> Parser<'_, F> {
    fn binary(&mut self, row: usize) -> Result<i128> {
        let Some(marks) = ROWS.get(row) else {
            return self.unary();
        };
        let mut left = self.binary(row + 1)?;
        while let Some(mark) = marks.iter().find(|mark| self.next_is(mark)) {
            self.rest = &self.rest[1..];
            let right = self.binary(row + 1)?;
            left = apply(mark, left, right).with_context(|| format!("{left} {mark} {right}"))?;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<i128> {
        let Some((token, after)) = self.rest.split_first() else {
            bail!("an operand is missing")
        };
        self.rest = after;
        match token {
            Token::Number(value) => Ok(*value),
            Token::Mark("-") => Ok(-self.unary()?),
            Token::Mark("~") => Ok(!self.unary()?),
            Token::Mark("(") => {
                let value = self.binary(0)?;
                ensure!(self.next_is(")"), "a bracket is not closed");
                self.rest = &self.rest[1..];
                Ok(value)
            }
            Token::Name(name) if name == "sizeof" => self.size(),
            Token::Name(name) => bail!("`{name}` is not defined in these headers"),
            other => bail!("{other:?} begins no operand"),
        }
    }

    fn size(&mut self) -> Result<i128> {
        ensure!(self.next_is("("), "sizeof lacks its bracket");
        let end = self
            .rest
            .iter()
            .position(|token| token.is(")"))
            .context("sizeof goes on")?;
        let size = (self.size_of)(&self.rest[1..end])?;
        self.rest = &self.rest[end + 1..];
        Ok(i128::try_from(size)?)
    }

    fn next_is(&self, mark: &str) -> bool {
        self.rest.first().is_some_and(|token| token.is(mark))
    }
}

fn apply(mark: &str, left: i128, right: i128) -> Option<i128> {
    match mark {
        "|" => Some(left | right),
        "^" => Some(left ^ right),
        "&" => Some(left & right),
        "<<" => left.checked_shl(right.try_into().ok()?),
        ">>" => left.checked_shr(right.try_into().ok()?),
        "+" => left.checked_add(right),
        "-" => left.checked_sub(right),
        "*" => left.checked_mul(right),
        "/" => left.checked_div(right),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::tokens;

    fn value(text: &str) -> Result<i128> {
        evaluate(&tokens(text)?, |words| Ok(words.len()))
    }

    #[test]
    fn operators_bind_as_in_c() {
        assert_eq!(value("1 | 2 << 4 & 0x1f + 1").unwrap(), 0x21);
        assert_eq!(value("10 - 3 - 2").unwrap(), 5);
        assert_eq!(value("-(2 + 3) * ~0 ^ 1").unwrap(), 5 ^ 1);
        assert_eq!(value("sizeof(struct x) << 16").unwrap(), 2 << 16);
        assert_eq!(value("7 / 2 >> 1").unwrap(), 1);
    }

    #[test]
    fn what_is_no_expression_is_an_error() {
        for text in [
            "", "1 +", "(1", "1 2", "x", "sizeof 1", "sizeof(", "1 / 0", "1 << -1", "{",
        ] {
            assert!(value(text).is_err(), "{text}");
        }
    }
}
