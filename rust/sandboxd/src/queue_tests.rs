//! The queue's promises.

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use k15_sandbox::Cancel;
use tokio::sync::oneshot;

use crate::queue::{Call, Queue, Refused};

fn cancel() -> Arc<Cancel> {
    Arc::new(Cancel::new().unwrap())
}

/// Keeps one thread busy until the sender is dropped; returns when it is busy.
async fn occupy(queue: &Arc<Queue>) -> mpsc::Sender<()> {
    let (hold, held) = mpsc::channel::<()>();
    let (begin, begun) = oneshot::channel();
    let queue = Arc::clone(queue);
    tokio::spawn(async move {
        let work = move || {
            let _ = begin.send(());
            let _ = held.recv();
        };
        queue.run("busy", cancel(), work).await
    });
    begun.await.unwrap();
    hold
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn clients_take_turns() {
    let queue = Arc::new(Queue::new(1, 100, Duration::from_secs(3600)).unwrap());
    let hold = occupy(&queue).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut runs = Vec::new();
    for (place, client) in ["many", "many", "many", "one"].into_iter().enumerate() {
        let (order, queue_) = (Arc::clone(&order), Arc::clone(&queue));
        runs.push(tokio::spawn(async move {
            queue_.run(client, cancel(), move || order.lock().unwrap().push(client)).await
        }));
        until(|| queue.load().0 == place + 1).await;
    }
    drop(hold);
    for run in runs {
        run.await.unwrap().unwrap();
    }
    assert_eq!(*order.lock().unwrap(), ["many", "one", "many", "many"]);
}

#[tokio::test]
async fn who_cannot_start_in_time_is_told() {
    let queue = Arc::new(Queue::new(1, 100, Duration::from_millis(50)).unwrap());
    let hold = occupy(&queue).await;
    // Nothing has ended yet, and what runs has just begun: it may wait, and does in vain.
    let first = queue.run("a", cancel(), || panic!("it must not start")).await;
    assert!(matches!(first, Err(Refused::Busy(_))));
    assert_eq!(queue.load(), (0, 1));
    // By now the run under way has taken longer than anybody is held.
    let second = queue.run("a", cancel(), || ()).await;
    assert!(matches!(second, Err(Refused::Busy(_))));
    assert_eq!(queue.load(), (0, 1));
    drop(hold);
    until(|| queue.load() == (0, 0)).await;
    assert_eq!(queue.run("a", cancel(), || 7).await.unwrap().result, 7);
}

#[tokio::test]
async fn who_must_start_first_is_first_in_a_line() {
    let queue = Arc::new(Queue::new(1, 100, Duration::from_secs(3600)).unwrap());
    let hold = occupy(&queue).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut runs = Vec::new();
    for (place, seconds) in [3000, 1000, 2000].into_iter().enumerate() {
        let (order, queue_) = (Arc::clone(&order), Arc::clone(&queue));
        runs.push(tokio::spawn(async move {
            let within = Duration::from_secs(seconds);
            let call = Call { client: "a", within, known_by: None };
            queue_.run_call(call, cancel(), move || order.lock().unwrap().push(seconds)).await
        }));
        until(|| queue.load().0 == place + 1).await;
    }
    drop(hold);
    for run in runs {
        run.await.unwrap().unwrap();
    }
    assert_eq!(*order.lock().unwrap(), [1000, 2000, 3000]);
}

#[tokio::test]
async fn who_comes_again_goes_before_those_who_came_meanwhile() {
    let queue = Arc::new(Queue::new(1, 2, Duration::from_secs(3600)).unwrap());
    let hold = occupy(&queue).await;
    let order = Arc::new(Mutex::new(Vec::new()));
    let ask = |name: &'static str, known_by: u64| {
        let (order, queue) = (Arc::clone(&order), Arc::clone(&queue));
        tokio::spawn(async move {
            let within = Duration::from_secs(3600);
            let call = Call { client: "a", within, known_by: Some(known_by) };
            queue.run_call(call, cancel(), move || order.lock().unwrap().push(name)).await
        })
    };
    let first = ask("first", 1);
    until(|| queue.load().0 == 1).await;
    let second = ask("second", 2);
    until(|| queue.load().0 == 2).await;
    assert!(matches!(ask("third", 3).await.unwrap(), Err(Refused::Busy(_))));
    second.abort();
    until(|| queue.load().0 == 1).await;
    let fourth = ask("fourth", 4);
    until(|| queue.load().0 == 2).await;
    first.abort();
    until(|| queue.load().0 == 1).await;
    let third = ask("third", 3);
    until(|| queue.load().0 == 2).await;
    drop(hold);
    for run in [fourth, third] {
        run.await.unwrap().unwrap();
    }
    assert_eq!(*order.lock().unwrap(), ["third", "fourth"]);
}

#[tokio::test]
async fn there_is_an_end_to_the_queue() {
    let queue = Arc::new(Queue::new(1, 2, Duration::from_secs(3600)).unwrap());
    let hold = occupy(&queue).await;
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let queue = Arc::clone(&queue);
            tokio::spawn(async move { queue.run("a", cancel(), || ()).await })
        })
        .collect();
    until(|| queue.load().0 == 2).await;
    assert!(matches!(queue.run("b", cancel(), || ()).await, Err(Refused::Busy(_))));
    drop(hold);
    for each in waiting {
        each.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn who_goes_away_takes_his_run_along() {
    let queue = Arc::new(Queue::new(1, 100, Duration::from_secs(3600)).unwrap());
    let hold = occupy(&queue).await;
    let (waiting, cancelled) = (Arc::clone(&queue), cancel());
    let waits = tokio::spawn(async move { waiting.run("a", cancel(), || ()).await });
    until(|| queue.load().0 == 1).await;
    waits.abort();
    until(|| queue.load().0 == 0).await;
    drop(hold);
    until(|| queue.load() == (0, 0)).await;
    let (running, end) = (Arc::clone(&queue), Arc::clone(&cancelled));
    let runs = tokio::spawn(async move {
        let seen = Arc::clone(&end);
        let work = move || {
            while !seen.is_cancelled() {
                thread::yield_now();
            }
        };
        running.run("a", end, work).await
    });
    until(|| queue.load().1 == 1).await;
    runs.abort();
    until(|| queue.load() == (0, 0)).await;
    assert!(cancelled.is_cancelled());
}

#[tokio::test]
async fn a_thread_outlives_work_that_panics() {
    let queue = Queue::new(1, 100, Duration::from_secs(3600)).unwrap();
    assert_eq!(
        queue.run("a", cancel(), || panic!("on purpose")).await.err(),
        Some(Refused::Broken)
    );
    assert_eq!(queue.run("a", cancel(), || 1).await.unwrap().result, 1);
}

#[tokio::test]
async fn closing_refuses_who_waits_and_awaits_who_runs() {
    let queue = Arc::new(Queue::new(1, 100, Duration::from_secs(3600)).unwrap());
    let hold = occupy(&queue).await;
    let waiting = Arc::clone(&queue);
    let waits = tokio::spawn(async move { waiting.run("a", cancel(), || ()).await });
    until(|| queue.load().0 == 1).await;
    queue.close();
    assert_eq!(waits.await.unwrap().err(), Some(Refused::Stopping));
    assert_eq!(queue.run("a", cancel(), || ()).await.err(), Some(Refused::Stopping));
    assert_eq!(queue.load(), (0, 1));
    drop(hold);
    queue.join();
    assert_eq!(queue.load(), (0, 0));
}
