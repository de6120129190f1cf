//! The image's user, merged into the account files that the packages made.
//!
//! In: `passwd`, `shadow`, `group` and `gshadow` as dpkg left them (passwd(5), shadow(5), group(5), gshadow(5)). Out: the
//! same files with one user more. The `base` layer stays untouched, so that another user name or password rebuilds only
//! the `site` layer.

/// The four account files of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Accounts {
    /// `/etc/passwd`.
    pub passwd: String,
    /// `/etc/shadow`.
    pub shadow: String,
    /// `/etc/group`.
    pub group: String,
    /// `/etc/gshadow`.
    pub gshadow: String,
}

/// A person who may log in.
#[derive(Clone, Debug)]
pub struct User<'a> {
    /// Login name.
    pub name: &'a str,
    /// Full name shown by tools.
    pub full_name: &'a str,
    /// A crypt(5) hash, or `!` for none.
    pub password_hash: &'a str,
    /// Days since 1970 of the last password change; from the image's epoch, so that it does not depend on the clock.
    pub password_day: u64,
    /// Groups to join, where the packages made them.
    pub groups: &'a [&'a str],
}

/// The first id for people, as Debian's adduser gives it.
pub const FIRST_UID: u32 = 1000;

impl Accounts {
    /// Adds `user` with the first free id from [`FIRST_UID`] and a group of its own; returns that id. A user of that name
    /// who is there already only gets the password and the groups.
    pub fn add_user(&mut self, user: &User<'_>) -> u32 {
        let name = user.name;
        let existing = field_of(&self.passwd, name, 2).and_then(|uid| uid.parse().ok());
        let uid = existing.unwrap_or_else(|| {
            let taken = |id: u32| has_id(&self.passwd, id) || has_id(&self.group, id);
            let uid = (FIRST_UID..60_000)
                .find(|id| !taken(*id))
                .unwrap_or(FIRST_UID);
            push_line(
                &mut self.passwd,
                &format!(
                    "{name}:x:{uid}:{uid}:{}:/home/{name}:/bin/bash",
                    user.full_name
                ),
            );
            push_line(&mut self.group, &format!("{name}:x:{uid}:"));
            push_line(&mut self.gshadow, &format!("{name}:!::"));
            uid
        });
        self.shadow = without(&self.shadow, name);
        push_line(
            &mut self.shadow,
            &format!(
                "{name}:{}:{}:0:99999:7:::",
                user.password_hash, user.password_day
            ),
        );
        for group in user.groups {
            self.group = with_member(&self.group, group, name);
            self.gshadow = with_member(&self.gshadow, group, name);
        }
        uid
    }

    /// Locks the password of `name` (no login by password, keys still work).
    pub fn lock(&mut self, name: &str) {
        let lines = self.shadow.lines().map(|line| match line.split_once(':') {
            Some((n, rest)) if n == name => {
                let rest = rest.split_once(':').map_or("", |(_, r)| r);
                format!("{n}:!*:{rest}\n")
            }
            _ => format!("{line}\n"),
        });
        self.shadow = lines.collect();
    }
}

fn push_line(file: &mut String, line: &str) {
    if !file.is_empty() && !file.ends_with('\n') {
        file.push('\n');
    }
    file.push_str(line);
    file.push('\n');
}

/// Field `n` (from 0) of the line that starts with `name:`.
fn field_of<'a>(file: &'a str, name: &str, n: usize) -> Option<&'a str> {
    file.lines()
        .find(|line| line.split(':').next() == Some(name))?
        .split(':')
        .nth(n)
}

fn has_id(file: &str, id: u32) -> bool {
    let id = id.to_string();
    file.lines()
        .any(|line| line.split(':').nth(2) == Some(id.as_str()))
}

fn without(file: &str, name: &str) -> String {
    let lines = file
        .lines()
        .filter(|line| line.split(':').next() != Some(name));
    lines.map(|line| format!("{line}\n")).collect()
}

/// `group` with `member` in its last field; a group that is not there stays so.
fn with_member(file: &str, group: &str, member: &str) -> String {
    let lines = file.lines().map(|line| {
        let members = line.rsplit(':').next().unwrap_or_default();
        if line.split(':').next() != Some(group) || members.split(',').any(|m| m == member) {
            return format!("{line}\n");
        }
        let comma = if members.is_empty() { "" } else { "," };
        format!("{line}{comma}{member}\n")
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debian() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/usr/sbin/nologin\n"
                .into(),
            shadow: "root:*:20000:0:99999:7:::\n".into(),
            group: "root:x:0:\nsudo:x:27:\nadm:x:4:syslog\n".into(),
            gshadow: "root:*::\nsudo:*::\nadm:*::syslog\n".into(),
        }
    }

    fn ada() -> User<'static> {
        User {
            name: "ada",
            full_name: "Ada",
            password_hash: "$6$x",
            password_day: 20_000,
            groups: &["sudo", "adm", "gone"],
        }
    }

    #[test]
    fn a_user_joins_the_groups_that_are_there() {
        let mut accounts = debian();
        assert_eq!(accounts.add_user(&ada()), 1000);
        assert!(
            accounts
                .passwd
                .ends_with("ada:x:1000:1000:Ada:/home/ada:/bin/bash\n"),
            "{}",
            accounts.passwd
        );
        assert!(accounts.shadow.ends_with("ada:$6$x:20000:0:99999:7:::\n"));
        assert_eq!(
            accounts.group,
            "root:x:0:\nsudo:x:27:ada\nadm:x:4:syslog,ada\nada:x:1000:\n"
        );
        assert_eq!(
            accounts.gshadow,
            "root:*::\nsudo:*::ada\nadm:*::syslog,ada\nada:!::\n"
        );
    }

    #[test]
    fn adding_twice_changes_nothing_more() {
        let mut once = debian();
        once.add_user(&ada());
        let mut twice = once.clone();
        assert_eq!(twice.add_user(&ada()), 1000);
        assert_eq!(once, twice);
    }

    #[test]
    fn a_taken_id_is_passed_over() {
        let mut accounts = debian();
        push_line(&mut accounts.group, "video:x:1000:");
        assert_eq!(accounts.add_user(&ada()), 1001);
    }

    #[test]
    fn locking_keeps_the_other_fields() {
        let mut accounts = debian();
        accounts.lock("root");
        assert_eq!(accounts.shadow, "root:!*:20000:0:99999:7:::\n");
    }
}
