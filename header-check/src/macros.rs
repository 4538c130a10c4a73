//! The macros and enumerators of some headers, and their values.

use crate::tokens::{Token, tokens};
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::HashMap;

/// More than any header nests.
const DEPTH: usize = 64;

#[derive(Clone, Debug)]
struct Macro {
    /// `None` for a macro without brackets.
    parameters: Option<Vec<String>>,
    body: Vec<Token>,
}

/// Everything that was defined, conditions ignored: the last definition of a name holds.
#[derive(Clone, Debug, Default)]
pub struct Macros(HashMap<String, Macro>);

impl Macros {
    /// Takes the definitions of a file.
    ///
    /// # Errors
    ///
    /// A definition that is not C.
    pub fn add(&mut self, lines: &[String]) -> Result<()> {
        for line in lines {
            let Some(definition) = line.trim_start().strip_prefix('#') else {
                continue;
            };
            let Some(text) = definition.trim_start().strip_prefix("define") else {
                continue;
            };
            self.define(text)
                .with_context(|| format!("in `{}`", line.trim()))?;
        }
        Ok(())
    }

    /// Gives a name a value.
    pub fn set(&mut self, name: &str, value: i128) {
        let body = vec![Token::Number(value)];
        self.0.insert(
            name.to_owned(),
            Macro {
                parameters: None,
                body,
            },
        );
    }

    fn define(&mut self, text: &str) -> Result<()> {
        let text = text.trim_start();
        let length = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let (name, rest) = text.split_at(length.unwrap_or(text.len()));
        let mut body = tokens(rest)?;
        // A bracket right after the name, without a space, opens parameters.
        let parameters = if rest.starts_with('(') {
            let end = body
                .iter()
                .position(|token| token.is(")"))
                .context("no closing bracket")?;
            let head: Vec<_> = body.drain(..=end).collect();
            Some(head.iter().filter_map(parameter).collect())
        } else {
            None
        };
        self.0.insert(name.to_owned(), Macro { parameters, body });
        Ok(())
    }

    /// The tokens with every macro replaced by what it stands for.
    ///
    /// # Errors
    ///
    /// Brackets that do not match, and macros without end.
    pub fn expand(&self, input: &[Token]) -> Result<Vec<Token>> {
        self.expand_to(input, 0)
    }

    fn expand_to(&self, input: &[Token], depth: usize) -> Result<Vec<Token>> {
        ensure!(depth < DEPTH, "macros nest more than {DEPTH} deep");
        let mut output = Vec::new();
        let mut rest = input;
        while let Some((token, after)) = rest.split_first() {
            rest = after;
            let Some(found) = token.name().and_then(|name| self.0.get(name)) else {
                output.push(token.clone());
                continue;
            };
            let body = match &found.parameters {
                None => found.body.clone(),
                Some(parameters) => {
                    let (arguments, after) = arguments(rest)?;
                    rest = after;
                    substitute(parameters, &arguments, &found.body)?
                }
            };
            output.extend(self.expand_to(&paste(body), depth + 1)?);
        }
        Ok(output)
    }
}

fn parameter(token: &Token) -> Option<String> {
    if token.is("...") {
        return Some("__VA_ARGS__".into());
    }
    token.name().map(str::to_owned)
}

/// The arguments after a macro's name, and what follows them.
fn arguments(input: &[Token]) -> Result<(Vec<Vec<Token>>, &[Token])> {
    ensure!(
        input.first().is_some_and(|token| token.is("(")),
        "a macro lacks its arguments"
    );
    let (mut found, mut depth) = (vec![Vec::new()], 0);
    for (index, token) in input.iter().enumerate() {
        if token.is("(") {
            depth += 1;
        } else if token.is(")") {
            depth -= 1;
        }
        if depth == 0 {
            return Ok((found, &input[index + 1..]));
        }
        if depth == 1 && token.is(",") {
            found.push(Vec::new());
        } else if index > 0 {
            found
                .last_mut()
                .expect("there is always one")
                .push(token.clone());
        }
    }
    bail!("a macro's arguments do not end")
}

fn substitute(
    parameters: &[String],
    arguments: &[Vec<Token>],
    body: &[Token],
) -> Result<Vec<Token>> {
    let mut output = Vec::new();
    for token in body {
        let position = token
            .name()
            .and_then(|name| parameters.iter().position(|p| p == name));
        let Some(position) = position else {
            output.push(token.clone());
            continue;
        };
        let last = position + 1 == parameters.len() && parameters[position] == "__VA_ARGS__";
        let taken = if last {
            &arguments[position.min(arguments.len())..]
        } else {
            arguments
                .get(position..=position)
                .context("a macro lacks an argument")?
        };
        output.extend(taken.join(&Token::Mark(",")));
    }
    Ok(output)
}

/// Joins the names on both sides of each `##`.
fn paste(body: Vec<Token>) -> Vec<Token> {
    let mut output: Vec<Token> = Vec::new();
    let mut rest = body.into_iter();
    while let Some(token) = rest.next() {
        if !token.is("##") {
            output.push(token);
            continue;
        }
        let joined = match (output.pop(), rest.next()) {
            (Some(Token::Name(left)), Some(Token::Name(right))) => Token::Name(left + &right),
            (Some(Token::Name(left)), Some(Token::Number(right))) => {
                Token::Name(format!("{left}{right}"))
            }
            _ => Token::Other,
        };
        output.push(joined);
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::logical_lines;

    fn expand(text: &str, expression: &str) -> Result<Vec<Token>> {
        let mut macros = Macros::default();
        macros.add(&logical_lines(text))?;
        macros.expand(&tokens(expression)?)
    }

    #[test]
    fn names_arguments_and_pastes_expand() {
        let text = "#define A_X 7\n# define PICK(n, m) (A_ ## n + m)\n#define ALL(...) F(__VA_ARGS__)\n\
                    #define F(a, b) a-b\n#define SPACED (1)";
        assert_eq!(
            expand(text, "PICK(X, 2)").unwrap(),
            tokens("(7 + 2)").unwrap()
        );
        assert_eq!(
            expand(text, "ALL(3, (4, 5))").unwrap(),
            tokens("3-(4, 5)").unwrap()
        );
        assert_eq!(expand(text, "SPACED").unwrap(), tokens("(1)").unwrap());
        assert_eq!(expand(text, "unknown").unwrap(), tokens("unknown").unwrap());
    }

    #[test]
    fn macros_without_end_or_arguments_are_errors() {
        assert!(expand("#define A B\n#define B A", "A").is_err());
        assert!(expand("#define F(a) a", "F").is_err());
        assert!(expand("#define F(a) a", "F(1").is_err());
        assert!(expand("#define F(a, b) a b", "F(1)").is_err());
        assert!(expand("#define F(a", "1").is_err());
    }
}
