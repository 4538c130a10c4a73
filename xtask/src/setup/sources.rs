//! The package sources that the machine uses, as far as what the project fetches may come from them.

/// Architecture of hosts and guests, in Debian's word.
pub const ARM64: &str = "arm64";

/// One stanza of a deb822 file, or one line of a `.list` file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// Where the archive is, in apt's notation.
    uris: String,
    /// Releases of it.
    suites: Vec<String>,
    /// Fields about trust and the like, with their values, copied as they are.
    other: Vec<(String, String)>,
}

/// Fields that a private copy sets anew, or that only concern other packages.
const REPLACED: [&str; 6] = [
    "types",
    "uris",
    "suites",
    "components",
    "architectures",
    "enabled",
];

/// Reads a deb822 file (`*.sources`): the sources of binary packages in `main`.
pub fn parse_deb822(text: &str) -> Vec<Source> {
    let without_comments: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let stanzas = without_comments.split(|line| line.trim().is_empty());
    stanzas
        .filter_map(|lines| source_of(&fields_of(lines)))
        .collect()
}

fn fields_of(lines: &[&str]) -> Vec<(String, String)> {
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in lines {
        if line.starts_with([' ', '\t']) {
            // A value that goes on, such as a key.
            if let Some((_, value)) = fields.last_mut() {
                value.push('\n');
                value.push_str(line);
            }
        } else if let Some((name, value)) = line.split_once(':') {
            fields.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    fields
}

fn source_of(fields: &[(String, String)]) -> Option<Source> {
    let value = |name: &str| {
        let field = fields
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name));
        field.map(|(_, value)| value.as_str())
    };
    let has = |name: &str, word: &str| {
        value(name).is_some_and(|value| value.split_ascii_whitespace().any(|it| it == word))
    };
    let disabled = value("Enabled").is_some_and(|it| matches!(it, "no" | "false" | "0" | "off"));
    if disabled || !has("Types", "deb") || !has("Components", "main") {
        return None;
    }
    let replaced = |name: &str| REPLACED.iter().any(|it| it.eq_ignore_ascii_case(name));
    Some(Source {
        uris: value("URIs")?.to_owned(),
        suites: value("Suites")?
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect(),
        other: fields
            .iter()
            .filter(|(name, _)| !replaced(name))
            .cloned()
            .collect(),
    })
}

/// Reads a `.list` file: the sources of binary packages in `main`.
pub fn parse_list(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_list_line).collect()
}

fn parse_list_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t']) {
        return None;
    }
    let (options, rest) = match rest.trim_start().strip_prefix('[') {
        Some(bracketed) => bracketed.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split_ascii_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    if !words.any(|component| component == "main") {
        return None;
    }
    let options = options
        .split_ascii_whitespace()
        .filter_map(|it| it.split_once('='));
    let other = options
        .filter(|(name, _)| *name != "arch" && *name != "target")
        .map(|(name, value)| (name.to_owned(), value.replace(',', " ")));
    Some(Source {
        uris: uri.to_owned(),
        suites: vec![suite.to_owned()],
        other: other.collect(),
    })
}

/// The sources, as a deb822 text, that have a 6.12 kernel for a Debian of this codename: its own
/// suites, or its backports where it is older than that kernel. `None` if the machine has none.
pub fn for_kernel(sources: &[Source], codename: &str) -> Option<String> {
    match codename {
        "bookworm" => emit(sources, codename, ARM64, with_backports),
        _ => of_release(sources, codename),
    }
}

fn with_backports(suite: &str) -> String {
    format!("{suite}-backports")
}

/// The sources, as a deb822 text, of the backports to a Debian of this codename, for an architecture.
/// `None` if the machine has none.
pub fn of_backports(sources: &[Source], codename: &str, architecture: &str) -> Option<String> {
    emit(sources, codename, architecture, with_backports)
}

/// The sources, as a deb822 text, that have the headers of a kernel that knows every interface:
/// trixie's backports, for a Debian that is no newer. `None` if the machine has none.
pub fn for_headers(sources: &[Source], codename: &str) -> Option<String> {
    match codename {
        "bookworm" | "trixie" => emit(sources, codename, ARM64, |_| "trixie-backports".into()),
        _ => of_release(sources, codename),
    }
}

/// The sources, as a deb822 text, of the release itself. `None` if the machine has none.
pub fn of_release(sources: &[Source], codename: &str) -> Option<String> {
    emit(sources, codename, ARM64, str::to_owned)
}

/// The sources of a release, with other suites of the same archive.
fn emit(
    sources: &[Source],
    codename: &str,
    architecture: &str,
    suite: impl Fn(&str) -> String,
) -> Option<String> {
    let is_base = |suite: &str| {
        suite == codename || ["oldstable", "stable", "testing", "unstable", "sid"].contains(&suite)
    };
    let mut text = String::new();
    for source in sources {
        let base = source.suites.iter().filter(|suite| is_base(suite));
        let suites: Vec<_> = base.map(|base| suite(base)).collect();
        if suites.is_empty() {
            continue;
        }
        let fields = [
            ("Types", "deb"),
            ("URIs", &source.uris),
            ("Suites", &suites.join(" ")),
            ("Components", "main"),
            ("Architectures", architecture),
        ];
        let other = source
            .other
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in fields.into_iter().chain(other) {
            text.extend([name, ": ", value, "\n"]);
        }
        text.push('\n');
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "\
# The archive.
Types: deb deb-src
# a comment within
URIs: https://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: https://elsewhere.example/tools
Suites: nodistro
Components: main
Enabled: no

Types: deb
URIs: https://elsewhere.example/docker
Suites: bookworm
Components: stable
";

    #[test]
    fn a_deb822_file_gives_the_sources_of_binary_packages_in_main() {
        let sources = parse_deb822(DEB822);
        let uris: Vec<_> = sources.iter().map(|source| source.uris.as_str()).collect();
        assert_eq!(
            uris,
            [
                "https://mirror.example/debian",
                "https://mirror.example/debian-security"
            ]
        );
        assert_eq!(sources[0].suites, ["bookworm", "bookworm-updates"]);
    }

    #[test]
    fn the_older_release_takes_its_kernel_from_backports() {
        let want = "\
Types: deb
URIs: https://mirror.example/debian
Suites: bookworm-backports
Components: main
Architectures: arm64
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

";
        assert_eq!(
            for_kernel(&parse_deb822(DEB822), "bookworm").as_deref(),
            Some(want)
        );
        let newer = DEB822.replace("bookworm", "trixie");
        let want = want.replace("bookworm-backports", "trixie");
        assert_eq!(for_kernel(&parse_deb822(&newer), "trixie"), Some(want));
        assert_eq!(for_kernel(&parse_deb822(DEB822), "trixie"), None);
        let other = of_backports(&parse_deb822(DEB822), "bookworm", "amd64").unwrap();
        assert!(other.contains("-backports\nComponents: main\nArchitectures: amd64\n"));
        let own = of_release(&parse_deb822(DEB822), "bookworm").unwrap();
        assert!(own.contains("\nSuites: bookworm\n"), "{own}");
    }

    #[test]
    fn a_list_file_gives_the_same() {
        let list = "\
# deb https://mirror.example/commented bookworm main
deb-src https://mirror.example/debian bookworm main
deb [arch=amd64,arm64 signed-by=/k.gpg,/l.gpg trusted=yes] https://mirror.example/debian bookworm main # x
deb\thttps://mirror.example/plain stable main
deb https://mirror.example/other bookworm contrib
deb [broken
";
        let want = "\
Types: deb
URIs: https://mirror.example/debian
Suites: bookworm-backports
Components: main
Architectures: arm64
signed-by: /k.gpg /l.gpg
trusted: yes

Types: deb
URIs: https://mirror.example/plain
Suites: stable-backports
Components: main
Architectures: arm64

";
        assert_eq!(
            for_kernel(&parse_list(list), "bookworm").as_deref(),
            Some(want)
        );
    }

    #[test]
    fn a_key_within_the_file_is_copied_whole() {
        let text = "Types: deb\nURIs: https://mirror.example/debian\nSuites: trixie\n\
                    Components: main\nSigned-By:\n -----BEGIN KEY-----\n .\n abc\n";
        let copied = for_kernel(&parse_deb822(text), "trixie").unwrap();
        assert!(
            copied.contains("Signed-By: \n -----BEGIN KEY-----\n .\n abc\n"),
            "{copied}"
        );
    }
}
