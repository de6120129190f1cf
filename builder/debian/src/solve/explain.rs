//! A conflict in words, from the wish to the obstacle.

use std::collections::{BTreeMap, HashSet, VecDeque};

use resolvo::conflict::{ConflictCause, ConflictEdge, ConflictGraph, ConflictNode};
use resolvo::{DenseIndex, Requirement};

use super::provider::Provider;

/// A conflict rarely needs more; one that does is not understood by reading on.
const MAX_SENTENCES: usize = 24;

/// One sentence per step.
pub(super) fn in_words(graph: &ConflictGraph, provider: &Provider<'_, '_>) -> Vec<String> {
    let mut sentences: Vec<String> = Vec::new();
    let mut seen = HashSet::from([graph.root_node]);
    let mut queue = VecDeque::from([graph.root_node]);
    while let Some(node) = queue.pop_front() {
        let Some(subject) = subject_of(&graph.graph[node], provider) else {
            continue;
        };
        // requirement → the nodes that could meet it
        let mut needs: BTreeMap<Requirement, Vec<_>> = BTreeMap::new();
        let mut walk = graph.graph.neighbors(node).detach();
        let mut edges: Vec<_> = std::iter::from_fn(|| walk.next(&graph.graph)).collect();
        edges.sort_unstable();
        for (edge, target) in edges {
            match &graph.graph[edge] {
                ConflictEdge::Requires(requirement) => {
                    needs.entry(*requirement).or_default().push(target)
                }
                ConflictEdge::Conflict(cause) => {
                    sentences.extend(obstacle(&subject, cause, &graph.graph[target], provider));
                }
            }
            if seen.insert(target) {
                queue.push_back(target);
            }
        }
        for (requirement, targets) in needs {
            let missing = targets.iter().any(|t| Some(*t) == graph.unresolved_node);
            let meaning = provider.requirement_meaning(requirement);
            sentences.push(need(&subject, &meaning, missing, provider));
        }
    }
    let mut told = HashSet::new();
    sentences.retain(|sentence| told.insert(sentence.clone()));
    // What leads to the obstacle comes before the obstacle.
    sentences.sort_by_key(|sentence| !sentence.starts_with(WISH));
    if sentences.len() > MAX_SENTENCES {
        let more = sentences.len() - MAX_SENTENCES;
        sentences.truncate(MAX_SENTENCES);
        sentences.push(format!("and {more} more such sentences"));
    }
    sentences
}

const WISH: &str = "asked for";

/// The request, or `` `name` version ``; nothing for nodes that stand for a reason.
fn subject_of(node: &ConflictNode, provider: &Provider<'_, '_>) -> Option<Option<String>> {
    match node {
        ConflictNode::Root => Some(None),
        ConflictNode::Solvable(id) => {
            let package = provider.universe.package(id.to_index() as u32);
            Some(Some(format!("`{}` {}", package.name, package.version)))
        }
        ConflictNode::UnresolvedDependency | ConflictNode::Excluded(_) => None,
    }
}

fn need(
    subject: &Option<String>,
    meaning: &str,
    missing: bool,
    provider: &Provider<'_, '_>,
) -> String {
    let but = if missing {
        format!(", but {}", what_is_there(meaning, provider))
    } else {
        String::new()
    };
    match subject {
        Some(subject) => format!("{subject} needs {meaning}{but}"),
        None if provider.is_essential_root(meaning) => {
            format!("{WISH}: {meaning}, which is essential{but}")
        }
        None => format!("{WISH}: {meaning}{but}"),
    }
}

/// What the universe has under the names in `meaning`, where nothing there will do.
fn what_is_there(meaning: &str, provider: &Provider<'_, '_>) -> String {
    let names = meaning
        .split('`')
        .skip(1)
        .step_by(2)
        .map(|r| r.split([' ', ':']).next().unwrap_or_default());
    let there = names.map(|name| {
        let versions: Vec<String> = provider
            .universe
            .named(name)
            .iter()
            .map(|at| provider.universe.package(*at))
            .map(|p| format!("{} ({})", p.version, p.architecture))
            .collect();
        match versions.as_slice() {
            [] => format!("no package is called `{name}` or provides it in such a version"),
            versions => format!("of `{name}` there is only {}", versions.join(", ")),
        }
    });
    there.collect::<Vec<_>>().join("; ")
}

fn obstacle(
    subject: &Option<String>,
    cause: &ConflictCause,
    target: &ConflictNode,
    provider: &Provider<'_, '_>,
) -> Option<String> {
    let subject = subject.as_deref().unwrap_or("the request");
    let other = subject_of(target, provider).flatten();
    match (cause, target) {
        (ConflictCause::Constrains(set), _) => Some(format!(
            "{subject} {}, that is {}",
            provider.meaning(*set),
            other?
        )),
        (ConflictCause::ForbidMultipleInstances, _) => {
            Some(format!("{subject} cannot be installed beside {}", other?))
        }
        (_, ConflictNode::Excluded(reason)) => Some(provider.string(*reason)),
        _ => None,
    }
}
