//! The requests of connections of HTTP/2. hyper begins each as a task of its own. One that comes alone is first asked where it came in:
//! most are answered at once, and need neither a task nor the other thread that might take it.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::rt::Executor;
use smallvec::SmallVec;
use tokio::sync::{mpsc, watch};

use super::server::closed;

type Request = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    /// What the connection has begun that this thread polls.
    static BEGUN: RefCell<SmallVec<[Request; 1]>> = const { RefCell::new(SmallVec::new_const()) };
}

/// Runs the requests of the server's connections, and knows when the last has ended: that drops the sender. In one place, because each
/// task has a share of it.
#[derive(Clone, Debug)]
pub(super) struct Streams(Arc<(watch::Receiver<bool>, mpsc::Sender<()>)>);

impl Streams {
    /// `cut` ends those that are under way.
    pub(super) fn new(cut: watch::Receiver<bool>, running: mpsc::Sender<()>) -> Self {
        Self(Arc::new((cut, running)))
    }

    /// Polls a connection whose executor this is, and what it begins.
    pub(super) fn poll<C: Future>(&self, connection: Pin<&mut C>, cx: &mut Context<'_>) -> Poll<C::Output> {
        let polled = connection.poll(cx);
        let mut begun = BEGUN.take();
        if let [only] = &mut begun[..] {
            // A panic is the request's own, whose stream is reset when it is dropped.
            let asked = catch_unwind(AssertUnwindSafe(|| only.as_mut().poll(cx)));
            if !matches!(asked, Ok(Poll::Pending)) {
                return polled;
            }
        }
        for request in begun {
            self.spawn(request);
        }
        polled
    }

    fn spawn(&self, request: Request) {
        let streams = Arc::clone(&self.0);
        tokio::spawn(async move {
            let cut = async { closed(&mut streams.0.clone()).await };
            tokio::select! {
                biased;
                () = request => {}
                () = cut => {}
            }
        });
    }
}

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, request: F) {
        let request = Box::pin(async { _ = request.await });
        BEGUN.with_borrow_mut(|begun| begun.push(request));
    }
}

#[cfg(test)]
mod tests {
    use std::future::{poll_fn, ready};
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    use std::thread::{self, ThreadId};
    use std::time::Duration;

    use super::*;

    fn streams() -> (Streams, watch::Sender<bool>, mpsc::Receiver<()>) {
        let ((cut, cutting), (running, ended)) = (watch::channel(false), mpsc::channel(1));
        (Streams::new(cutting, running), cut, ended)
    }

    /// A connection that begins `count` requests when it is polled, and ends with that.
    async fn connect<F>(streams: &Streams, requests: Vec<F>)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let mut connection = pin!(async { requests.into_iter().for_each(|request| streams.execute(request)) });
        poll_fn(|cx| streams.poll(connection.as_mut(), cx)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_request_that_comes_alone_is_answered_where_it_came_in() {
        let (streams, ..) = streams();
        let answered: Arc<std::sync::Mutex<Vec<ThreadId>>> = Arc::default();
        let note = Arc::clone(&answered);
        tokio::spawn(async move {
            connect(&streams, vec![async move { note.lock().unwrap().push(thread::current().id()) }]).await;
            assert_eq!(*answered.lock().unwrap(), [thread::current().id()], "no task was needed");
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn requests_that_wait_or_come_together_end_as_tasks() {
        let (streams, _cut, mut ended) = streams();
        let answered = Arc::new(AtomicUsize::new(0));
        for count in [1, 3] {
            let requests = (0..count).map(|_| {
                let answered = Arc::clone(&answered);
                async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    answered.fetch_add(1, Relaxed);
                }
            });
            connect(&streams, requests.collect()).await;
        }
        assert_eq!(answered.load(Relaxed), 0);
        drop(streams);
        assert_eq!(ended.recv().await, None, "with the last request goes the last sender");
        assert_eq!(answered.load(Relaxed), 4);
    }

    #[tokio::test]
    async fn a_request_that_waits_is_cut() {
        let (streams, cut, mut ended) = streams();
        connect(&streams, vec![std::future::pending::<()>()]).await;
        drop(streams);
        cut.send(true).unwrap();
        assert_eq!(ended.recv().await, None);
    }

    #[tokio::test]
    async fn a_panic_is_the_requests_own() {
        let (streams, ..) = streams();
        connect(&streams, vec![async { panic!("of a request") }]).await;
        connect(&streams, vec![ready(())]).await;
    }
}
