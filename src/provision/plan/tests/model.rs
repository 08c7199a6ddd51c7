//! A small model of a server carries steps out, so that a plan can be cut off after each of them.

use super::super::*;
use crate::provision::step::What;
use crate::provision::subject::overlap;

/// Does to `live` what a server would.
pub(super) fn run(live: &mut Live, steps: &[Step], what: &str) {
    for step in steps {
        let Some(name) = &step.consumer else {
            match &step.what {
                What::Create(config) | What::CreateClosed(config) => {
                    let closed = matches!(step.what, What::CreateClosed(_));
                    let config =
                        if closed { step::closed_config(&step.stream, config) } else { config.clone() };
                    let stream = LiveStream { config, ..LiveStream::default() };
                    assert!(live.streams.insert(step.stream.clone(), stream).is_none(), "{what}: {step}");
                }
                What::Update(config) | What::Close(Some(config), _) => {
                    let stream = live.streams.get_mut(&step.stream).expect("it exists");
                    assert_ne!(stream.config, *config, "{what}: {step} changes nothing");
                    stream.config.clone_from(config);
                }
                What::Close(None, _) => {
                    let subjects = texts(&live.streams[&step.stream].config, "subjects");
                    assert_eq!(subjects, [step::closed(&step.stream)], "{what}: {step}");
                }
                What::Forget => {
                    let note = live.streams.remove(&step.stream).expect("it exists");
                    assert!(label(&note.config, step::NEXT_OF).is_some(), "{what}: {step}");
                }
                What::Open(open) => {
                    let stream = live.streams.get_mut(&step.stream).expect("it exists");
                    assert_eq!(
                        texts(&stream.config, "subjects"),
                        [step::closed(&step.stream)],
                        "{what}: {step}"
                    );
                    stream.config = step::open_config(&stream.config, open);
                }
                What::AwaitEmpty => live.streams.get_mut(&step.stream).unwrap().messages = 0,
                What::Note(config) => {
                    let note = LiveStream { config: config.clone(), ..LiveStream::default() };
                    live.streams.insert(step::note(&step.stream), note);
                }
                What::Delete { .. } => drop(live.streams.remove(&step.stream).expect("it exists")),
                other => panic!("{other:?} of a stream"),
            }
            let all = live.streams.values().flat_map(|stream| texts(&stream.config, "subjects"));
            let mut all: Vec<String> = all.collect();
            let count = all.len();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), count, "{what}: {step}: a subject is of two streams");
            continue;
        };
        let stream = live.streams.get_mut(&step.stream).expect("its stream exists");
        let until = || Some("2030-01-01T00:00:00Z".to_owned());
        match &step.what {
            What::Create(config) | What::CreateAgain(config) => {
                let paused_until = matches!(step.what, What::CreateAgain(_)).then(until).flatten();
                let consumer =
                    LiveConsumer { config: config.clone(), paused_until, ..LiveConsumer::default() };
                assert!(stream.consumers.insert(name.clone(), consumer).is_none(), "{what}: {step}");
            }
            // Signed by the apply that is at it, so it is another one each time.
            What::Mark(config) => {
                stream.consumers.get_mut(name).expect("it exists").config.clone_from(config);
            }
            What::Update(config) | What::Placed(config) | What::Release(config) | What::Unmark(config) => {
                let consumer = stream.consumers.get_mut(name).expect("it exists");
                assert_ne!(consumer.config, *config, "{what}: {step} changes nothing");
                consumer.config.clone_from(config);
            }
            What::Pause { .. } => stream.consumers.get_mut(name).unwrap().paused_until = until(),
            What::Resume(until) => stream.consumers.get_mut(name).unwrap().paused_until.clone_from(until),
            What::Drain => {
                let consumer = stream.consumers.get_mut(name).unwrap();
                assert!(consumer.paused_until.is_some(), "{what}: {step}");
                consumer.unacknowledged = 0;
            }
            What::Bookmark(config) => {
                let bookmark = LiveConsumer { config: config.clone(), ..LiveConsumer::default() };
                assert!(stream.consumers.insert(step::bookmark(name), bookmark).is_none(), "{what}: {step}");
            }
            What::Delete { .. } => {
                let gone = stream.consumers.remove(name).expect("it exists");
                assert!(gone.paused_until.is_some() && gone.unacknowledged == 0, "{what}: {step}");
            }
            What::Forget => {
                let gone = stream.consumers.remove(name).expect("it exists");
                assert!(label(&gone.config, step::BOOKMARK).is_some(), "{what}: {step}");
            }
            What::Rewind | What::Return => {
                let consumer = &stream.consumers[name];
                assert!(consumer.paused_until.is_some() && consumer.unacknowledged == 0, "{what}: {step}");
            }
            other => panic!("{other:?} of a consumer"),
        }
        let unplaced = |one: &LiveConsumer| {
            one.paused_until.is_none() && label(&one.config, step::PLACE) == Some(step::AT_BOOKMARK)
        };
        assert!(
            !stream.consumers.values().any(unplaced),
            "{what}: {step}: it hands out what it has handed out"
        );
        let awake: Vec<_> = stream
            .consumers
            .iter()
            .filter(|(_, one)| one.paused_until.is_none() && is_work_queue(&stream.config))
            .flat_map(|(name, one)| filters(&one.config).into_iter().map(move |filter| (name, filter)))
            .collect();
        for (at, (name, filter)) in awake.iter().enumerate() {
            let meets = |(other, taken): &&(&String, String)| other != name && overlap(filter, taken);
            assert!(!awake[at..].iter().any(|one| meets(&one)), "{what}: {step}: {filter} goes to two");
        }
    }
}
