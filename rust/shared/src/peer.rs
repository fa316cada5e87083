//! One connection, at the server: frames in, frames out.

use std::os::fd::OwnedFd;

use k15_core::pack::Packed;
use k15_core::store::SharedMap;
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::dispatch::{Answer, Client, run};
use crate::error::{Error, Result};
use crate::frame::{Fault, Frame, MOST_WORDS, Op, SIZE, SLOTS, Status};
use crate::local::LocalStore;
use crate::session::Sessions;
use crate::socket;
use crate::words::{Reader, Writer, copy, count};

/// A request's words that are kept in memory between requests.
const KEPT_WORDS: usize = 1 << 21;

/// What the server knows of a connection.
#[derive(Default)]
struct Peer {
    blocks: [Option<SharedMap>; SLOTS],
    request: Vec<u64>,
    packed: Packed,
    /// An answer that did not fit.
    pending: Option<Answer>,
}

/// Serve a connection until its other end is closed, or sends what is not the protocol.
pub fn serve(socket: &OwnedFd, store: &LocalStore, sessions: &Sessions) {
    match socket::peer_user(socket) {
        Ok(user) if user == socket::own_user() => {}
        Ok(_) => {
            let own = u64::from(socket::own_user());
            let extra = [own, 0];
            return answer(socket, &Frame { extra, ..status(Status::OtherUser) }).unwrap_or(());
        }
        Err(_) => return,
    }
    let hello = match next(socket) {
        Ok(Some((hello, _))) if hello.code == Op::Hello as u32 => hello,
        Ok(None) => return,
        Ok(_) | Err(Fault::Malformed(_)) => {
            return answer(socket, &status(Status::Malformed)).unwrap_or(());
        }
        Err(Fault::Version(_)) => {
            return answer(socket, &status(Status::OtherVersion)).unwrap_or(());
        }
    };
    let session = sessions.join(hello.extra[0]);
    let extra = [session, u64::from(store.blocks())];
    let welcome = Frame { call: hello.call, extra, ..status(Status::Done) };
    if answer(socket, &welcome).is_ok() {
        let client = Client { store, sessions, session };
        if Peer::default().serve(socket, &client).is_err() {
            answer(socket, &status(Status::Malformed)).ok();
        }
    }
    sessions.leave(session, store);
}

fn status(status: Status) -> Frame {
    Frame { code: status as u32, ..Frame::default() }
}

/// The next frame with its memory file; none if the other end is closed.
fn next(socket: &OwnedFd) -> Result<Option<(Frame, Option<OwnedFd>)>, Fault> {
    let mut bytes = [0; SIZE + 1];
    let (length, mut files) = loop {
        match socket::receive(socket, &mut bytes) {
            Ok((0, _)) => return Ok(None),
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            Err(_) => return Ok(None),
        }
    };
    if files.len() > 1 {
        return Err(Fault::Malformed("more than one file"));
    }
    Ok(Some((Frame::decode(&bytes[..length])?, files.pop())))
}

/// Send an answer. A client that does not take its answers is let go, not waited for.
fn answer(socket: &OwnedFd, frame: &Frame) -> Result<(), Errno> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::send(socket, &frame.encode(), flags).map(|_| ())
}

impl Peer {
    fn serve(&mut self, socket: &OwnedFd, client: &Client<'_>) -> Result<()> {
        loop {
            let (frame, file) = match next(socket) {
                Ok(Some(request)) => request,
                Ok(None) => return Ok(()),
                Err(_) => return Err(Error::Malformed("not a frame")),
            };
            let reply = self.reply(&frame, file, client)?;
            if answer(socket, &reply).is_err() {
                return Ok(());
            }
        }
    }

    fn reply(
        &mut self,
        frame: &Frame,
        file: Option<OwnedFd>,
        client: &Client<'_>,
    ) -> Result<Frame> {
        let place = usize::try_from(frame.slot).ok().filter(|&place| place < SLOTS);
        let place = place.ok_or(Error::Malformed("a block that cannot be"))?;
        if let Some(file) = file {
            let map = SharedMap::open(&file);
            self.blocks[place] = Some(map.map_err(|_| Error::Malformed("memory that can fault"))?);
        }
        let Self { blocks, request, packed, pending } = self;
        let block = blocks[place].as_ref().ok_or(Error::Malformed("a block without memory"))?;
        let op = Op::from_code(frame.code)?;
        let done = if op == Op::Fetch {
            pending.take().ok_or(Error::Malformed("nothing to fetch"))?
        } else {
            *pending = None;
            let words = usize::try_from(frame.words.min(MOST_WORDS + 1)).unwrap_or(usize::MAX);
            let words = block.words().get(..words).filter(|_| frame.words <= MOST_WORDS);
            // A copy: what is checked must not change before it is stored.
            copy(words.ok_or(Error::Malformed("more words than the block has"))?, request);
            run(op, Reader(request), client, packed)?
        };
        request.shrink_to(KEPT_WORDS);
        let words = count(&|sink| done.write(packed, sink));
        let how = match &done {
            _ if words > block.words().len() => Status::TooSmall,
            Answer::Failed(_) => Status::Failed,
            _ => Status::Done,
        };
        if how == Status::TooSmall {
            *pending = Some(done);
        } else {
            done.write(packed, &mut Writer(block.words()));
        }
        Ok(Frame { call: frame.call, slot: frame.slot, words: words as u64, ..status(how) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use k15_core::store::{Options, Order, PromptData};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::calls::Calls;
    use crate::words::Sink;

    struct House {
        store: LocalStore,
        sessions: Sessions,
    }

    impl House {
        fn new() -> Self {
            let options = Options { capacity_bytes: 8 << 20, ..Options::default() };
            let house =
                Self { store: LocalStore::open(&options).unwrap(), sessions: Sessions::new() };
            let tags = vec!["t"];
            let prompt = PromptData {
                prompt_id: 1,
                tokens: &[1, 2],
                answer: "a",
                tags,
                difficulty: Some(1.0),
            };
            house.store.with(|store| Calls::add_group(store, &prompt, 3, 0)).unwrap();
            house
        }
    }

    fn ask(
        peer: &mut Peer,
        house: &House,
        frame: &Frame,
        words: &[u64],
        size: usize,
    ) -> Result<(Frame, Vec<u64>)> {
        let (file, memory) = SharedMap::create(size).unwrap();
        for (cell, word) in memory.words().iter().zip(words) {
            cell.store(*word, Ordering::Relaxed);
        }
        let session = house.sessions.join(0);
        let client = Client { store: &house.store, sessions: &house.sessions, session };
        let reply = peer.reply(frame, Some(file), &client);
        house.sessions.leave(session, &house.store);
        let mut answer = Vec::new();
        copy(memory.words(), &mut answer);
        reply.map(|reply| (reply, answer))
    }

    fn written(write: &dyn Fn(&mut dyn Sink)) -> Vec<u64> {
        let cells: Vec<AtomicU64> = (0..count(write)).map(|_| AtomicU64::default()).collect();
        write(&mut Writer(&cells));
        cells.into_iter().map(AtomicU64::into_inner).collect()
    }

    #[test]
    fn an_answer_that_does_not_fit_is_fetched() {
        let (house, mut peer) = (House::new(), Peer::default());
        let frame = Frame { code: Op::Trajectory as u32, words: 1, ..Frame::default() };
        let (reply, _) = ask(&mut peer, &house, &frame, &[0], 2).unwrap();
        assert_eq!(reply.code, Status::TooSmall as u32);
        let fetch = Frame { code: Op::Fetch as u32, ..Frame::default() };
        let size = usize::try_from(reply.words).unwrap();
        let (reply, answer) = ask(&mut peer, &house, &fetch, &[], size).unwrap();
        assert_eq!(reply.code, Status::Done as u32);
        assert_eq!(crate::wire::trajectory(&mut Reader(&answer)).unwrap().prompt_tokens, [1, 2]);
        assert!(ask(&mut peer, &house, &fetch, &[], size).is_err(), "once only");
    }

    #[test]
    fn leases_end_with_the_last_connection_of_their_session() {
        let house = House::new();
        let lease = |n| house.store.with(|s| Calls::lease(s, None, n, 0.0, 1e9, Order::Oldest));
        let session = house.sessions.join(0);
        assert_eq!(house.sessions.join(session), session);
        let mine = lease(2).unwrap();
        house.sessions.leased(session, &mine);
        assert_eq!(lease(9).unwrap().len(), 1, "not of the session: nobody gives it back");
        house.sessions.leave(session, &house.store);
        assert!(lease(9).unwrap().is_empty());
        house.sessions.leave(session, &house.store);
        assert_eq!(lease(9).unwrap().len(), 2);
        assert_ne!(house.sessions.join(session), session);
    }

    #[test]
    fn nonsense_is_refused() {
        let (house, mut peer) = (House::new(), Peer::default());
        let unknown = |frame: Frame| ask(&mut Peer::default(), &house, &frame, &[], 8).is_err();
        assert!(unknown(Frame { slot: SLOTS as u64, code: 3, ..Frame::default() }));
        assert!(unknown(Frame { words: 9, code: 3, ..Frame::default() }));
        assert!(unknown(Frame { words: u64::MAX, code: 3, ..Frame::default() }));
        assert!(unknown(Frame { code: 999, ..Frame::default() }));
        assert!(unknown(Frame { code: Op::Release as u32, words: 1, ..Frame::default() }));
        let (code, words) = (Op::AddGroup as u32, 9);
        let many = [u64::from(u32::MAX), 0, 0, 2, 0x0000_0002_0000_0001, 0, 0, 0, 0];
        let (reply, _) = ask(
            &mut Peer::default(),
            &house,
            &Frame { code, words, ..Frame::default() },
            &many,
            99,
        )
        .unwrap();
        assert_eq!(reply.code, Status::Failed as u32, "a group that no memory holds");
        let session = house.sessions.join(0);
        let client = Client { store: &house.store, sessions: &house.sessions, session };
        let frame = Frame { code: Op::Stats as u32, ..Frame::default() };
        assert!(peer.reply(&frame, None, &client).is_err(), "no memory");
        let ordinary = tempfile::tempfile().unwrap();
        ordinary.set_len(4096).unwrap();
        assert!(peer.reply(&frame, Some(ordinary.into()), &client).is_err(), "it could shrink");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever the words are, the server answers or refuses, and the store goes on.
        #[test]
        fn random_requests_never_panic(
            requests in vec((0u32..28, vec(prop_oneof![0u64..6, any::<u64>()], 0..40), 1usize..200), 1..6),
        ) {
            let (house, mut peer) = (House::new(), Peer::default());
            for (code, words, size) in requests {
                let frame = Frame { code, words: words.len() as u64, ..Frame::default() };
                if let Ok((reply, _)) = ask(&mut peer, &house, &frame, &words, size) {
                    prop_assert!(Status::from_code(reply.code).is_ok());
                }
            }
            house.store.with(Calls::stats).unwrap();
        }

        /// The same for requests that are nearly right: a word of a good append is another one.
        #[test]
        fn a_changed_word_never_panics(at in 0usize..14, word in prop_oneof![0u64..9, any::<u64>()]) {
            let (house, mut peer) = (House::new(), Peer::default());
            let lease = house.store.with(|s| Calls::lease(s, None, 1, 0.0, 9.0, Order::Oldest)).unwrap();
            let mut words = written(&|sink| {
                for word in [0, 1, lease[0].trajectory_id, lease[0].epoch, 0] {
                    sink.word(word);
                }
                sink.array(&[5i32, 6, 7]);
                sink.array(&[-0.5f32, -1.0, -1.5]);
                sink.word(1);
                sink.array(&[1u8, 0, 1]);
            });
            prop_assert_eq!(words.len(), 14);
            words[at] = word;
            let code = Op::Append as u32;
            let frame = Frame { code, words: words.len() as u64, ..Frame::default() };
            ask(&mut peer, &house, &frame, &words, 64).ok();
            house.store.with(|store| Calls::trajectory(store, 0)).unwrap();
        }
    }
}
