//! Arrays in whole pages, which large ones are written to past the caches.
//!
//! # Design
//!
//! Pages are huge where the system has such: what is copied is then bound by the memory and not by the
//! translation of its addresses. An ordinary store reads the line that it writes to into the caches first; of an
//! array that is too large to stay there, that is a third of the traffic and more, and it pushes out what
//! others need. So long pieces of large arrays are streamed (non-temporal stores).
#![expect(unsafe_code, reason = "stores past the caches and hints have no safe form")]

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::MmapMut;

/// A store past the caches; miri, which knows none, checks the same addresses with an ordinary one.
#[cfg(all(target_arch = "x86_64", miri))]
use std::arch::x86_64::_mm_store_si128 as store_past;
#[cfg(all(target_arch = "x86_64", not(miri)))]
use std::arch::x86_64::_mm_stream_si128 as store_past;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Shorter pieces are not streamed: their ends share cache lines with their neighbours.
const LEAST_STREAMED: usize = 1 << 10;

/// How far ahead of what is copied into a [streamed](Pages::stream) array memory is fetched. A processor
/// does so by itself, but not beyond a page, and each piece of a batch is a page or two; the pieces of a
/// record of the log lie one behind the other.
const FETCHED_AHEAD: usize = 4 << 10;

/// What is looked at before it is copied goes in pieces that the first cache holds.
const LOOKED_AT: usize = 4 << 10;

/// What is shorter may well be read before it has left the caches.
const LEAST_STREAMED_RECORD: usize = 4 << 10;

/// Zeroed memory without a file.
pub(crate) fn anonymous(bytes: usize) -> io::Result<MmapMut> {
    let map = MmapMut::map_anon(bytes)?;
    // A hint: without it all works the same. miri does not know it.
    #[cfg(all(target_os = "linux", not(miri)))]
    map.advise(memmap2::Advice::HugePage).ok();
    Ok(map)
}

/// An array that can be made longer. While it [streams](Pages::stream) it is only written to.
#[derive(Debug)]
pub(crate) struct Pages<T> {
    map: Option<MmapMut>,
    length: usize,
    streams: bool,
    of: PhantomData<T>,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self { map: None, length: 0, streams: false, of: PhantomData }
    }
}

impl<T: Pod> Pages<T> {
    /// Makes room for at least `length` numbers. If that takes new memory, they are zeros.
    pub(crate) fn make_room(&mut self, length: usize) -> io::Result<()> {
        if length > self.length {
            // By half at least, so that lengths that grow slowly need new memory seldom.
            let length = length.max(self.length + self.length / 2);
            self.map = Some(anonymous(length * size_of::<T>())?);
            self.length = length;
        }
        Ok(())
    }

    /// From now on long pieces go past the caches, until [`Pages::settle`].
    pub(crate) fn stream(&mut self) {
        self.streams = true;
    }

    /// Makes what was streamed visible to everybody.
    pub(crate) fn settle(&mut self) {
        if std::mem::take(&mut self.streams) {
            fence();
        }
    }

    /// Puts numbers at `at`.
    pub(crate) fn put(&mut self, at: usize, piece: &[T]) {
        let streams = self.streams && size_of_val(piece) >= LEAST_STREAMED;
        let to = &mut self.written()[at..at + piece.len()];
        if streams {
            stream::<FETCHED_AHEAD>(bytemuck::cast_slice_mut(to), bytemuck::cast_slice(piece));
        } else {
            to.copy_from_slice(piece);
        }
    }

    /// Puts `count` times the same number at `at`.
    pub(crate) fn put_same(&mut self, at: usize, count: usize, number: T) {
        let streams = self.streams && count * size_of::<T>() >= LEAST_STREAMED;
        let to = &mut self.written()[at..at + count];
        if streams {
            // Of as many numbers as a line has bytes there are at least a line's bytes.
            let numbers = [number; LINE];
            if let Some(line) = bytemuck::cast_slice(&numbers).first_chunk() {
                return stream_same(bytemuck::cast_slice_mut(to), line);
            }
        }
        to.fill(number);
    }

    fn written(&mut self) -> &mut [T] {
        self.map.as_deref_mut().map_or(&mut [], bytemuck::cast_slice_mut)
    }
}

impl<T: Pod> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        debug_assert!(!self.streams, "what was streamed is read before it is settled");
        self.map.as_deref().map_or(&[], bytemuck::cast_slice)
    }
}

impl<T: Pod> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        debug_assert!(!self.streams, "what was streamed is read before it is settled");
        self.written()
    }
}

impl Pages<i32> {
    /// Puts 0, 1, 2, … at `at`.
    pub(crate) fn put_places(&mut self, at: usize, count: usize) {
        let streams = self.streams && count * size_of::<i32>() >= LEAST_STREAMED;
        let to = &mut self.written()[at..at + count];
        if streams { stream_places(to) } else { count_from(0, to) }
    }
}

fn count_from(first: i32, to: &mut [i32]) {
    to.iter_mut().zip(first..).for_each(|(to, number)| *to = number);
}

/// Whether so many bytes are copied past the caches.
pub(crate) fn is_much(bytes: usize) -> bool {
    bytes >= LEAST_STREAMED_RECORD
}

/// Copies parts one behind the other into `to`, which has their length: past the caches if there is much.
pub(crate) fn copy_parts(to: &mut [u8], parts: &[&[u8]]) {
    let mut rest = to;
    let streams = is_much(rest.len());
    for part in parts {
        let (to, behind) = rest.split_at_mut(part.len());
        if streams {
            stream::<0>(to, part)
        } else {
            to.copy_from_slice(part)
        }
        rest = behind;
    }
    if streams {
        fence();
    }
}

/// Copies past the caches, in pieces: `look` is shown each piece of `from` just before it is copied, so
/// that memory is read once for both. Both are of one length.
pub(crate) fn copy_looking(to: &mut [u8], from: &[u8], mut look: impl FnMut(&[u8])) {
    for (to, from) in to.chunks_mut(LOOKED_AT).zip(from.chunks(LOOKED_AT)) {
        look(from);
        stream::<0>(to, from);
    }
    fence();
}

/// Has numbers fetched into the second cache: a hint, for what will be read soon. A processor does so by
/// itself, but not beyond a page.
#[inline(always)]
#[cfg_attr(
    any(miri, not(target_arch = "x86_64")),
    expect(unused_variables, reason = "no such hint")
)]
pub(crate) fn fetch(numbers: &[f32]) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    for line in numbers.as_chunks::<{ LINE / size_of::<f32>() }>().0 {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint, which reads nothing: any address will do.
        unsafe { _mm_prefetch(line.as_ptr().cast(), _MM_HINT_T1) };
    }
}

/// Has the line that something begins in fetched into the first cache: a hint, for what is read at once.
#[inline(always)]
#[cfg_attr(
    any(miri, not(target_arch = "x86_64")),
    expect(unused_variables, reason = "no such hint")
)]
pub(crate) fn fetch_line<T>(first: &T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which reads nothing: any address will do.
        unsafe { _mm_prefetch(std::ptr::from_ref(first).cast(), _MM_HINT_T0) };
    }
}

/// Copies past the caches, whole cache lines of `to` at a time; both are of one length. What lies AHEAD
/// bytes behind what is read is fetched meanwhile, whatever it is.
#[cfg(target_arch = "x86_64")]
fn stream<const AHEAD: usize>(to: &mut [u8], from: &[u8]) {
    use std::arch::x86_64::{__m128i, _MM_HINT_T0, _mm_loadu_si128, _mm_prefetch};
    const WIDTH: usize = size_of::<__m128i>();
    let head = to.as_ptr().align_offset(LINE).min(to.len());
    let (to_head, to) = to.split_at_mut(head);
    let (from_head, from) = from.split_at(head);
    to_head.copy_from_slice(from_head);
    let (to, to_tail) = to.as_chunks_mut::<LINE>();
    let (from, from_tail) = from.as_chunks::<LINE>();
    for (to, from) in to.iter_mut().zip(from) {
        if AHEAD > 0 {
            let later = from.as_ptr().wrapping_add(AHEAD);
            // SAFETY: a hint, which reads nothing: any address will do.
            unsafe { _mm_prefetch(later.cast(), _MM_HINT_T0) };
        }
        for at in (0..LINE).step_by(WIDTH) {
            // SAFETY: `at + WIDTH <= LINE`, so both addresses are those of WIDTH bytes inside arrays of LINE
            // bytes, one ours to read, one ours to write. `to` is aligned to WIDTH: the head ends at a line,
            // and chunks are lines. SSE2 is part of x86-64. Nobody reads what is written before the
            // fence of `Pages::settle`.
            unsafe {
                let piece = _mm_loadu_si128(from.as_ptr().add(at).cast());
                store_past(to.as_mut_ptr().add(at).cast(), piece);
            }
        }
    }
    to_tail.copy_from_slice(from_tail);
}

#[cfg(not(target_arch = "x86_64"))]
fn stream<const AHEAD: usize>(to: &mut [u8], from: &[u8]) {
    to.copy_from_slice(from);
}

/// Puts `line` past the caches again and again. `to` begins, and a line of it too, where one of the numbers
/// does of which the line is made, all the same.
#[cfg(target_arch = "x86_64")]
fn stream_same(to: &mut [u8], line: &[u8; LINE]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128};
    let head = to.as_ptr().align_offset(LINE).min(to.len());
    let (to_head, to) = to.split_at_mut(head);
    to_head.copy_from_slice(&line[..head]);
    let (to, to_tail) = to.as_chunks_mut::<LINE>();
    for to in to {
        for at in (0..LINE).step_by(size_of::<__m128i>()) {
            // SAFETY: as in `stream`: both addresses are those of 16 bytes inside arrays of LINE bytes, `to` is
            // aligned to lines, and nobody reads it before the fence.
            unsafe {
                let piece = _mm_loadu_si128(line.as_ptr().add(at).cast());
                store_past(to.as_mut_ptr().add(at).cast(), piece);
            }
        }
    }
    to_tail.copy_from_slice(&line[..to_tail.len()]);
}

#[cfg(not(target_arch = "x86_64"))]
fn stream_same(to: &mut [u8], line: &[u8; LINE]) {
    for to in to.chunks_mut(LINE) {
        to.copy_from_slice(&line[..to.len()]);
    }
}

/// Puts 0, 1, 2, … past the caches.
#[cfg(target_arch = "x86_64")]
fn stream_places(to: &mut [i32]) {
    use std::arch::x86_64::{__m128i, _mm_add_epi32, _mm_set1_epi32, _mm_setr_epi32};
    let head = to.as_ptr().align_offset(LINE).min(to.len());
    let (to_head, to) = to.split_at_mut(head);
    count_from(0, to_head);
    let (to, to_tail) = to.as_chunks_mut::<{ LINE / size_of::<i32>() }>();
    let mut next = to_head.last().map_or(0, |last| last + 1);
    for to in to {
        for (to, at) in to.as_chunks_mut::<4>().0.iter_mut().zip((next..).step_by(4)) {
            // SAFETY: `to` is 16 bytes of ours to write, aligned to 16: the head ends at a line, and lines are cut
            // into fours. Nobody reads them before the fence of `Pages::settle`. SSE2 is part of x86-64.
            unsafe {
                let four = _mm_add_epi32(_mm_set1_epi32(at), _mm_setr_epi32(0, 1, 2, 3));
                store_past(to.as_mut_ptr().cast::<__m128i>(), four);
            }
        }
        next += 16;
    }
    count_from(next, to_tail);
}

#[cfg(not(target_arch = "x86_64"))]
fn stream_places(to: &mut [i32]) {
    count_from(0, to);
}

fn fence() {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: it has no conditions; SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_by_half_at_least_and_is_zeroed() {
        let mut pages = Pages::<i32>::default();
        assert_eq!(pages.len(), 0);
        pages.make_room(1000).unwrap();
        pages.fill(7);
        pages.make_room(10).unwrap();
        assert_eq!(*pages, [7; 1000]);
        pages.make_room(1001).unwrap();
        assert_eq!(*pages, [0; 1500]);
    }

    #[test]
    fn what_is_streamed_is_what_was_put() {
        let numbers: Vec<u8> = (0..20_000u32).map(|i| (i * 7 % 251) as u8).collect();
        for (at, length) in [(0, 20_000), (1, 1024), (15, 1040), (16, 1023), (17, 5000), (3, 0)] {
            let mut pages = Pages::<u8>::default();
            pages.make_room(30_000).unwrap();
            pages.stream();
            pages.put(at, &numbers[..length]);
            pages.put_same(at + length, 9000, 5);
            pages.settle();
            let mut wanted = vec![0; pages.len()];
            wanted[at..at + length].copy_from_slice(&numbers[..length]);
            wanted[at + length..at + length + 9000].fill(5);
            assert_eq!(*pages, wanted, "{length} at {at}");
        }
    }

    #[test]
    fn the_same_number_is_whole_wherever_it_begins() {
        for (at, count) in [(0, 1000), (1, 256), (3, 259), (17, 4099), (2, 255), (5, 0)] {
            let mut pages = Pages::<u32>::default();
            pages.make_room(5000).unwrap();
            pages.stream();
            pages.put_same(at, count, 0x0102_0304);
            pages.settle();
            let mut wanted = vec![0; pages.len()];
            wanted[at..at + count].fill(0x0102_0304);
            assert_eq!(*pages, wanted, "{count} from {at}");
        }
    }

    #[test]
    fn places_are_counted_wherever_they_begin() {
        for (at, count) in [(0, 1000), (1, 256), (3, 259), (17, 4099), (2, 255), (5, 0), (0, 272)] {
            let mut pages = Pages::<i32>::default();
            pages.make_room(5000).unwrap();
            pages.stream();
            pages.put_places(at, count);
            pages.settle();
            let mut wanted = vec![0; pages.len()];
            count_from(0, &mut wanted[at..at + count]);
            assert_eq!(wanted[at..at + count].last(), (0..).take(count).last().as_ref());
            assert_eq!(*pages, wanted, "{count} from {at}");
        }
    }

    #[test]
    #[should_panic(expected = "before it is settled")]
    fn what_is_not_settled_is_not_read() {
        let mut pages = Pages::<u8>::default();
        pages.stream();
        let _ = pages.len();
    }
}
