//! Debian's relations in the terms of resolvo.
//!
//! resolvo knows packages by name, versions of them, and sets of such versions; it knows no virtual packages. So each
//! relation is first turned into the list of packages that meet it, and that list into one set per real name, joined in
//! order of preference. Conflicts turn into sets of the versions that remain allowed.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;

use resolvo::{
    Candidates, Condition, ConditionId, DenseIndex, Dependencies, DependencyProvider, Interner,
    KnownDependencies, NameId, Requirement, SolvableId, SolverCache, StringId, VersionSetId,
    VersionSetUnionId,
};

use super::Root;
use super::universe::{Universe, alternatives};
use crate::packages::Package;
use crate::relation::{self, BadRelation, Relation};

pub(super) struct Provider<'u, 't> {
    pub(super) universe: &'u Universe<'t>,
    excluded: &'u BTreeSet<&'u str>,
    provided: &'u [String],
    roots: &'u [Root],
    tables: RefCell<Tables>,
}

#[derive(Default)]
struct Tables {
    /// Names no package has; their ids follow those of the universe.
    unknown_names: Vec<String>,
    sets: Vec<Set>,
    unions: Vec<Vec<VersionSetId>>,
    strings: Vec<String>,
    /// By the text of the alternatives.
    requirements: HashMap<String, Requirement>,
}

/// Some versions of one package.
struct Set {
    name: NameId,
    members: Vec<u32>,
    /// What it stands for, in words.
    meaning: String,
}

impl<'u, 't> Provider<'u, 't> {
    pub(super) fn new(
        universe: &'u Universe<'t>,
        excluded: &'u BTreeSet<&'u str>,
        provided: &'u [String],
        roots: &'u [Root],
    ) -> Self {
        Self {
            universe,
            excluded,
            provided,
            roots,
            tables: RefCell::default(),
        }
    }

    pub(super) fn root_requirements(&self) -> Vec<Requirement> {
        let groups = self
            .roots
            .iter()
            .flat_map(|root| relation::parse(&root.text).unwrap_or_default());
        groups.map(|group| self.requirement(&group)).collect()
    }

    /// Whether `requirement`, by its meaning, is there for an essential package only.
    pub(super) fn is_essential_root(&self, meaning: &str) -> bool {
        let root = self
            .roots
            .iter()
            .find(|root| format!("`{}`", root.text) == meaning);
        root.is_some_and(|root| root.essential)
    }

    pub(super) fn is_excluded(&self, name: &str) -> bool {
        self.excluded.contains(name)
    }

    /// What a requirement or a conflict means, in words.
    pub(super) fn meaning(&self, set: VersionSetId) -> String {
        self.tables.borrow().sets[set.to_index()].meaning.clone()
    }

    pub(super) fn requirement_meaning(&self, requirement: Requirement) -> String {
        match requirement {
            Requirement::Single(set) => self.meaning(set),
            Requirement::Union(union) => {
                let first = self.tables.borrow().unions[union.to_index()]
                    .first()
                    .copied();
                first.map(|set| self.meaning(set)).unwrap_or_default()
            }
        }
    }

    pub(super) fn string(&self, id: StringId) -> String {
        self.tables.borrow().strings[id.to_index()].clone()
    }

    fn requirement(&self, group: &[Relation<'_>]) -> Requirement {
        let meaning = alternatives(group);
        if let Some(known) = self.tables.borrow().requirements.get(&meaning) {
            return *known;
        }
        let mut runs: Vec<(NameId, Vec<u32>)> = Vec::new();
        for at in self.universe.candidates(group) {
            let name = self.name_of(at);
            match runs.last_mut() {
                Some((last, members)) if *last == name => members.push(at),
                _ => runs.push((name, vec![at])),
            }
        }
        if runs.is_empty() {
            let wanted = group.first().map_or("", |relation| relation.name);
            runs.push((self.name_id(wanted), Vec::new()));
        }
        let sets: Vec<VersionSetId> = runs
            .into_iter()
            .map(|(name, members)| {
                self.add_set(Set {
                    name,
                    members,
                    meaning: meaning.clone(),
                })
            })
            .collect();
        let mut tables = self.tables.borrow_mut();
        let requirement = match sets.as_slice() {
            [one] => Requirement::Single(*one),
            _ => {
                tables.unions.push(sets);
                Requirement::Union(VersionSetUnionId::from_index(tables.unions.len() - 1))
            }
        };
        tables.requirements.insert(meaning, requirement);
        requirement
    }

    /// One set per real name that `relation` rules out for `package`: its versions that remain allowed.
    fn constraints(
        &self,
        package: &Package<'t>,
        relation: &Relation<'_>,
        verb: &str,
        out: &mut Vec<VersionSetId>,
    ) {
        let mut forbidden: Vec<(&str, Vec<u32>)> = Vec::new();
        for at in self.universe.matching(relation) {
            let name = self.universe.package(at).name;
            // A package may conflict with what it provides itself: there shall be no other.
            if name == package.name {
                continue;
            }
            match forbidden.iter_mut().find(|(other, _)| *other == name) {
                Some((_, members)) => members.push(at),
                None => forbidden.push((name, vec![at])),
            }
        }
        for (name, forbidden) in forbidden {
            let members = self
                .universe
                .named(name)
                .iter()
                .filter(|at| !forbidden.contains(at))
                .copied()
                .collect();
            let meaning = format!("{verb} `{relation}`");
            out.push(self.add_set(Set {
                name: self.name_id(name),
                members,
                meaning,
            }));
        }
    }

    fn dependencies(&self, at: u32) -> Result<KnownDependencies, BadRelation> {
        let package = self.universe.package(at);
        let mut known = KnownDependencies::default();
        for field in [package.pre_depends, package.depends] {
            for group in relation::parse(field)? {
                if group
                    .iter()
                    .any(|relation| self.provided.iter().any(|name| name == relation.name))
                {
                    continue;
                }
                known.requirements.push(self.requirement(&group).into());
            }
        }
        for (field, verb) in [
            (package.conflicts, "conflicts with"),
            (package.breaks, "breaks"),
        ] {
            for relation in relation::parse(field)?.into_iter().flatten() {
                self.constraints(package, &relation, verb, &mut known.constrains);
            }
        }
        Ok(known)
    }

    fn add_set(&self, set: Set) -> VersionSetId {
        let sets = &mut self.tables.borrow_mut().sets;
        sets.push(set);
        VersionSetId::from_index(sets.len() - 1)
    }

    fn add_string(&self, text: String) -> StringId {
        let strings = &mut self.tables.borrow_mut().strings;
        strings.push(text);
        StringId::from_index(strings.len() - 1)
    }

    fn name_of(&self, at: u32) -> NameId {
        self.name_id(self.universe.package(at).name)
    }

    fn name_id(&self, name: &str) -> NameId {
        if let Some(index) = self.universe.name_index(name) {
            return NameId::from_index(index as usize);
        }
        let names = &mut self.tables.borrow_mut().unknown_names;
        let at = names
            .iter()
            .position(|known| known == name)
            .unwrap_or_else(|| {
                names.push(name.to_owned());
                names.len() - 1
            });
        NameId::from_index(self.universe.names.len() + at)
    }

    fn name(&self, id: NameId) -> String {
        let index = id.to_index();
        match self.universe.names.get(index) {
            Some(name) => (*name).to_owned(),
            None => self.tables.borrow().unknown_names[index - self.universe.names.len()].clone(),
        }
    }
}

impl Interner for Provider<'_, '_> {
    type NameId = NameId;
    type SolvableId = SolvableId;

    fn display_solvable(&self, solvable: SolvableId) -> impl Display + '_ {
        let package = self.universe.package(solvable.to_index() as u32);
        format!("{} {}", package.name, package.version)
    }

    fn display_name(&self, name: NameId) -> impl Display + '_ {
        self.name(name)
    }

    fn display_version_set(&self, version_set: VersionSetId) -> impl Display + '_ {
        self.meaning(version_set)
    }

    fn display_string(&self, string_id: StringId) -> impl Display + '_ {
        self.string(string_id)
    }

    fn version_set_name(&self, version_set: VersionSetId) -> NameId {
        self.tables.borrow().sets[version_set.to_index()].name
    }

    fn solvable_name(&self, solvable: SolvableId) -> NameId {
        self.name_of(solvable.to_index() as u32)
    }

    fn version_sets_in_union(
        &self,
        union: VersionSetUnionId,
    ) -> impl Iterator<Item = VersionSetId> {
        self.tables.borrow().unions[union.to_index()]
            .clone()
            .into_iter()
    }

    fn resolve_condition(&self, _condition: ConditionId) -> Condition {
        unreachable!("no requirement of ours has a condition")
    }
}

impl DependencyProvider for Provider<'_, '_> {
    async fn filter_candidates(
        &self,
        candidates: &[SolvableId],
        version_set: VersionSetId,
        inverse: bool,
    ) -> Vec<SolvableId> {
        let tables = self.tables.borrow();
        let members = &tables.sets[version_set.to_index()].members;
        let fits = |id: &&SolvableId| members.contains(&(id.to_index() as u32)) != inverse;
        candidates.iter().filter(fits).copied().collect()
    }

    async fn get_candidates(&self, name: NameId) -> Option<Candidates<SolvableId>> {
        let name = self.name(name);
        let candidates: Vec<SolvableId> = self
            .universe
            .named(&name)
            .iter()
            .map(|at| SolvableId::from_index(*at as usize))
            .collect();
        let excluded = if self.is_excluded(&name) {
            let reason = self.add_string(format!("`{name}` is excluded by the request"));
            candidates.iter().map(|id| (*id, reason)).collect()
        } else {
            Vec::new()
        };
        Some(Candidates {
            candidates,
            excluded,
            ..Candidates::default()
        })
    }

    async fn sort_candidates(&self, _solver: &SolverCache<Self>, solvables: &mut [SolvableId]) {
        solvables.sort_by_key(|id| (self.universe.rank(id.to_index() as u32), *id));
    }

    async fn get_dependencies(&self, solvable: SolvableId) -> Dependencies {
        let at = solvable.to_index() as u32;
        match self.dependencies(at) {
            Ok(known) => Dependencies::Known(known),
            Err(e) => {
                let name = self.universe.package(at).name;
                Dependencies::Unknown(
                    self.add_string(format!("the dependencies of `{name}` cannot be read: {e}")),
                )
            }
        }
    }
}
