//! Mapped memory: a file's, or anonymous.
//!
//! # Design
//!
//! A log file and an anonymous map are the same thing to the code above: bytes. Files are allocated
//! on disk before they are mapped, so that a full disk is an error of the allocation and never a
//! fault of a store through the map. The lock file keeps other processes from opening the same
//! files; what is left is a user who truncates a mapped file by hand, against which no mapping is
//! safe.
//!
//! Memory that several processes write at will is another type, which hands out words and no slices.
#![expect(unsafe_code, reason = "mapping a file, and atomic access to a word of the map")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapMut, MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};

use crate::pages;

/// A fixed range of bytes that may be backed by a file.
pub(super) struct Map {
    map: MmapMut,
    durable: bool,
    /// How far the pages of a file are ready to be written to.
    ready: usize,
}

/// Pages of a file are made ready so many bytes at a time: one call for 64 of them instead of a fault for each.
const READIED: usize = 256 << 10;

impl Map {
    /// Zeroed memory without a file.
    pub(super) fn anonymous(len: usize) -> io::Result<Self> {
        Ok(Self { map: pages::anonymous(len)?, durable: false, ready: len })
    }

    /// Whether there is a file behind it.
    pub(super) fn is_durable(&self) -> bool {
        self.durable
    }

    /// The whole of a file, whose blocks are already allocated, shared with the page cache.
    pub(super) fn file(file: &File) -> io::Result<Self> {
        // SAFETY: the bytes must not change under the references that this type hands out, and the
        // file must not shrink. The store holds an exclusive lock on the directory, every writer
        // goes through `&mut Map`, and no code of ours truncates a file that is mapped.
        let map = unsafe { MmapMut::map_mut(file)? };
        Ok(Self { map, durable: true, ready: 0 })
    }

    /// The whole of a file, to be looked at: what is written to the map stays in this process.
    pub(super) fn private(file: &File) -> io::Result<Self> {
        // SAFETY: as for `file`: the bytes must not change under the references that this type
        // hands out, and the file must not shrink. Whoever reads a store holds a lock on its
        // directory that excludes openers, and no code of ours truncates a log file.
        let map = unsafe { MmapOptions::new().no_reserve_swap().map_copy(file)? };
        Ok(Self { map, durable: false, ready: usize::MAX })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }

    /// Get ready to write to `from..to`: a hint, without which it only takes longer.
    pub(super) fn prepare(&mut self, from: usize, to: usize) {
        if to > self.ready {
            let start = self.ready.max(from / READIED * READIED);
            let end = to.next_multiple_of(READIED).min(self.map.len());
            #[cfg(target_os = "linux")]
            self.map.advise_range(memmap2::Advice::PopulateWrite, start, end - start).ok();
            self.ready = end;
        }
    }

    /// Forget what was ready: what was put on the disk is to be marked again when it is written.
    pub(super) fn reuse(&mut self) {
        if self.durable {
            self.ready = 0;
        }
    }

    /// Write an aligned word after everything that was written before it: a process that is killed
    /// between the two leaves the earlier bytes, never the word alone.
    pub(super) fn publish(&mut self, offset: usize, word: u64) {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.map.len(), "a word of the map");
        // SAFETY: the address is inside the map (asserted), aligned to 8 (maps start at a page, and
        // the offset is a multiple of 8: asserted), valid for the life of the borrow, and `&mut
        // self` excludes every other access through this map.
        let cell = unsafe { AtomicU64::from_ptr(self.map.as_mut_ptr().add(offset).cast()) };
        cell.store(word.to_le(), Ordering::Release);
    }

    /// Put a range on the disk. Nothing to do without a file.
    pub(super) fn sync(&self, from: usize, to: usize) -> io::Result<()> {
        if self.durable { self.map.flush_range(from, to - from) } else { Ok(()) }
    }
}

/// Memory that other processes may write at any moment: a memory file of fixed size.
///
/// It is never borrowed as plain bytes. Words are loaded and stored one by one, so what others do
/// meanwhile changes values and breaks nothing.
pub struct SharedMap {
    map: MmapRaw,
}

impl SharedMap {
    /// A new memory file of so many words, which can never be made smaller or larger.
    pub fn create(words: usize) -> io::Result<(OwnedFd, Self)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("k15-store", flags)?;
        rustix::fs::ftruncate(&file, words as u64 * 8)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let map = Self::open(&file)?;
        Ok((file, map))
    }

    /// Map a memory file that another process made. One that could be made smaller is refused, and
    /// so is one of huge pages, which may run out: an access to either could be a fatal fault.
    pub fn open(file: &impl AsFd) -> io::Result<Self> {
        const TMPFS: i64 = 0x0102_1994;
        let refused = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        if rustix::fs::fstatfs(file)?.f_type != TMPFS {
            return refused("not a memory file of ordinary pages");
        }
        if !rustix::fs::fcntl_get_seals(file)?.contains(SealFlags::SHRINK) {
            return refused("a memory file that is not sealed against shrinking");
        }
        let size = rustix::fs::fstat(file)?.st_size;
        if size < 8 {
            return refused("an empty memory file");
        }
        Ok(Self { map: MmapOptions::new().map_raw(&file.as_fd())? })
    }

    /// The whole of it.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: the range is inside the map (its length, rounded down), which lives as long as
        // the borrow; maps start at a page, so it is aligned; its pages exist and can be written
        // (the file is sealed against shrinking: checked in `open`, and seals are never taken
        // off), and hold initialised bytes. Others may write them at any moment: atomics allow it.
        unsafe { std::slice::from_raw_parts(self.map.as_mut_ptr().cast(), self.map.len() / 8) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_read_back() {
        let mut map = Map::anonymous(4096).unwrap();
        map.bytes_mut()[0..3].copy_from_slice(b"abc");
        map.publish(64, 0x0102_0304_0506_0708);
        assert_eq!(&map.bytes()[0..3], b"abc");
        assert_eq!(map.bytes()[64..72], 0x0102_0304_0506_0708u64.to_le_bytes());
        map.sync(0, 4096).unwrap();
    }

    #[test]
    fn a_file_keeps_what_its_map_was_given() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let mut map = Map::file(&file).unwrap();
        map.bytes_mut()[10] = 7;
        map.sync(0, 4096).unwrap();
        drop(map);
        assert_eq!(Map::file(&file).unwrap().bytes()[10], 7);
    }

    #[test]
    fn what_is_written_to_a_private_map_stays_out_of_the_file() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let mut map = Map::private(&file).unwrap();
        map.bytes_mut()[10] = 7;
        map.sync(0, 4096).unwrap();
        assert_eq!(Map::file(&file).unwrap().bytes()[10], 0);
    }

    #[test]
    #[should_panic(expected = "a word of the map")]
    fn a_word_outside_the_map_is_refused() {
        Map::anonymous(4096).unwrap().publish(4096, 1);
    }

    // Without a file, so that miri can run it.
    #[test]
    fn words_may_change_while_they_are_read() {
        let map = SharedMap { map: MmapMut::map_anon(4096).unwrap().into() };
        let sum = || map.words().iter().map(|word| word.load(Ordering::Relaxed)).sum::<u64>();
        let write = || map.words().iter().for_each(|word| word.store(1, Ordering::Relaxed));
        std::thread::scope(|scope| {
            let thread = scope.spawn(write);
            assert!(sum() <= 512);
            thread.join().unwrap();
        });
        assert_eq!(sum(), 512);
    }

    #[test]
    fn two_maps_of_a_shared_file_are_the_same_memory() {
        let (file, ours) = SharedMap::create(600).unwrap();
        let theirs = SharedMap::open(&file).unwrap();
        assert_eq!((ours.words().len(), theirs.words().len()), (600, 600));
        theirs.words()[599].store(7, Ordering::Relaxed);
        assert_eq!(ours.words()[599].load(Ordering::Relaxed), 7);
        assert!(rustix::fs::ftruncate(&file, 8).is_err());
    }

    #[test]
    fn shared_files_that_could_fault_are_refused() {
        let ordinary = tempfile::tempfile().unwrap();
        ordinary.set_len(4096).unwrap();
        assert!(SharedMap::open(&ordinary).is_err());
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("test", flags).unwrap();
        rustix::fs::ftruncate(&file, 4096).unwrap();
        let why = SharedMap::open(&file).err().unwrap().to_string();
        assert!(why.contains("not sealed against shrinking"), "{why}");
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::WRITE).unwrap();
        assert!(SharedMap::open(&file).is_err(), "it cannot be written");
        // Where the kernel knows huge pages at all.
        if let Ok(file) = rustix::fs::memfd_create("test", flags | MemfdFlags::HUGETLB) {
            let why = SharedMap::open(&file).err().unwrap().to_string();
            assert!(why.contains("ordinary pages"), "{why}");
        }
    }
}
