//! The heads of all mirrors, asked at once: the first good one, and a moment more for newer ones.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::error::{ErrorKind, FetchError, StreamError};
use super::fetch::Fetcher;
use super::open::Say;
use super::policy::Policy;
use super::source::{Ask, Progress, read_object};
use crate::boot::log;
use crate::format::{
    HEAD_PATH, Head, HeadError, Index, LIKELY_MANIFEST_PATH, MAX_HEAD_BYTES,
    MAX_LIKELY_MANIFEST_BYTES, VerifyKey,
};

/// What a mirror answered.
pub(super) struct Answer {
    mirror: usize,
    result: Result<(Vec<u8>, Index), Refused>,
}

/// Why a mirror's head is of no use, and whether asking again may help.
struct Refused {
    cause: String,
    for_good: bool,
    /// Its serial and the least one, if it is too old.
    old: Option<(u64, u64)>,
}

/// Asks every mirror for its head, each in a thread that goes on until it has one or nobody listens any more.
pub(super) fn ask_all(
    fetcher: &Arc<Fetcher>,
    keys: &Arc<Vec<VerifyKey>>,
    least: u64,
) -> Receiver<Answer> {
    let (sender, receiver) = mpsc::channel();
    for mirror in 0..fetcher.mirrors.count() {
        let (fetcher, keys, sender) = (fetcher.clone(), keys.clone(), sender.clone());
        let _ = crate::thread::spawn("head", 512 * 1024, move || {
            ask_one(&fetcher, mirror, &keys, least, &sender);
        });
    }
    receiver
}

/// Asks the first mirror for the manifest that will probably be wanted, beside its head: a round trip less. Nobody is blamed if it
/// is not to be had; then it is asked for by its name.
pub(super) fn ask_likely_manifest(fetcher: &Arc<Fetcher>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let fetcher = fetcher.clone();
    let _ = crate::thread::spawn("manifest", 512 * 1024, move || {
        let (mirrors, policy) = (&fetcher.mirrors, fetcher.policy());
        let ask = Ask {
            path: LIKELY_MANIFEST_PATH,
            from: 0,
            to: None,
            total: None,
            patience: mirrors.begin(0),
        };
        let (mut bytes, progress) = (Vec::new(), Progress::default());
        let most = MAX_LIKELY_MANIFEST_BYTES.into();
        let source = &mirrors.get(0).source;
        let read = read_object(source, &ask, most, &mut bytes, &progress, policy);
        mirrors.came(0, progress.bytes());
        match read {
            Ok(timing) => {
                mirrors.went_well(0, &timing);
                let _ = sender.send(bytes); // nobody listens: it was not wanted
            }
            Err(_) => mirrors.failed(0, &FetchError::Cancelled),
        }
    });
    receiver
}

fn ask_one(
    fetcher: &Fetcher,
    mirror: usize,
    keys: &[VerifyKey],
    least: u64,
    sender: &Sender<Answer>,
) {
    let policy = fetcher.policy();
    for failures in 1.. {
        let patience = fetcher.mirrors.begin(mirror);
        let ask = Ask {
            path: HEAD_PATH,
            from: 0,
            to: None,
            total: None,
            patience,
        };
        let mut bytes = Vec::new();
        let (progress, source) = (Progress::default(), &fetcher.mirrors.get(mirror).source);
        let read = read_object(
            source,
            &ask,
            MAX_HEAD_BYTES.into(),
            &mut bytes,
            &progress,
            policy,
        );
        fetcher.mirrors.came(mirror, progress.bytes());
        let mut old = None;
        let opened = read.and_then(|timing| match Head::open(&bytes, keys, least) {
            Ok(index) => Ok((timing, index)),
            Err(error) => {
                if let HeadError::Rollback { found, least } = error {
                    old = Some((found, least));
                }
                Err(match error {
                    HeadError::Format(error) => FetchError::Bad(error),
                    other => FetchError::Head(other.to_string()),
                })
            }
        });
        let result = match opened {
            Ok((timing, index)) => {
                fetcher.mirrors.went_well(mirror, &timing);
                Ok((bytes, index))
            }
            Err(error) => {
                fetcher.mirrors.failed(mirror, &error);
                // What it is, not what became of it on the way; the way is in the same trouble for everybody.
                let for_good = matches!(error.kind(), ErrorKind::Bad)
                    || matches!(error, FetchError::TooLong(_))
                    || (!policy.insist && error.is_answer());
                Err(Refused {
                    cause: error.to_string(),
                    for_good,
                    old,
                })
            }
        };
        let done = result.is_ok();
        if sender.send(Answer { mirror, result }).is_err() || done || fetcher.stopping() {
            return;
        }
        std::thread::sleep(policy.rest(failures + 1).max(policy.backoff));
    }
}

/// Waits for heads: the first good one, and a moment more for newer ones of others.
pub(super) fn choose(
    fetcher: &Fetcher,
    answers: &Receiver<Answer>,
    policy: &Policy,
    have_kept: bool,
    say: Say<'_>,
) -> Result<(usize, Vec<u8>, Index), StreamError> {
    let began = Instant::now();
    let mut best: Option<(usize, Vec<u8>, Index)> = None;
    let mut best_at = began;
    let mut refused: Vec<Option<Refused>> = (0..fetcher.mirrors.count()).map(|_| None).collect();
    let mut said: Vec<String> = vec![String::new(); refused.len()];
    let mut attempts = 0;
    let limit = if have_kept {
        policy.offline_after
    } else {
        policy.give_up
    };
    loop {
        let answered = |at: usize| {
            refused[at].is_some() || best.as_ref().is_some_and(|(mirror, ..)| *mirror == at)
        };
        let all = (0..refused.len()).all(answered);
        let wait = match &best {
            Some(_) if all => Duration::ZERO,
            Some(_) => policy.head_grace.saturating_sub(best_at.elapsed()),
            None => limit
                .saturating_sub(began.elapsed())
                .min(Duration::from_secs(1)),
        };
        let answer = answers.recv_timeout(wait);
        let quiet = answer.is_err();
        match answer {
            Ok(Answer {
                mirror,
                result: Ok((bytes, index)),
            }) => {
                attempts += 1;
                if best
                    .as_ref()
                    .is_none_or(|(.., old)| index.serial > old.serial)
                {
                    if best.is_none() {
                        best_at = Instant::now();
                    }
                    best = Some((mirror, bytes, index));
                }
            }
            Ok(Answer {
                mirror,
                result: Err(problem),
            }) => {
                attempts += 1;
                let url = &fetcher.mirrors.get(mirror).url;
                if said[mirror] != problem.cause {
                    say(&format!("{url}: {}", problem.cause));
                    log::warn(format!("{url}: {}", problem.cause));
                    said[mirror].clone_from(&problem.cause);
                }
                refused[mirror] = Some(problem);
            }
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                if let Some(best) = best {
                    return Ok(best);
                }
            }
        }
        let hopeless = best.is_none()
            && refused
                .iter()
                .all(|problem| problem.as_ref().is_some_and(|p| p.for_good));
        // What came while this thread was not running counts, too: the time is up when nothing is left to hear.
        if hopeless || (best.is_none() && quiet && began.elapsed() >= limit) {
            let last = refused
                .iter()
                .enumerate()
                .rev()
                .find_map(|(at, problem)| Some((at, problem.as_ref()?)));
            let mirror = fetcher
                .mirrors
                .get(last.map_or(0, |(at, _)| at))
                .url
                .clone();
            if let Some((found, least)) = last.and_then(|(_, problem)| problem.old) {
                return Err(StreamError::Rollback {
                    store: mirror,
                    found,
                    least,
                });
            }
            return Err(StreamError::Fetch {
                what: HEAD_PATH.into(),
                seconds: began.elapsed().as_secs(),
                attempts,
                mirror,
                cause: last
                    .map_or_else(|| "no answer".into(), |(_, problem)| problem.cause.clone()),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::mirrors::Mirrors;
    use crate::stream::source::http::Web;

    #[test]
    fn a_good_head_that_waits_to_be_heard_beats_the_end_of_patience() {
        let policy = Policy {
            give_up: Duration::ZERO,
            ..Policy::default()
        };
        let web = Arc::new(Web::new(&policy, None, None).unwrap());
        let urls = ["/nowhere".to_owned(), "/elsewhere".to_owned()];
        let mirrors = Mirrors::new(&urls, &web, &policy).unwrap();
        let fetcher = Fetcher::start(mirrors, &policy).unwrap();
        let (sender, receiver) = mpsc::channel();
        let refused = Err(Refused {
            cause: "no byte came".into(),
            for_good: false,
            old: None,
        });
        let index = Index {
            serial: 7,
            signed_secs: 0,
            default_system: 0,
            systems: Vec::new(),
        };
        let good = Ok((b"head".to_vec(), index));
        for (mirror, result) in [(0, refused), (1, good)] {
            assert!(sender.send(Answer { mirror, result }).is_ok());
        }
        let (mirror, bytes, index) =
            choose(&fetcher, &receiver, &policy, false, &mut |_| {}).unwrap();
        assert_eq!((mirror, &bytes[..], index.serial), (1, &b"head"[..], 7));
        let nobody = choose(&fetcher, &receiver, &policy, false, &mut |_| {});
        assert!(nobody.unwrap_err().to_string().contains("no answer"));
        fetcher.stop();
    }
}
