//! Layouts of C structures by the rules of the 64-bit ABIs: natural alignment.

use crate::tokens::Token;
use anyhow::{Context as _, Result, bail, ensure};

/// A member of a structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Bytes from the start of the structure.
    pub offset: usize,
    /// Its size in bytes.
    pub size: usize,
}

/// A structure of integers, arrays of them and pointers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Size in bytes, padding at the end included.
    pub size: usize,
    /// The members in order.
    pub fields: Vec<Field>,
}

/// Finds `struct name { … }` in a file's tokens and lays it out.
///
/// # Errors
///
/// A structure that is not there, or has a member of another kind.
pub fn layout(
    tokens: &[Token],
    name: &str,
    constant: impl Fn(&[Token]) -> Result<i128>,
) -> Result<Layout> {
    let head = [
        Token::Name("struct".into()),
        Token::Name(name.into()),
        Token::Mark("{"),
    ];
    let start = tokens
        .windows(head.len())
        .position(|window| window == head)
        .with_context(|| format!("struct {name} is not in these headers"))?;
    let body = &tokens[start + head.len()..];
    let end = body
        .iter()
        .position(|token| token.is("}"))
        .context("a structure does not end")?;
    let mut layout = Layout {
        size: 0,
        fields: Vec::new(),
    };
    let mut alignment = 1;
    for declaration in body[..end]
        .split(|token| token.is(";"))
        .filter(|d| !d.is_empty())
    {
        let (field, unit) = member(declaration, layout.size, &constant)
            .with_context(|| format!("in struct {name}"))?;
        alignment = alignment.max(unit);
        layout.size = field.offset + field.size;
        layout.fields.push(field);
    }
    layout.size = layout.size.next_multiple_of(alignment);
    Ok(layout)
}

/// A member that begins at `offset` or after, and the size of its unit.
fn member(
    declaration: &[Token],
    offset: usize,
    constant: &impl Fn(&[Token]) -> Result<i128>,
) -> Result<(Field, usize)> {
    let bracket = declaration.iter().position(|token| token.is("["));
    let (plain, count) = match bracket {
        None => (declaration, 1),
        Some(bracket) => {
            let (last, length) = declaration[bracket + 1..]
                .split_last()
                .context("an array has no length")?;
            ensure!(last.is("]"), "an array has two dimensions");
            (&declaration[..bracket], usize::try_from(constant(length)?)?)
        }
    };
    let Some((Token::Name(name), kind)) = plain.split_last() else {
        bail!("{declaration:?} declares no member");
    };
    let unit = unit(kind)?;
    let offset = offset.next_multiple_of(unit);
    Ok((
        Field {
            name: name.clone(),
            offset,
            size: unit * count,
        },
        unit,
    ))
}

/// Size of one integer or pointer.
fn unit(kind: &[Token]) -> Result<usize> {
    if kind.last().is_some_and(|token| token.is("*")) {
        return Ok(8);
    }
    let [Token::Name(kind)] = kind else {
        bail!("{kind:?} is no integer")
    };
    match kind.trim_start_matches('_') {
        "u8" | "s8" => Ok(1),
        "u16" | "s16" | "le16" => Ok(2),
        "u32" | "s32" | "le32" => Ok(4),
        "u64" | "s64" | "le64" => Ok(8),
        other => bail!("type {other} has no known size"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expression::evaluate;
    use crate::tokens::tokens;

    fn lay_out(text: &str) -> Result<Layout> {
        let constant = |length: &[Token]| evaluate(length, |_| bail!("no sizes here"));
        layout(&tokens(text)?, "sample", constant)
    }

    #[test]
    fn members_have_their_natural_alignment() {
        let found = lay_out(
            "struct other { __u64 x; }; struct sample { __u8 tag; __le32 word; __u8 pad[1 + 2]; \
             void __user *next; __u16 last; };",
        )
        .unwrap();
        let offsets: Vec<_> = found
            .fields
            .iter()
            .map(|f| (f.name.as_str(), f.offset, f.size))
            .collect();
        assert_eq!(
            offsets,
            [
                ("tag", 0, 1),
                ("word", 4, 4),
                ("pad", 8, 3),
                ("next", 16, 8),
                ("last", 24, 2)
            ]
        );
        assert_eq!(found.size, 32);
    }

    #[test]
    fn what_cannot_be_laid_out_is_an_error() {
        for text in [
            "struct other { __u8 x; };",
            "struct sample { __u8 x;",
            "struct sample { struct other x; };",
            "struct sample { long x; };",
            "struct sample { __u8 x[2][2]; };",
            "struct sample { __u8 x[]; };",
            "struct sample { ; 3 };",
        ] {
            assert!(lay_out(text).is_err(), "{text}");
        }
    }
}
