//! The headers of a kernel tree, and questions to them.

use crate::expression::evaluate;
use crate::macros::Macros;
use crate::structures::{Layout, layout};
use crate::tokens::{Token, logical_lines, tokens};
use anyhow::{Context as _, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// Where a tree has what is compared.
const FILES: [&str; 6] = [
    "include/uapi/linux/vmclock-abi.h",
    "include/uapi/asm-generic/ioctl.h",
    "include/uapi/linux/kvm.h",
    "include/linux/arm-smccc.h",
    "arch/arm64/include/asm/pvclock-abi.h",
    "arch/arm64/include/uapi/asm/kvm.h",
];

/// What some headers declare and define.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    macros: Macros,
    declarations: Vec<Token>,
}

impl Headers {
    /// Reads the headers of a kernel tree: its source, or a package of its headers, unpacked.
    ///
    /// # Errors
    ///
    /// A header that is not there or is no C.
    pub fn read(directory: &Path) -> Result<Self> {
        let tree = tree(directory)?;
        let mut headers = Self::default();
        // Gives a number its suffix in C and none in assembler; numbers have none here.
        headers.add("#define _AC(number, suffix) (number)")?;
        for file in FILES {
            let path = tree.join(file);
            let text = fs::read_to_string(&path).with_context(|| {
                format!(
                    "{} cannot be read; it came with Linux 6.13 at the latest",
                    path.display()
                )
            })?;
            headers
                .add(&text)
                .with_context(|| format!("in {}", path.display()))?;
        }
        Ok(headers)
    }

    /// Takes the text of one header.
    ///
    /// # Errors
    ///
    /// Text that is no C.
    pub fn add(&mut self, text: &str) -> Result<()> {
        let lines = logical_lines(text);
        self.macros.add(&lines)?;
        for line in lines
            .iter()
            .filter(|line| !line.trim_start().starts_with('#'))
        {
            self.declarations.extend(tokens(line)?);
        }
        self.add_enumerators()
    }

    /// Makes constants of the members of every `enum`.
    fn add_enumerators(&mut self) -> Result<()> {
        let declarations = std::mem::take(&mut self.declarations);
        for (start, token) in declarations.iter().enumerate() {
            let opens = |index: usize| declarations.get(index).is_some_and(|t| t.is("{"));
            let body = match token.name() {
                Some("enum") if opens(start + 1) => start + 2,
                Some("enum") if opens(start + 2) => start + 3,
                _ => continue,
            };
            let body = &declarations[body..];
            let end = body
                .iter()
                .position(|t| t.is("}"))
                .context("an enum does not end")?;
            let mut next = 0;
            for member in body[..end].split(|t| t.is(",")) {
                let Some((Token::Name(name), value)) = member.split_first() else {
                    continue;
                };
                if let Some((_, value)) = value.split_first() {
                    next = self.value(value)?;
                }
                self.macros.set(name, next);
                next += 1;
            }
        }
        self.declarations = declarations;
        Ok(())
    }

    /// The value of a constant.
    ///
    /// # Errors
    ///
    /// A name that is not defined, or whose definition is no integer.
    pub fn constant(&self, name: &str) -> Result<i128> {
        self.value(&[Token::Name(name.into())])
            .with_context(|| format!("constant {name}"))
    }

    /// The layout of a structure.
    ///
    /// # Errors
    ///
    /// A structure that is not declared, or has members other than integers and pointers.
    pub fn structure(&self, name: &str) -> Result<Layout> {
        layout(&self.declarations, name, |length| self.value(length))
    }

    fn value(&self, tokens: &[Token]) -> Result<i128> {
        evaluate(&self.macros.expand(tokens)?, |kind| match kind {
            [Token::Name(word), Token::Name(name)] if word == "struct" => {
                Ok(self.structure(name)?.size)
            }
            _ => bail!("the size of {kind:?} is not known"),
        })
    }
}

/// The tree in a directory: itself, or the one below it where Debian's packages put theirs.
fn tree(directory: &Path) -> Result<PathBuf> {
    let mut places = vec![directory.to_owned()];
    if let Ok(packaged) = fs::read_dir(directory.join("usr/src")) {
        places.extend(packaged.filter_map(|entry| Some(entry.ok()?.path())));
    }
    places
        .into_iter()
        .find(|place| place.join(FILES[0]).exists())
        .with_context(|| {
            format!(
                "neither {0} nor {0}/usr/src/* has {1}: give the unpacked package \
             linux-headers-VERSION-common of Linux 6.13 or later, or a source tree of it",
                directory.display(),
                FILES[0]
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enumerators_count_up_from_the_last_value() {
        let mut headers = Headers::default();
        headers
            .add("#define BASE 4\nenum kind { ZERO, ONE, FIVE = BASE + 1,\n SIX, };")
            .unwrap();
        headers.add("enum { LATER = 7 };").unwrap();
        for (name, value) in [
            ("ZERO", 0),
            ("ONE", 1),
            ("FIVE", 5),
            ("SIX", 6),
            ("LATER", 7),
        ] {
            assert_eq!(headers.constant(name).unwrap(), value);
        }
        assert!(headers.constant("SEVEN").is_err());
    }

    #[test]
    fn constants_may_need_the_size_of_a_structure() {
        let mut headers = Headers::default();
        headers.add("struct offset { __u64 a, b; };").unwrap();
        headers
            .add("struct pair { __u64 a; __u64 b; };\n#define SIZE sizeof(struct pair)")
            .unwrap();
        assert_eq!(headers.constant("SIZE").unwrap(), 16);
    }

    #[test]
    fn a_directory_without_headers_is_an_error_that_says_what_to_give() {
        let error = Headers::read(Path::new("/nowhere")).unwrap_err();
        assert!(error.to_string().contains("linux-headers-VERSION-common"));
    }
}
