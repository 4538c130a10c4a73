//! Apt for any architecture, in a private folder: the machine's own configuration and package
//! lists are read at most, and never written.

use super::sources::{Source, parse_deb822, parse_list};
use crate::process;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where apt keeps the machine's sources.
const SOURCES: &str = "/etc/apt/sources.list";
const SOURCE_PARTS: &str = "/etc/apt/sources.list.d";

/// Every source that the machine uses, in both notations.
pub fn machine_sources() -> Vec<Source> {
    let mut files = vec![PathBuf::from(SOURCES)];
    if let Ok(parts) = fs::read_dir(SOURCE_PARTS) {
        files.extend(parts.flatten().map(|entry| entry.path()));
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        match file.extension().and_then(|it| it.to_str()) {
            Some("list") => sources.extend(parse_list(&text)),
            Some("sources") => sources.extend(parse_deb822(&text)),
            _ => {}
        }
    }
    sources
}

/// A private apt for one architecture.
pub struct Apt {
    configuration: PathBuf,
    /// Where packages are downloaded to.
    archives: PathBuf,
}

/// What the index says of a package.
#[derive(Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Hash of its file, in hexadecimal.
    pub sha256: String,
}

impl Apt {
    /// Makes the folder, for these sources in deb822 notation.
    pub fn new(folder: &Path, sources: &str, architecture: &str) -> Result<Self> {
        let folders = [
            "state/lists/partial",
            "cache/archives/partial",
            "sources.list.d",
        ];
        for name in folders {
            let path = folder.join(name);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        fs::write(folder.join("state/status"), "")?;
        fs::write(folder.join("sources.list.d/kernel.sources"), sources)?;
        let configuration = folder.join("apt.conf");
        fs::write(&configuration, configure(folder, architecture))?;
        Ok(Self {
            configuration,
            archives: folder.join("cache/archives"),
        })
    }

    /// Fetches the index.
    pub fn update(&self) -> Result<()> {
        process::run(&mut self.command("apt-get", &["--quiet", "update"]))
    }

    /// Names that begin with a prefix.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let names = process::output(&mut self.command("apt-cache", &["pkgnames", prefix]))?;
        Ok(names.lines().map(str::to_owned).collect())
    }

    /// The index entry of the newest version.
    pub fn show(&self, name: &str) -> Result<Package> {
        let arguments = ["--no-all-versions", "show", name];
        let entry = process::output(&mut self.command("apt-cache", &arguments))?;
        parse_entry(&entry).with_context(|| format!("the index entry of {name} lacks a field"))
    }

    /// Downloads the package into a folder; apt checks it against the signed index.
    pub fn download(&self, package: &Package, folder: &Path) -> Result<()> {
        let what = format!("{}={}", package.name, package.version);
        process::run(
            self.command("apt-get", &["--quiet", "download", &what])
                .current_dir(folder),
        )
    }

    /// Downloads packages and all that they depend on, as if nothing were installed; apt checks them
    /// against the signed index.
    pub fn download_with_dependencies(&self, names: &[&str]) -> Result<Vec<PathBuf>> {
        let options = [
            "--quiet",
            "--yes",
            "--download-only",
            "--no-install-recommends",
        ];
        let mut command = self.command("apt-get", &options);
        process::run(command.arg("install").args(names))?;
        let entries = fs::read_dir(&self.archives)
            .with_context(|| format!("cannot list {}", self.archives.display()))?;
        let paths = entries.flatten().map(|entry| entry.path());
        Ok(paths
            .filter(|path| path.extension().is_some_and(|it| it == "deb"))
            .collect())
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.configuration).args(arguments);
        command
    }
}

fn configure(folder: &Path, architecture: &str) -> String {
    let folder = folder.display();
    format!(
        "#clear APT::Update::Pre-Invoke;\n\
         #clear APT::Update::Post-Invoke;\n\
         #clear APT::Update::Post-Invoke-Success;\n\
         #clear APT::Architectures;\n\
         APT::Architecture \"{architecture}\";\n\
         APT::Architectures {{ \"{architecture}\"; }};\n\
         APT::Sandbox::User \"root\";\n\
         Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";\n\
         Acquire::Languages \"none\";\n\
         Acquire::Retries \"3\";\n\
         Acquire::http::Timeout \"60\";\n\
         Dir::State \"{folder}/state\";\n\
         Dir::State::status \"{folder}/state/status\";\n\
         Dir::Cache \"{folder}/cache\";\n\
         Dir::Etc::sourcelist \"/dev/null\";\n\
         Dir::Etc::sourceparts \"{folder}/sources.list.d\";\n"
    )
}

fn parse_entry(entry: &str) -> Option<Package> {
    let field = |name: &str| {
        let value = entry
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.map(|value| value.trim().to_owned())
    };
    let sha256 = field("SHA256")
        .filter(|hash| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    Some(Package {
        name: field("Package")?,
        version: field("Version")?,
        sha256,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_entry_needs_a_name_a_version_and_a_hash() {
        let hash = "0123456789abcdef".repeat(4);
        let entry = format!(
            "Package: linux-image-x\nSource: linux (6.12)\nVersion: 6.12.1-1\nSHA256: {hash}\n"
        );
        let want = Package {
            name: "linux-image-x".into(),
            version: "6.12.1-1".into(),
            sha256: hash.clone(),
        };
        assert_eq!(parse_entry(&entry), Some(want));
        for missing in ["Package", "Version", "SHA256"] {
            assert_eq!(
                parse_entry(&entry.replace(&format!("\n{missing}"), "\nX")),
                {
                    (missing == "Package")
                        .then(|| parse_entry(&entry))
                        .flatten()
                }
            );
        }
        assert_eq!(parse_entry(&entry.replace(&hash, "0123")), None);
    }
}
