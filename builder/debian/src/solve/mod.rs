//! Which packages to install: every wish and every dependency met, no conflict, and nothing that is not needed.
//!
//! In: a [`Universe`] of packages and a [`Wish`]. Out: the chosen packages by name, or the reason in words why there is no
//! choice. The search is resolvo's (CDCL); equal inputs give equal outputs. Alternatives are tried in the order in which
//! they are written, versions from the highest down, providers of a virtual package by priority, then by name.

use std::collections::{BTreeMap, BTreeSet};

use resolvo::{DenseIndex, Problem, Requirement, SolvableId, Solver, UnsolvableOrCancelled};

use crate::relation::{self, BadRelation};

mod explain;
mod provider;
mod universe;

use provider::Provider;
pub use universe::{Chosen, Universe};

/// Rounds of adding recommended packages, each of which may recommend more.
const MAX_RECOMMENDS_ROUNDS: usize = 64;

/// What to install.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// Packages as relations: `bash`, `xen-utils-4.20 (>= 4.20.0)`, `a | b`.
    pub install: Vec<String>,
    /// Names of packages that must not be there.
    pub exclude: Vec<String>,
    /// Names, virtual ones too, that something else will stand for: a dependency that one of them meets needs nothing more.
    pub provided: Vec<String>,
    /// Also what the chosen packages recommend, where it can be installed.
    pub recommends: bool,
    /// Also every package marked essential, less those excluded.
    pub essential: bool,
}

/// Why there is no choice.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SolveError {
    /// A wish that is no relation.
    #[error("cannot read a name in the list of packages")]
    BadWish(#[source] BadRelation),
    /// No set of packages meets all wishes.
    #[error("the packages cannot be installed together:{}", indented(reasons))]
    Conflict {
        /// One sentence each, from the wish to the obstacle.
        reasons: Vec<String>,
    },
}

impl SolveError {
    /// What the user can do next.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::BadWish(_) => "write package names as in Debian, e.g. `openssh-server` or `linux-image-amd64 (>= 6.12)`".into(),
            Self::Conflict { .. } => "correct the lists of packages, or add the suite or component that has what is missing".into(),
        })
    }
}

fn indented(reasons: &[String]) -> String {
    reasons
        .iter()
        .map(|reason| format!("\n  {reason}"))
        .collect()
}

/// Chooses packages of `universe` that meet `wish`, ordered by name.
///
/// # Errors
/// When a wish is malformed, or no choice exists.
pub fn solve<'t>(universe: &Universe<'t>, wish: &Wish) -> Result<Vec<Chosen<'t>>, SolveError> {
    let roots = roots_of(universe, wish)?;
    let excluded: BTreeSet<&str> = wish.exclude.iter().map(String::as_str).collect();
    let provider = Provider::new(universe, &excluded, &wish.provided, &roots);
    let mut solver = Solver::new(provider);
    let mut soft: Vec<SolvableId> = Vec::new();
    let mut picked = run(&mut solver, &soft)?;
    for _ in 0..MAX_RECOMMENDS_ROUNDS {
        let more = if wish.recommends {
            recommended(universe, &excluded, &picked, &soft)
        } else {
            Vec::new()
        };
        if more.is_empty() {
            break;
        }
        soft.extend(more);
        picked = run(&mut solver, &soft)?;
    }
    Ok(needed(universe, wish, &roots, &picked))
}

/// The best candidate of each package to install, and nothing that these depend on, ordered by name.
///
/// # Errors
/// When a wish is malformed, or there is no such package.
pub fn alone<'t>(universe: &Universe<'t>, wish: &Wish) -> Result<Vec<Chosen<'t>>, SolveError> {
    let mut chosen = Vec::new();
    for text in &wish.install {
        for group in relation::parse(text).map_err(SolveError::BadWish)? {
            let best = universe.candidates(&group).into_iter().next();
            let best = best.ok_or_else(|| SolveError::Conflict {
                reasons: vec![format!("`{text}` is in none of the suites")],
            })?;
            chosen.push(universe.chosen(best, false));
        }
    }
    chosen.sort_by_key(|c| c.package.name);
    Ok(chosen)
}

/// A wish as text, and whether it is one because the package is essential.
pub(crate) struct Root {
    pub(crate) text: String,
    pub(crate) essential: bool,
}

fn roots_of(universe: &Universe<'_>, wish: &Wish) -> Result<Vec<Root>, SolveError> {
    let mut roots = Vec::new();
    for text in &wish.install {
        relation::parse(text).map_err(SolveError::BadWish)?;
        roots.push(Root {
            text: text.clone(),
            essential: false,
        });
    }
    if wish.essential {
        let names = universe
            .essential_names()
            .into_iter()
            .filter(|name| !wish.exclude.iter().any(|e| e == name));
        roots.extend(names.map(|name| Root {
            text: name.to_owned(),
            essential: true,
        }));
    }
    Ok(roots)
}

fn run(
    solver: &mut Solver<Provider<'_, '_>>,
    soft: &[SolvableId],
) -> Result<BTreeSet<u32>, SolveError> {
    let requirements = solver
        .provider()
        .root_requirements()
        .into_iter()
        .map(Requirement::into)
        .collect();
    let problem = Problem::new()
        .requirements(requirements)
        .soft_requirements(soft.iter().copied());
    match solver.solve(problem) {
        Ok(solvables) => Ok(solvables
            .into_iter()
            .map(|id| id.to_index() as u32)
            .collect()),
        Err(UnsolvableOrCancelled::Unsolvable(conflict)) => Err(SolveError::Conflict {
            reasons: explain::in_words(&conflict.graph(solver), solver.provider()),
        }),
        // The provider never cancels.
        Err(UnsolvableOrCancelled::Cancelled(_)) => Err(SolveError::Conflict {
            reasons: vec!["the search ended early".into()],
        }),
    }
}

/// The best candidate of every recommendation that `picked` does not meet yet and that was not tried before. Those that
/// leave a choice wait until no other is left: what the others bring may meet them.
fn recommended(
    universe: &Universe<'_>,
    excluded: &BTreeSet<&str>,
    picked: &BTreeSet<u32>,
    tried: &[SolvableId],
) -> Vec<SolvableId> {
    let tried: BTreeSet<u32> = tried.iter().map(|id| id.to_index() as u32).collect();
    let (mut plain, mut with_choice) = (BTreeSet::new(), BTreeSet::new());
    for at in picked {
        for group in relation::parse(universe.package(*at).recommends).unwrap_or_default() {
            let candidates = universe.candidates(&group);
            if candidates
                .iter()
                .any(|c| picked.contains(c) || tried.contains(c))
            {
                continue;
            }
            let best = candidates
                .iter()
                .copied()
                .find(|c| !excluded.contains(universe.package(*c).name));
            let into = if candidates.len() == 1 {
                &mut plain
            } else {
                &mut with_choice
            };
            into.extend(best);
        }
    }
    let more = if plain.is_empty() { with_choice } else { plain };
    more.into_iter()
        .map(|at| SolvableId::from_index(at as usize))
        .collect()
}

/// What the wishes lead to, within `picked`: the search may leave behind what a revised decision no longer needs.
fn needed<'t>(
    universe: &Universe<'t>,
    wish: &Wish,
    roots: &[Root],
    picked: &BTreeSet<u32>,
) -> Vec<Chosen<'t>> {
    // package → whether another one pre-depends on it
    let mut reached: BTreeMap<u32, bool> = BTreeMap::new();
    let mut queue: Vec<u32> = Vec::new();
    let mut follow = |field: &str, pre: bool, queue: &mut Vec<u32>| {
        for group in relation::parse(field).unwrap_or_default() {
            if let Some(at) = universe
                .candidates(&group)
                .into_iter()
                .find(|c| picked.contains(c))
            {
                reached
                    .entry(at)
                    .and_modify(|flag| *flag |= pre)
                    .or_insert_with(|| {
                        queue.push(at);
                        pre
                    });
            }
        }
    };
    roots
        .iter()
        .for_each(|root| follow(&root.text, false, &mut queue));
    while let Some(at) = queue.pop() {
        let package = universe.package(at);
        follow(package.pre_depends, true, &mut queue);
        follow(package.depends, false, &mut queue);
        if wish.recommends {
            follow(package.recommends, false, &mut queue);
        }
    }
    let mut chosen: Vec<Chosen<'t>> = reached
        .into_iter()
        .map(|(at, pre)| universe.chosen(at, pre))
        .collect();
    chosen.sort_by_key(|c| c.package.name);
    chosen
}

#[cfg(test)]
mod tests;
