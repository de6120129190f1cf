//! Profiles of the same version for other boots of it: `gasthaus-live` takes the one that fits, if it is there (FORMAT.md §12).

use fuse_rootfs::format::{FileProfile, Name, Trace};
use fuse_rootfs::publish::Profile;

/// The layer that nothing but guests is in.
const GUESTS: &str = "guests";

/// What the profile of a boot without hypervisor is called.
#[must_use]
pub fn plain_name(name: &Name) -> Name {
    variant(name, "plain")
}

/// What the profile of a boot below Xen that starts no guest is called.
#[must_use]
pub fn dom0_name(name: &Name) -> Name {
    variant(name, "dom0")
}

/// A name that would be too long stays as it is: then it is one for both.
fn variant(name: &Name, of: &str) -> Name {
    Name::new(&format!("{name}-{of}")).unwrap_or_else(|_| name.clone())
}

/// Adds to the profile `name` of a boot below Xen what of it a boot without guests reads: all but their kernel and disks. Nothing
/// is added where there is one of that name, no profile `name`, or nothing of guests in it.
pub fn add_dom0(profiles: &mut Vec<(Name, Profile)>, name: &Name) {
    let own = dom0_name(name);
    if profiles.iter().any(|(known, _)| *known == own) {
        return;
    }
    let whole = profiles.iter().find(|(known, _)| known == name);
    if let Some(dom0) = whole.and_then(|(_, profile)| without_guests(profile)) {
        profiles.push((own, dom0));
    }
}

fn without_guests(profile: &Profile) -> Option<Profile> {
    match profile {
        Profile::Blocks(trace) => {
            let runs = others(&trace.runs, |run| &run.layer)?;
            Some(Profile::Blocks(Trace { runs }))
        }
        Profile::Files(files) => {
            let runs = others(&files.runs, |run| &run.layer)?;
            Some(Profile::Files(FileProfile { runs }))
        }
    }
}

/// The runs of other layers, if there are some of both.
fn others<R: Clone>(runs: &[R], layer: impl Fn(&R) -> &Name) -> Option<Vec<R>> {
    let is_other = |run: &&R| layer(run).as_str() != GUESTS;
    let rest: Vec<R> = runs.iter().filter(is_other).cloned().collect();
    (!rest.is_empty() && rest.len() < runs.len()).then_some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn profile(text: &str) -> Profile {
        Profile::from(Trace::parse(&format!("gasthaus-trace 1\n{text}")).unwrap())
    }

    #[test]
    fn dom0_goes_without_the_guests_blocks() {
        let ready = name("ready");
        let mut all = vec![(ready.clone(), profile("base 0 4\nguests 0 9\nsite 7 1\n"))];
        add_dom0(&mut all, &ready);
        add_dom0(&mut all, &ready);
        let dom0 = (name("ready-dom0"), profile("base 0 4\nsite 7 1\n"));
        assert_eq!(all[1..], [dom0]);
        let files = FileProfile::parse("gasthaus-profile 1\nguests 0 2 /k\nbase 0 1 /a\n").unwrap();
        let mut all = vec![(ready.clone(), Profile::Files(files))];
        add_dom0(&mut all, &ready);
        let rest = FileProfile::parse("gasthaus-profile 1\nbase 0 1 /a\n").unwrap();
        assert_eq!(all[1], (name("ready-dom0"), Profile::Files(rest)));
    }

    #[test]
    fn nothing_is_added_that_would_be_the_same_or_empty() {
        let ready = name("ready");
        for text in ["base 0 4\n", "guests 0 4\n"] {
            let mut all = vec![(ready.clone(), profile(text))];
            add_dom0(&mut all, &ready);
            add_dom0(&mut all, &name("desktop"));
            assert_eq!(all.len(), 1, "{text}");
        }
        let own = profile("base 9 9\n");
        let mut all = vec![
            (name("ready-dom0"), own.clone()),
            (ready.clone(), profile("base 0 4\nguests 0 4\n")),
        ];
        add_dom0(&mut all, &ready);
        assert_eq!((all.len(), &all[0].1), (2, &own), "the recipe's own stays");
    }
}
