//! The control members of a package: `control`, `conffiles`, `triggers`, the maintainer scripts (deb-control(5)).

use std::collections::BTreeMap;

use super::DebError;

/// The fields of one deb822 paragraph, in file order, values with their continuation lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(Vec<(String, String)>);

impl Fields {
    /// Parses one paragraph.
    ///
    /// # Errors
    /// [`DebError::Control`] with the line.
    pub fn parse(text: &str) -> Result<Self, DebError> {
        let mut fields: Vec<(String, String)> = Vec::new();
        let bad = |line: usize, problem| DebError::Control {
            line: line + 1,
            problem,
        };
        for (number, line) in text.trim_end().lines().enumerate() {
            if line.starts_with([' ', '\t']) {
                let last = fields.last_mut();
                let (_, value) =
                    last.ok_or_else(|| bad(number, "a continuation line before any field"))?;
                value.push('\n');
                value.push_str(line.trim_end());
                continue;
            }
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| bad(number, "expected `Field: value`"))?;
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(bad(number, "an unreadable field name"));
            }
            if fields
                .iter()
                .any(|(known, _)| known.eq_ignore_ascii_case(name))
            {
                return Err(bad(number, "the field is there twice"));
            }
            fields.push((name.to_owned(), value.trim().to_owned()));
        }
        Ok(Self(fields))
    }

    /// A field by name, case ignored.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut fields = self.0.iter();
        fields
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// All fields in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Names in a relation field such as `Depends`: one list of alternatives per comma, versions and architecture
    /// qualifiers dropped.
    pub fn relations(&self, name: &str) -> Vec<Vec<String>> {
        let value = self.get(name).unwrap_or_default();
        let groups = value.split(',').map(|group| {
            let names = group.split('|').filter_map(|one| {
                let one = one.trim();
                let end = one.find(|c: char| c.is_whitespace() || matches!(c, '(' | ':' | '['));
                let name = &one[..end.unwrap_or(one.len())];
                (!name.is_empty()).then(|| name.to_owned())
            });
            names.collect::<Vec<_>>()
        });
        groups.filter(|group| !group.is_empty()).collect()
    }
}

/// A configuration file as listed in `conffiles`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conffile {
    /// Absolute path.
    pub path: String,
    /// dpkg removes it on upgrade; it is not in the data archive.
    pub remove_on_upgrade: bool,
}

/// All that `control.tar` holds.
#[derive(Debug, Clone)]
pub struct Control {
    /// `Package`: checked to be lower case letters, digits, `+`, `-`, `.`.
    pub package: String,
    /// `Version`.
    pub version: String,
    /// `Architecture`.
    pub architecture: String,
    /// The parsed `control` file.
    pub fields: Fields,
    /// `conffiles`, parsed.
    pub conffiles: Vec<Conffile>,
    /// Every other member by name, with its mode: scripts, `triggers`, `md5sums`, `templates` …
    pub files: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Control {
    pub(crate) fn new(files: BTreeMap<String, (u32, Vec<u8>)>) -> Result<Self, DebError> {
        let (_, control) = files.get("control").ok_or(DebError::MissingMember {
            member: "control.tar: control",
        })?;
        let fields = Fields::parse(&String::from_utf8_lossy(control))?;
        let need = |name: &'static str, problem| {
            let value = fields.get(name).filter(|value| is_word(value));
            value
                .map(str::to_owned)
                .ok_or(DebError::Control { line: 0, problem })
        };
        let package = need("Package", "`Package` is missing or malformed")?;
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
        if !package.bytes().all(plain) || package.starts_with(['-', '.']) {
            return Err(DebError::Control {
                line: 0,
                problem: "`Package` is not a package name",
            });
        }
        let architecture = need("Architecture", "`Architecture` is missing or malformed")?;
        if architecture.contains('/') {
            return Err(DebError::Control {
                line: 0,
                problem: "`Architecture` is missing or malformed",
            });
        }
        Ok(Self {
            package,
            version: need("Version", "`Version` is missing or malformed")?,
            architecture,
            conffiles: files.get("conffiles").map_or_else(Vec::new, |(_, bytes)| {
                parse_conffiles(&String::from_utf8_lossy(bytes))
            }),
            fields,
            files,
        })
    }

    /// The stem of this package's files in `/var/lib/dpkg/info`.
    pub fn info_stem(&self) -> String {
        match self.fields.get("Multi-Arch") {
            Some("same") => format!("{}:{}", self.package, self.architecture),
            _ => self.package.clone(),
        }
    }

    /// `Essential: yes`, or dpkg's `Protected: yes`.
    pub fn is_essential(&self) -> bool {
        self.fields.get("Essential") == Some("yes")
    }

    /// Whether `Replaces` names `other`, i.e. this package may overwrite its files.
    pub fn replaces(&self, other: &str) -> bool {
        let mut groups = self.fields.relations("Replaces").into_iter();
        groups.any(|group| group.iter().any(|name| name == other))
    }
}

fn is_word(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic())
}

fn parse_conffiles(text: &str) -> Vec<Conffile> {
    let lines = text.lines().map(str::trim_end);
    let conffiles = lines.filter_map(|line| {
        let (remove_on_upgrade, path) = match line.strip_prefix("remove-on-upgrade ") {
            Some(path) => (true, path.trim_start()),
            None => (false, line),
        };
        path.starts_with('/').then(|| Conffile {
            path: path.to_owned(),
            remove_on_upgrade,
        })
    });
    conffiles.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_relations() {
        let text = "Package: a\nDepends: libc6 (>= 2.38), x:any | y [amd64],\n z\nDescription: s\n long\n .\n";
        let fields = Fields::parse(text).unwrap();
        assert_eq!(fields.get("package"), Some("a"));
        assert_eq!(fields.get("Description"), Some("s\n long\n ."));
        let expected = [vec!["libc6"], vec!["x", "y"], vec!["z"]];
        assert_eq!(fields.relations("Depends"), expected);
        assert!(fields.relations("Recommends").is_empty());
    }

    #[test]
    fn fields_refuse() {
        for (text, line) in [
            (" x\n", 1),
            ("A: 1\nno colon\n", 2),
            ("A: 1\na: 2\n", 2),
            (": 1", 1),
        ] {
            match Fields::parse(text) {
                Err(DebError::Control { line: found, .. }) => assert_eq!(found, line, "{text:?}"),
                other => panic!("{text:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn conffile_lines() {
        let found = parse_conffiles("/etc/a\nremove-on-upgrade /etc/b\n\nnonsense\n");
        let found: Vec<_> = found
            .iter()
            .map(|c| (c.path.as_str(), c.remove_on_upgrade))
            .collect();
        assert_eq!(found, [("/etc/a", false), ("/etc/b", true)]);
    }

    #[test]
    fn names_are_checked() {
        let control = |text: &str| {
            let file = ("control".to_owned(), (0o644, text.as_bytes().to_vec()));
            Control::new(BTreeMap::from([file]))
        };
        assert!(control("Package: a\nVersion: 1\nArchitecture: all\n").is_ok());
        for package in ["../a", "A", "", "a b", "-a"] {
            let text = format!("Package: {package}\nVersion: 1\nArchitecture: all\n");
            assert!(control(&text).is_err(), "{package:?}");
        }
        assert!(control("Package: a\nVersion: 1\nArchitecture: a/b\n").is_err());
    }
}
