//! The head start: where dom0 has one processor, the rest of its boot waits until the guests' domains are built.
//!
//! A domain that is built boots on processors that dom0 leaves idle; until then only dom0 works. So on one processor it is
//! best to build first: what comes later then runs beside the guests. On more processors all of it runs side by side anyway.
//!
//! systemd orders the other units after `gasthaus-head-start.service`, which runs [`wait`]: a unit of its own, gone when it
//! is through, so that nothing is ordered by it when the house closes. Whatever becomes of the guests, dom0 goes on after
//! [`LIMIT`].
use crate::house::House;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

/// The longest that the rest of dom0 is held up; building both guests of the demo takes a third of it below QEMU's TCG.
const LIMIT: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(100);

/// Says that there is nothing more to build. Where that cannot be said, the time ends the head start.
pub fn end(house: &House) {
    let note = note(house);
    let folder = note.parent().map_or(Ok(()), std::fs::create_dir_all);
    if let Err(error) = folder.and_then(|()| std::fs::write(&note, "")) {
        println!("guests: cannot write `{}`: {error}", note.display());
    }
}

/// Comes back when there is nothing more to build, or it is not worth waiting for.
pub fn wait(house: &House) {
    let started = Instant::now();
    let note = note(house);
    while is_worth_it(house) && !note.exists() && started.elapsed() < LIMIT {
        thread::sleep(PAUSE);
    }
}

fn note(house: &House) -> PathBuf {
    house.run("guests-built")
}

/// Not where the guests' files come over a network, which takes as long as it takes and leaves the processor idle.
fn is_worth_it(house: &House) -> bool {
    house.processors() == 1 && house.source().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::house;

    #[test]
    fn only_one_processor_and_a_medium_are_worth_it() {
        let (dir, house, _) = house(&[("tiny", 1)]);
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert!(!is_worth_it(&house), "nobody knows how many there are");
        for (online, expected) in [("0-3\n", false), ("0,2\n", false), ("0\n", true)] {
            write("sys/devices/system/cpu/online", online);
            assert_eq!(is_worth_it(&house), expected, "{online}");
        }
        thread::scope(|scope| {
            let waiting = scope.spawn(|| wait(&house));
            thread::sleep(3 * PAUSE);
            assert!(!waiting.is_finished(), "the domains are not built yet");
            end(&house);
        });
        write("run/gasthaus/source", "http://192.0.2.1/store\n");
        assert!(!is_worth_it(&house));
    }
}
