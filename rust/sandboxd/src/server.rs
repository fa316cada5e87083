//! Connections: accepted, held to their limits, and let end when the daemon stops.

use std::convert::Infallible;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tower_service::Service;

use crate::app::{App, Error};
use crate::config::Address;
use crate::taken::Taken;
use crate::{http, log};

/// Most bytes of a request's head.
const HEAD_BYTES: usize = 64 << 10;
/// Most headers of a request.
const HEADERS: usize = 100;

/// How often sessions are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// Who is at the other end, as far as the connection tells.
#[derive(Clone, Debug)]
pub struct Peer(pub String);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
///
/// [`Error::System`] if the address cannot be had.
pub fn serve(app: App) -> Result<(), Error> {
    let system = |step: &str| {
        let step = step.to_owned();
        move |source| Error::System { step, source }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(system("start threads"))?;
    let app = Arc::new(app);
    runtime.block_on(async {
        let listener = Listener::open(&app.config.address()?)
            .await
            .map_err(system(&format!("listen on {}", app.config.listen)))?;
        let mut terminate = signal(SignalKind::terminate()).map_err(system("wait for signals"))?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(system("wait for signals"))?;
        log::write(
            "listening",
            json!({"address": listener.address(), "slots": app.config.sandbox.slots,
                   "runner": app.sandbox.pool().runner(), "pid": std::process::id()}),
        );
        let sweeper = tokio::spawn(sweep(Arc::clone(&app)));
        let connections = Connections::new(Arc::clone(&app));
        tokio::select! {
            () = connections.accept(&listener) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        log::write("stopping", json!({}));
        drop(listener);
        sweeper.abort();
        app.queue.close();
        connections.end(Duration::from_secs_f64(app.config.http.grace_seconds)).await;
        Ok::<(), Error>(())
    })?;
    // What is still running belongs to connections that are gone: dropping them has cancelled it.
    runtime.shutdown_timeout(Duration::from_secs(1));
    app.queue.join();
    app.sandbox.close();
    log::write("stopped", json!({}));
    Ok(())
}

/// Ends sessions whose time is over: nobody may come to ask for them.
async fn sweep(app: Arc<App>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        app.sessions.sweep();
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn open(address: &Address) -> std::io::Result<Self> {
        match address {
            Address::Tcp(address) => TcpListener::bind(address).await.map(Self::Tcp),
            Address::Unix(path) => {
                remove_stale(path)?;
                let listener = UnixListener::bind(path)?;
                // Whoever may write to it may run programs: its owner and group.
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
                Ok(Self::Unix(listener))
            }
        }
    }

    fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => {
                listener.local_addr().map_or_else(|_| String::new(), |address| address.to_string())
            }
            Self::Unix(listener) => {
                let path = listener.local_addr().ok();
                let path = path.and_then(|address| address.as_pathname().map(Path::to_owned));
                format!("unix:{}", path.unwrap_or_default().display())
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(path) = self.address().strip_prefix("unix:") {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes a socket that a dead daemon has left: nobody answers on it.
fn remove_stale(path: &Path) -> std::io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(std::io::ErrorKind::AddrInUse.into());
            }
            std::fs::remove_file(path)
        }
        Ok(_) => Err(std::io::ErrorKind::AlreadyExists.into()),
        Err(_) => Ok(()),
    }
}

struct Connections {
    router: Router,
    room: Arc<Semaphore>,
    read_time: Duration,
    write_time: Duration,
    graceful: GracefulShutdown,
}

impl Connections {
    fn new(app: Arc<App>) -> Self {
        let room = Arc::new(Semaphore::new(app.config.http.connections));
        let read_time = Duration::from_secs_f64(app.config.http.read_seconds);
        let write_time = Duration::from_secs_f64(app.config.http.write_seconds);
        let graceful = GracefulShutdown::new();
        Self { router: http::router(app), room, read_time, write_time, graceful }
    }

    async fn accept(&self, listener: &Listener) {
        loop {
            let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else { return };
            let accepted = match listener {
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, address)| {
                    // An answer is one small write: it must not wait for more.
                    let _ = stream.set_nodelay(true);
                    self.start(stream, address.ip().to_string(), permit);
                }),
                Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                    self.start(stream, "unix".into(), permit);
                }),
            };
            if let Err(error) = accepted {
                // Too many descriptors, most likely: some will be closed soon.
                log::write("accept", json!({"error": error.to_string()}));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn start<S>(&self, stream: S, peer: String, permit: tokio::sync::OwnedSemaphorePermit)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let router = self.router.clone();
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(Peer(peer.clone()));
            let mut router = router.clone();
            async move {
                Ok::<_, Infallible>(
                    router
                        .call(request.map(Body::new))
                        .await
                        .unwrap_or_else(|never| match never {}),
                )
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.read_time)
            .max_buf_size(HEAD_BYTES)
            .max_headers(HEADERS)
            .serve_connection(TokioIo::new(Taken::new(stream, self.write_time)), service);
        let connection = self.graceful.watch(connection);
        tokio::spawn(async move {
            // A connection that breaks is its client's matter.
            let _ = connection.await;
            drop(permit);
        });
    }

    /// Lets requests under way end, for `grace` at most.
    async fn end(self, grace: Duration) {
        let _ = tokio::time::timeout(grace, self.graceful.shutdown()).await;
    }
}
