//! A connection whose other end must take what it is sent.
//!
//! A client that asks and then reads nothing would otherwise hold its connection, and its answer's
//! memory, for as long as it likes.

use std::future::Future;
use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// See the module.
pub struct Taken<S> {
    stream: S,
    within: Duration,
    /// Runs while nothing can be sent.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S: Unpin> Taken<S> {
    /// Writing to it fails once nothing was taken for so long.
    pub fn new(stream: S, within: Duration) -> Self {
        Self { stream, within, timer: None }
    }

    fn write<T>(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<Result<T>>,
    ) -> Poll<Result<T>> {
        let this = &mut *self;
        let written = write(Pin::new(&mut this.stream), context);
        if written.is_ready() {
            this.timer = None;
            return written;
        }
        let within = this.within;
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep(within)));
        timer.as_mut().poll(context).map(|()| Err(Error::from(ErrorKind::TimedOut)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Taken<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Taken<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize>> {
        self.write(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        self.write(context, |stream, context| stream.poll_write_vectored(context, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.write(context, |stream, context| stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<()>> {
        self.write(context, |stream, context| stream.poll_shutdown(context))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[test]
    fn who_takes_nothing_is_given_up_and_who_takes_slowly_is_not() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, mut theirs) = duplex(4);
            let mut ours = Taken::new(ours, Duration::from_millis(20));
            let error = ours.write_all(b"longer than four").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::TimedOut);
            theirs.read_exact(&mut [0; 4]).await.unwrap();

            let (ours, mut theirs) = duplex(1);
            let mut ours = Taken::new(ours, Duration::from_secs(60));
            let send = async { ours.write_all(b"slowly").await };
            let take = async {
                let mut text = [0; 6];
                theirs.read_exact(&mut text).await.map(|_| text)
            };
            let (sent, taken) = tokio::join!(send, take);
            assert!(sent.is_ok());
            assert_eq!(&taken.unwrap(), b"slowly");
        });
    }
}
