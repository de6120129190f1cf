//! All packages there are to choose from, by name and by what they provide.

use std::collections::HashMap;

use crate::packages::{MultiArch, Package};
use crate::relation::{self, Relation};
use crate::version;

/// Every package of the archives that can be installed on one architecture.
pub struct Universe<'t> {
    architecture: String,
    packages: Vec<Package<'t>>,
    /// `suites[i]` holds `packages[i]`.
    suites: Vec<&'t str>,
    pub(super) names: Vec<&'t str>,
    by_name: HashMap<&'t str, Name>,
    /// By virtual name: the package and the version it provides, best provider first.
    providers: HashMap<&'t str, Vec<(u32, Option<&'t str>)>>,
    /// `ranks[i]` orders `packages[i]` among its namesakes: 0 is tried first.
    ranks: Vec<u32>,
}

struct Name {
    index: u32,
    /// Highest version first.
    packages: Vec<u32>,
}

/// A package of the solution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chosen<'t> {
    /// The package.
    pub package: Package<'t>,
    /// The suite it is taken from.
    pub suite: &'t str,
    /// Whether another chosen package names it in `Pre-Depends`.
    pub pre_depended: bool,
}

impl<'t> Universe<'t> {
    /// The packages of `lists` (suite, packages) that are for `architecture` or for all. Of a package that several suites
    /// have in the same version, that of the first suite counts.
    pub fn new(architecture: &str, lists: Vec<(&'t str, Vec<Package<'t>>)>) -> Self {
        let mut universe = Self {
            architecture: architecture.to_owned(),
            packages: Vec::new(),
            suites: Vec::new(),
            names: Vec::new(),
            by_name: HashMap::new(),
            providers: HashMap::new(),
            ranks: Vec::new(),
        };
        for (suite, packages) in lists {
            packages
                .into_iter()
                .for_each(|package| universe.add(suite, package));
        }
        universe.sort();
        universe.index_provides();
        universe
    }

    fn add(&mut self, suite: &'t str, package: Package<'t>) {
        if package.architecture != self.architecture && package.architecture != "all" {
            return;
        }
        let at = self.packages.len() as u32;
        let index = self.names.len() as u32;
        let name = self.by_name.entry(package.name).or_insert_with(|| {
            self.names.push(package.name);
            Name {
                index,
                packages: Vec::new(),
            }
        });
        let known = |other: &u32| self.packages[*other as usize].version == package.version;
        if !name.packages.iter().any(known) {
            name.packages.push(at);
            self.packages.push(package);
            self.suites.push(suite);
        }
    }

    fn sort(&mut self) {
        self.ranks = vec![0; self.packages.len()];
        for name in self.by_name.values_mut() {
            let version_of = |at: &u32| self.packages[*at as usize].version;
            name.packages
                .sort_by(|a, b| version::compare(version_of(b), version_of(a)).then(a.cmp(b)));
            for (rank, at) in name.packages.iter().enumerate() {
                self.ranks[*at as usize] = rank as u32;
            }
        }
    }

    fn index_provides(&mut self) {
        for (at, package) in self
            .packages
            .iter()
            .enumerate()
            .filter(|(_, p)| !p.provides.is_empty())
        {
            let groups = relation::parse(package.provides).unwrap_or_else(|e| {
                tracing::debug!("`Provides` of `{}` is passed over: {e}", package.name);
                Vec::new()
            });
            for provided in groups.into_iter().flatten() {
                let version = provided.versions.map(|(_, version)| version);
                self.providers
                    .entry(provided.name)
                    .or_default()
                    .push((at as u32, version));
            }
        }
        let key = |at: u32| {
            let package = &self.packages[at as usize];
            (
                priority_rank(package.priority),
                package.name,
                self.ranks[at as usize],
            )
        };
        self.providers
            .values_mut()
            .for_each(|list| list.sort_by_key(|(at, _)| key(*at)));
    }

    /// How many packages there are.
    pub fn len(&self) -> usize {
        self.packages.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.packages.is_empty()
    }

    /// The names of the packages whose highest version is essential, sorted.
    pub fn essential_names(&self) -> Vec<&'t str> {
        let essential = |name: &&&'t str| {
            self.named(name)
                .first()
                .is_some_and(|at| self.package(*at).essential)
        };
        let mut names: Vec<&'t str> = self.names.iter().filter(essential).copied().collect();
        names.sort_unstable();
        names
    }

    /// Every dependency of `chosen` that `chosen` itself does not meet, and every conflict within it, in words: empty for
    /// a solution. Written apart from the search, to check it.
    pub fn faults_of(&self, chosen: &[Chosen<'t>]) -> Vec<String> {
        let meets = |r: &Relation<'_>, other: &Chosen<'_>| self.meets(r, &other.package);
        let mut faults = Vec::new();
        for one in chosen {
            let package = &one.package;
            for field in [package.pre_depends, package.depends] {
                for group in relation::parse(field).unwrap_or_default() {
                    if !group
                        .iter()
                        .any(|r| chosen.iter().any(|other| meets(r, other)))
                    {
                        faults.push(format!("`{}` needs {}", package.name, alternatives(&group)));
                    }
                }
            }
            for field in [package.conflicts, package.breaks] {
                for relation in relation::parse(field)
                    .unwrap_or_default()
                    .into_iter()
                    .flatten()
                {
                    let others = chosen
                        .iter()
                        .filter(|other| other.package.name != package.name);
                    for other in others.filter(|other| meets(&relation, other)) {
                        faults.push(format!(
                            "`{}` excludes `{relation}`: `{}`",
                            package.name, other.package.name
                        ));
                    }
                }
            }
        }
        faults
    }

    pub(super) fn package(&self, at: u32) -> &Package<'t> {
        &self.packages[at as usize]
    }

    pub(super) fn rank(&self, at: u32) -> u32 {
        self.ranks[at as usize]
    }

    pub(super) fn chosen(&self, at: u32, pre_depended: bool) -> Chosen<'t> {
        Chosen {
            package: self.packages[at as usize].clone(),
            suite: self.suites[at as usize],
            pre_depended,
        }
    }

    pub(super) fn name_index(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).map(|n| n.index)
    }

    /// The packages called `name`, highest version first.
    pub(super) fn named(&self, name: &str) -> &[u32] {
        self.by_name
            .get(name)
            .map(|n| n.packages.as_slice())
            .unwrap_or_default()
    }

    /// What meets one of the alternatives, in order of preference.
    pub(super) fn candidates(&self, group: &[Relation<'_>]) -> Vec<u32> {
        let mut found: Vec<u32> = Vec::new();
        for at in group.iter().flat_map(|relation| self.matching(relation)) {
            if !found.contains(&at) {
                found.push(at);
            }
        }
        found
    }

    /// What meets one relation: the package itself first, then what provides it.
    pub(super) fn matching(&self, relation: &Relation<'_>) -> Vec<u32> {
        let providers = self
            .providers
            .get(relation.name)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let all = self
            .named(relation.name)
            .iter()
            .chain(providers.iter().map(|(at, _)| at));
        let mut found: Vec<u32> = Vec::new();
        for at in all {
            if self.meets(relation, self.package(*at)) && !found.contains(at) {
                found.push(*at);
            }
        }
        found
    }

    /// Whether `package` is, or provides, what `relation` asks for (policy §7.5: a versioned relation is met by a provided
    /// version only where that is written as `= version`).
    fn meets(&self, relation: &Relation<'_>, package: &Package<'t>) -> bool {
        let qualifier_fits = match relation.qualifier {
            None | Some("native") => true,
            Some("any") => package.multi_arch == MultiArch::Allowed,
            Some(architecture) => architecture == self.architecture,
        };
        if !qualifier_fits {
            return false;
        }
        if package.name == relation.name && relation.allows(package.version) {
            return true;
        }
        // Cheap test first: most packages provide nothing.
        !package.provides.is_empty()
            && relation::parse(package.provides)
                .unwrap_or_default()
                .iter()
                .flatten()
                .any(|provided| {
                    provided.name == relation.name
                        && match (relation.versions, provided.versions) {
                            (None, _) => true,
                            (Some(_), Some((relation::Comparison::Equal, version))) => {
                                relation.allows(version)
                            }
                            (Some(_), _) => false,
                        }
                })
    }
}

/// `` `a` or `b (>= 2)` ``
pub(super) fn alternatives(group: &[Relation<'_>]) -> String {
    group
        .iter()
        .map(|r| format!("`{r}`"))
        .collect::<Vec<_>>()
        .join(" or ")
}

fn priority_rank(priority: &str) -> u32 {
    match priority {
        "required" => 0,
        "important" => 1,
        "standard" => 2,
        "optional" => 3,
        _ => 4,
    }
}
