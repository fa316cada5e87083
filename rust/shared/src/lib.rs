//! The trajectory store for several processes of one machine.
//!
//! # Design
//!
//! One process has the store open and serves it on a Unix socket, a thread a connection. The socket
//! carries frames of 64 bytes. Arguments and answers lie in shared memory that the client makes and
//! the server maps: token data never goes through the socket, and the memory is the client's, so it
//! goes with it.
//!
//! A request's data is copied once by the server before it is looked at: what it checks cannot
//! change between the check and the log, whatever the client does. An answer is written once into
//! the client's memory; a batch is used there in place.
//!
//! ```
//! use std::sync::Arc;
//! use k15_core::store::{Options, PromptData};
//! use k15_shared::{Calls, Client, LocalStore, Server};
//!
//! let path = std::env::temp_dir().join(format!("k15-shared-{}.sock", std::process::id()));
//! let store = Arc::new(LocalStore::open(&Options::default())?);
//! let mut server = Server::start(Arc::clone(&store), &path)?;
//!
//! let client = Client::open(&path, || false)?; // usually in another process
//! let prompt =
//!     PromptData { prompt_id: 7, tokens: &[1, 2], answer: "4", tags: vec![], difficulty: None };
//! let ids = client.with(|store| store.add_group(&prompt, 2, 0))?;
//! assert_eq!(ids, [0, 1]);
//! assert_eq!(store.with(|store| store.trajectory(1).map_err(Into::into))?.prompt_tokens, [1, 2]);
//! server.close();
//! # std::fs::remove_file(path.with_extension("sock.lock")).ok();
//! # Ok::<(), k15_shared::Error>(())
//! ```

mod batch;
mod calls;
mod client;
mod connection;
mod dispatch;
mod error;
mod frame;
mod local;
mod peer;
mod remote;
mod server;
mod session;
mod socket;
mod wire;
mod words;

pub use batch::{ARRAYS, Place, SharedBatch};
pub use calls::{Calls, GroupView};
pub use client::Client;
pub use connection::Connection;
pub use error::{Error, Kind, Result};
pub use local::LocalStore;
pub use server::Server;
