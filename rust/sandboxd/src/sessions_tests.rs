use std::sync::Arc;
use std::time::Duration;

use k15_sandbox::language::LimitChanges;
use k15_sandbox::{Cancel, Limits, Tree};

use crate::sessions::{Full, Gone, Sessions, Terms};

const LONG: Duration = Duration::from_secs(3600);

fn terms(lease: Duration, life: Duration) -> Terms {
    let limits = Limits { disk_bytes: 1 << 20, disk_files: 100, ..Limits::default() };
    Terms { lease, life, changes: LimitChanges::default(), limits }
}

fn sessions(most: usize, bytes: u64) -> Arc<Sessions> {
    Arc::new(Sessions::new(most, bytes))
}

#[test]
fn identifiers_are_long_and_unlike() {
    let all = sessions(100, 1 << 40);
    let mut found: Vec<String> = (0..100).map(|_| all.open(terms(LONG, LONG)).unwrap().0).collect();
    assert!(found.iter().all(|id| id.len() == 32));
    found.sort();
    found.dedup();
    assert_eq!(found.len(), 100);
}

#[test]
fn they_are_bounded_in_number_and_in_bytes() {
    let each = (1 << 20) + 100 * 1024;
    for all in [sessions(2, 1 << 40), sessions(9, 2 * each + 1)] {
        let (first, _) = all.open(terms(LONG, LONG)).unwrap();
        all.open(terms(LONG, LONG)).unwrap();
        assert!(matches!(all.open(terms(LONG, LONG)), Err(Full::Now)));
        assert!(all.close(&first));
        assert!(!all.close(&first));
        all.open(terms(LONG, LONG)).unwrap();
        assert_eq!((all.counts().open, all.counts().bytes), (2, 2 * each));
    }
    assert!(matches!(sessions(9, each - 1).open(terms(LONG, LONG)), Err(Full::Ever)));
}

#[test]
fn they_end_with_their_lease_and_with_their_life() {
    for (lease, life) in [(Duration::ZERO, LONG), (LONG, Duration::ZERO)] {
        let all = sessions(9, 1 << 40);
        let (id, left) = all.open(terms(lease, life)).unwrap();
        assert_eq!(left, Duration::ZERO);
        assert_eq!(all.renew(&id), Err(Gone::Absent));
        all.open(terms(lease, life)).unwrap();
        all.sweep();
        let counts = all.counts();
        assert_eq!((counts.open, counts.bytes, counts.expired), (0, 0, 2));
    }
}

#[test]
fn one_step_at_a_time_and_the_lease_waits_for_it() {
    let all = sessions(9, 1 << 40);
    let (id, _) = all.open(terms(LONG, LONG)).unwrap();
    let cancel = || Arc::new(Cancel::new().unwrap());
    let step = all.begin(&id, &cancel()).unwrap();
    assert!(matches!(all.begin(&id, &cancel()), Err(Gone::Busy)));
    assert!(matches!(all.edit(&id, |_| Ok(())), Err(Gone::Busy)));
    let mut left = Tree::default();
    left.write("x", b"1".to_vec(), None).unwrap();
    step.keep(Some(left.clone())).unwrap();
    assert_eq!(*all.tree(&id).unwrap(), left);
    // What is dropped or keeps nothing leaves all as it was.
    drop(all.begin(&id, &cancel()).unwrap());
    all.begin(&id, &cancel()).unwrap().keep(None).unwrap();
    assert_eq!(*all.tree(&id).unwrap(), left);
    let step = all.begin(&id, &cancel()).unwrap();
    assert!(all.close(&id));
    assert_eq!(step.keep(None), Err(Gone::Absent));
}

#[test]
fn an_edit_is_whole_or_not_at_all() {
    let all = sessions(9, 1 << 40);
    let (id, _) = all.open(terms(LONG, LONG)).unwrap();
    let write = |path: &'static str, length: usize| {
        all.edit(&id, move |tree| {
            tree.write("first", Vec::new(), None)?;
            tree.write(path, vec![0; length], None)
        })
    };
    assert!(write("../out", 1).unwrap().is_err());
    assert!(write("large", 2 << 20).unwrap().is_err());
    assert!(all.tree(&id).unwrap().is_empty());
    assert_eq!(write("right", 1).unwrap().unwrap().len(), 2);
}
