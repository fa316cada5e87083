//! One connection, at the client: the calls of the store as requests.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k15_core::store::SharedMap;
use rustix::io::Errno;

use crate::error::{Error, Result, system};
use crate::frame::{Fault, Frame, MOST_WORDS, Op, SIZE, SLOTS, Status, VERSION};
use crate::socket;
use crate::wire;
use crate::words::{Reader, Sink, Writer, copy, count};

/// The smallest block of memory.
const LEAST_WORDS: usize = 1 << 13;
/// How long to wait for an answer before it is asked whether to go on waiting.
const PATIENCE: Duration = Duration::from_millis(100);

/// What all connections of a client share.
pub struct Common {
    pub path: std::path::PathBuf,
    /// The session at the server; 0 before the first connection.
    pub session: AtomicU64,
    /// Whether to stop waiting for an answer.
    pub interrupted: fn() -> bool,
}

/// Memory that this side made, for requests and their answers.
struct Block {
    file: OwnedFd,
    map: Arc<SharedMap>,
    /// Whether the server has it.
    is_known: bool,
}

/// A connection. Used by one call at a time.
pub struct Connection {
    common: Arc<Common>,
    socket: OwnedFd,
    blocks: [Option<Block>; SLOTS],
    /// The number of the last request.
    call: u64,
    /// Whether its answer is still to come.
    is_owed: bool,
    is_broken: bool,
    waits: bool,
    answer: Vec<u64>,
}

impl Connection {
    /// Connect, and see that both sides fit.
    pub fn open(common: Arc<Common>) -> Result<Self> {
        let (socket, waits) = greet(&common)?;
        let (blocks, answer) = (Default::default(), Vec::new());
        let (call, is_owed, is_broken) = (0, false, false);
        Ok(Self { common, socket, blocks, call, is_owed, is_broken, waits, answer })
    }

    /// Whether calls that find the store full are to be made again until they do not.
    pub fn waits(&self) -> bool {
        self.waits
    }

    /// Whether it can be used again.
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// Make a call whose arguments `write` writes, and read its answer.
    pub fn call(&mut self, op: Op, write: &dyn Fn(&mut dyn Sink)) -> Result<Reader<'_>> {
        let words = self.exchange(op, 0, write)?;
        let block = self.blocks[0].as_ref().map_or(&[][..], |block| block.map.words());
        copy(&block[..words], &mut self.answer);
        Ok(Reader(&self.answer))
    }

    /// Make a call whose answer stays where it is: the memory, and how many words of it.
    pub fn call_in_place(
        &mut self,
        op: Op,
        write: &dyn Fn(&mut dyn Sink),
    ) -> Result<(Arc<SharedMap>, usize)> {
        let is_free = |block: &Option<Block>| {
            block.as_ref().is_none_or(|block| Arc::strong_count(&block.map) == 1)
        };
        let slot = (1..SLOTS).find(|&slot| is_free(&self.blocks[slot])).unwrap_or(1);
        if !is_free(&self.blocks[slot]) {
            // Whoever looks at it keeps it; the server is given another one in its place.
            self.blocks[slot] = None;
        }
        let words = self.exchange(op, slot, write)?;
        let block = self.blocks[slot].as_ref().ok_or(Error::Malformed("no memory"))?;
        Ok((Arc::clone(&block.map), words))
    }

    fn exchange(&mut self, op: Op, slot: usize, write: &dyn Fn(&mut dyn Sink)) -> Result<usize> {
        let done = self.try_exchange(op, slot, write);
        self.is_broken |= matches!(done, Err(Error::Disconnected(_) | Error::Malformed(_)));
        done
    }

    fn try_exchange(
        &mut self,
        op: Op,
        slot: usize,
        write: &dyn Fn(&mut dyn Sink),
    ) -> Result<usize> {
        if self.is_owed {
            // The answer to a call that was interrupted.
            self.wait()?;
        }
        let words = count(write);
        if words as u64 > MOST_WORDS {
            let most = format!("at most {} bytes in one call", 8 * MOST_WORDS);
            return Err(Error::invalid("arguments", &format!("{} bytes", 8 * words), &most));
        }
        let block = self.block(slot, words)?;
        write(&mut Writer(block.map.words()));
        let mut answer = self.ask(op, slot, words)?;
        let mut status = Status::from_code(answer.code)?;
        if status == Status::TooSmall {
            self.block(slot, length(answer.words)?)?;
            answer = self.ask(Op::Fetch, slot, 0)?;
            status = Status::from_code(answer.code)?;
        }
        let block = self.blocks[slot].as_ref().map_or(&[][..], |block| block.map.words());
        let words = length(answer.words)?;
        let written = block.get(..words).ok_or(Error::Malformed("an answer beyond its block"))?;
        match status {
            Status::Done => Ok(words),
            Status::Failed => {
                copy(written, &mut self.answer);
                Err(wire::error(&mut Reader(&self.answer))?)
            }
            _ => Err(Error::Malformed("the store's server could not read a request")),
        }
    }

    /// A block of at least so many words.
    fn block(&mut self, slot: usize, words: usize) -> Result<&Block> {
        let there = &mut self.blocks[slot];
        if there.as_ref().is_none_or(|block| block.map.words().len() < words) {
            let words = words.max(LEAST_WORDS).next_power_of_two();
            let made = SharedMap::create(words);
            let (file, map) = made.map_err(system(&self.common.path, "make shared memory"))?;
            *there = Some(Block { file, map: Arc::new(map), is_known: false });
        }
        there.as_ref().ok_or(Error::Malformed("no memory"))
    }

    /// The server must be given every block again.
    fn forget(&mut self) {
        for block in self.blocks.iter_mut().flatten() {
            block.is_known = false;
        }
    }

    /// Send a request and wait for its answer.
    fn ask(&mut self, op: Op, slot: usize, words: usize) -> Result<Frame> {
        self.call += 1;
        let (slot_number, words) = (slot as u64, words as u64);
        let (code, call) = (op as u32, self.call);
        let frame = Frame { code, call, slot: slot_number, words, ..Frame::default() };
        if let Err(error) = self.send(&frame, slot) {
            // The server that was there has ended and has not seen the request: to another one it
            // is new. What only the old one had cannot be fetched any more.
            if op == Op::Fetch {
                return Err(self.lost(&error.to_string()));
            }
            let common = Arc::clone(&self.common);
            (self.socket, self.waits) = greet(&common)?;
            self.forget();
            self.send(&frame, slot).map_err(|error| self.lost(&error.to_string()))?;
        }
        self.is_owed = true;
        self.wait()
    }

    fn send(&mut self, frame: &Frame, slot: usize) -> std::io::Result<()> {
        let block = self.blocks[slot].as_mut();
        let file = block.as_ref().filter(|block| !block.is_known).map(|block| block.file.as_fd());
        socket::send(&self.socket, &frame.encode(), file)?;
        if let Some(block) = block {
            block.is_known = true;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<Frame> {
        let frame = receive(&self.common, &self.socket)?;
        self.is_owed = false;
        if frame.call != self.call {
            return Err(Error::Malformed("the store's server answered another call"));
        }
        Ok(frame)
    }

    fn lost(&self, why: &str) -> Error {
        lost(&self.common.path, why)
    }
}

fn length(words: u64) -> Result<usize> {
    usize::try_from(words).map_err(|_| Error::Malformed("a number is too large"))
}

fn lost(path: &Path, why: &str) -> Error {
    Error::Disconnected(format!(
        "{}: the store's server ended ({why}): whether the call was carried out is not known, \
         and what it had acknowledged before is kept. The next call connects again",
        path.display()
    ))
}

fn receive(common: &Common, socket: &OwnedFd) -> Result<Frame> {
    let mut bytes = [0; SIZE + 1];
    loop {
        match socket::receive(socket, &mut bytes) {
            Ok((0, _)) => return Err(lost(&common.path, "it closed the connection")),
            Ok((length, _)) => return read(common, &bytes[..length]),
            Err(Errno::AGAIN | Errno::INTR) => {
                if (common.interrupted)() {
                    return Err(Error::Interrupted);
                }
            }
            Err(error) => return Err(lost(&common.path, &error.to_string())),
        }
    }
}

fn read(common: &Common, bytes: &[u8]) -> Result<Frame> {
    Frame::decode(bytes).map_err(|fault| match fault {
        Fault::Version(theirs) => Error::Refused(format!(
            "{}: the store's server speaks version {theirs} of the protocol, this process version \
             {VERSION}: both must run the same k15core",
            common.path.display()
        )),
        Fault::Malformed(what) => Error::Malformed(what),
    })
}

/// Connect and exchange the first frames: the socket, and whether calls wait for room.
fn greet(common: &Common) -> Result<(OwnedFd, bool)> {
    let path = &common.path;
    let socket = socket::connect(path)?;
    let user = socket::peer_user(&socket).map_err(system(path, "ask who serves"))?;
    if user != socket::own_user() {
        return Err(other_user(path, u64::from(user)));
    }
    socket::set_patience(&socket, PATIENCE).map_err(system(path, "set a time-out"))?;
    let extra = [common.session.load(Ordering::Relaxed), 0];
    let hello = Frame { code: Op::Hello as u32, extra, ..Frame::default() };
    // One that is refused at once may be closed already: its answer says why.
    socket::send(&socket, &hello.encode(), None).ok();
    let welcome = receive(common, &socket).map_err(|error| match error {
        Error::Disconnected(_) => Error::Disconnected(format!(
            "{}: no store is served here: its server ended before it answered",
            path.display()
        )),
        other => other,
    })?;
    match Status::from_code(welcome.code)? {
        Status::Done => {
            common.session.store(welcome.extra[0], Ordering::Relaxed);
            Ok((socket, welcome.extra[1] != 0))
        }
        Status::OtherUser => Err(other_user(path, welcome.extra[0])),
        _ => Err(Error::Malformed("the store's server did not take the first frame")),
    }
}

fn other_user(path: &Path, user: u64) -> Error {
    Error::Refused(format!(
        "{}: this store is served by user {user} and this process is user {}'s: only processes of \
         one user share a store",
        path.display(),
        socket::own_user()
    ))
}
