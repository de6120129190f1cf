//! Order of modes, memory and clean-up when guests start and stop.
use super::*;
use crate::stop::{Manner, stop};
use crate::testing::{ListTools, house};

const DIED: &str = "no page yet";

fn starter<'h>(
    house: &'h House,
    tools: &'h ListTools,
    works: impl Fn(&Entry) -> bool + Sync + 'static,
) -> Starter<'h> {
    let look = move |entry: &Entry, _: &Since| {
        if works(entry) {
            Ok(())
        } else {
            Err(DIED.to_owned())
        }
    };
    Starter::with_look(house, tools, Box::new(look))
}

#[test]
fn first_mode_that_works_is_taken() {
    let (_dir, house, catalogue) = house(&[("tiny", 1)]);
    let tools = ListTools::new(1000);
    let entry = &catalogue.entries()[0];
    assert_eq!(
        starter(&house, &tools, |_| true)
            .start(entry, &|| {})
            .unwrap(),
        Mode::Pvh
    );
    let record = Record::load(&house, &entry.guest.name);
    assert_eq!(
        (record.state, record.mode, record.reason),
        (State::Up, Some(Mode::Pvh), None)
    );
    // Once more: it runs already, and nothing is created.
    assert_eq!(
        starter(&house, &tools, |_| true)
            .start(entry, &|| {})
            .unwrap(),
        Mode::Pvh
    );
    assert_eq!(tools.log(), ["create tiny/pvh"]);
    let manner = Manner {
        patience: Duration::from_secs(1),
        closing: false,
    };
    stop(&house, &tools, entry, manner).unwrap();
    assert_eq!(tools.log(), ["create tiny/pvh", "shutdown tiny"]);
    assert_eq!(
        Record::load(&house, &entry.guest.name).state,
        State::Stopped
    );
}

#[test]
fn falls_back_to_pv_and_keeps_the_reason() {
    let (_dir, house, catalogue) = house(&[("tiny", 1)]);
    let entry = &catalogue.entries()[0];
    let tools = ListTools::new(1000);
    tools.0.lock().unwrap().refused.push("tiny/pvh".into());
    assert_eq!(
        starter(&house, &tools, |_| true)
            .start(entry, &|| {})
            .unwrap(),
        Mode::Pv
    );
    assert_eq!(tools.log(), ["create tiny/pvh", "create tiny/pv"]);

    let tools = ListTools::new(1000);
    let capabilities = house.root().join("sys/hypervisor/properties/capabilities");
    std::fs::create_dir_all(capabilities.parent().unwrap()).unwrap();
    std::fs::write(&capabilities, "xen-3.0-x86_64\n").unwrap();
    assert_eq!(
        starter(&house, &tools, |_| true)
            .start(entry, &|| {})
            .unwrap(),
        Mode::Pv
    );
    assert_eq!(tools.log(), ["create tiny/pv"]);
    std::fs::remove_file(&capabilities).unwrap();

    let cpuinfo = house.root().join("proc/cpuinfo");
    std::fs::create_dir_all(cpuinfo.parent().unwrap()).unwrap();
    std::fs::write(&cpuinfo, "model name\t: QEMU TCG CPU version 2.5+\n").unwrap();
    let tools = ListTools::new(1000);
    tools.0.lock().unwrap().refused.push("tiny/pv".into());
    starter(&house, &tools, |_| true)
        .start(entry, &|| {})
        .unwrap();
    assert_eq!(tools.log(), ["create tiny/pv", "create tiny/pvh"]);
    std::fs::remove_file(&cpuinfo).unwrap();

    let tools = ListTools::new(1000);
    let failure = starter(&house, &tools, |_| false)
        .start(entry, &|| {})
        .unwrap_err();
    assert_eq!(
        tools.log(),
        [
            "create tiny/pvh",
            "destroy tiny",
            "create tiny/pv",
            "destroy tiny"
        ]
    );
    let line = failure.in_one_line();
    assert!(
        line.contains("pvh: not up after 1 s: no page yet; pv: not up after 1 s"),
        "{line}"
    );
    assert_eq!(Record::load(&house, &entry.guest.name).reason, Some(line));
}

#[test]
fn memory_is_counted_before_a_start() {
    let (_dir, house, catalogue) = house(&[("a", 1), ("b", 1), ("c", 1)]);
    let tools = ListTools::new(300);
    let starter = starter(&house, &tools, |_| true);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = catalogue
            .entries()
            .iter()
            .map(|entry| scope.spawn(|| starter.start(entry, &|| {})))
            .collect();
        starts
            .into_iter()
            .map(|start| start.join().unwrap())
            .collect()
    });
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 2);
    let failure = outcomes.into_iter().find_map(Result::err).unwrap();
    assert!(
        matches!(
            failure,
            Failure::Memory {
                needed_mib: 134,
                free_mib: 20,
                ..
            }
        ),
        "{failure}"
    );
    assert_eq!(tools.log().len(), 2, "no domain is built in vain");
}

#[test]
fn dead_domains_are_cleared_away() {
    let (_dir, house, catalogue) = house(&[("tiny", 1)]);
    let entry = &catalogue.entries()[0];
    let tools = ListTools::new(1000);
    let starter = starter(&house, &tools, |_| true);
    starter.start(entry, &|| {}).unwrap();
    tools.0.lock().unwrap().domains[0].dead = true;
    starter.start(entry, &|| {}).unwrap();
    assert_eq!(
        tools.log(),
        ["create tiny/pvh", "destroy tiny", "create tiny/pvh"]
    );
}

#[test]
fn a_closing_house_does_not_wait_for_starts() {
    let (_dir, house, catalogue) = house(&[("tiny", 1)]);
    let entry = &catalogue.entries()[0];
    let tools = ListTools::new(1000);
    starter(&house, &tools, |_| true)
        .start(entry, &|| {})
        .unwrap();
    let held = lock(&house, &entry.guest.name, Duration::ZERO).unwrap();
    let started = Instant::now();
    stop(
        &house,
        &tools,
        entry,
        Manner {
            patience: Duration::from_secs(5),
            closing: true,
        },
    )
    .unwrap();
    assert!(started.elapsed() < Duration::from_secs(4));
    assert_eq!(tools.log(), ["create tiny/pvh", "shutdown tiny"]);
    drop(held);
    stop(
        &house,
        &tools,
        entry,
        Manner {
            patience: Duration::ZERO,
            closing: false,
        },
    )
    .unwrap();
}

#[test]
fn what_was_built_early_is_only_waited_for() {
    let (_dir, house, catalogue) = house(&[("tiny", 1)]);
    let entry = &catalogue.entries()[0];
    let tools = ListTools::new(1000);
    let early =
        starter(&house, &tools, |_| unreachable!("nobody looks")).at_start(false, Some(1000));
    early.build(entry).unwrap();
    early.build(entry).unwrap();
    assert_eq!(tools.log(), ["create tiny/pvh"], "it is built once");

    let seen = std::sync::atomic::AtomicBool::new(false);
    let later = starter(&house, &tools, |_| true).at_start(true, None);
    let mode = later
        .start(entry, &|| {
            seen.store(true, std::sync::atomic::Ordering::Relaxed)
        })
        .unwrap();
    assert_eq!(mode, Mode::Pvh);
    assert!(seen.into_inner(), "its domain is there");
    assert_eq!(tools.log().len(), 1);
    let record = Record::load(&house, &entry.guest.name);
    assert_eq!((record.state, record.built_early), (State::Up, false));
}

#[test]
fn what_was_built_early_and_does_not_come_up_is_built_anew() {
    let (_dir, house, catalogue) = house(&[("tiny", 1)]);
    let entry = &catalogue.entries()[0];
    let tools = ListTools::new(1000);
    tools.0.lock().unwrap().refused.push("tiny/pvh".to_owned());
    starter(&house, &tools, |_| false)
        .at_start(false, Some(1000))
        .build(entry)
        .unwrap();
    assert_eq!(Record::load(&house, &entry.guest.name).mode, Some(Mode::Pv));
    let failure = starter(&house, &tools, |_| false)
        .at_start(true, None)
        .start(entry, &|| {})
        .unwrap_err();
    let Failure::NotUp { reasons, .. } = failure else {
        panic!("{failure}")
    };
    assert!(reasons[0].starts_with("pv: not up after"), "{reasons:?}");
    assert!(reasons[1].starts_with("pvh: "), "{reasons:?}");
    assert_eq!(
        tools.log(),
        [
            "create tiny/pvh",
            "create tiny/pv",
            "destroy tiny",
            "create tiny/pvh"
        ]
    );
}
