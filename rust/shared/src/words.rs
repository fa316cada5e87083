//! How arguments and answers lie in shared memory: 8-byte words, one thing after another.
//!
//! # Design
//!
//! A number is a word; an array is its length and its bytes, filled up to whole words, so that every
//! array is aligned for every type. Both sides are one machine: its byte order. What is to be written
//! is counted first, so that writing never runs out of room.

use std::sync::atomic::{AtomicU64, Ordering};

use bytemuck::{AnyBitPattern, NoUninit};

use crate::error::{Error, Result};

/// Takes words one after another.
pub trait Sink {
    /// One word.
    fn word(&mut self, word: u64);

    /// Bytes, filled up to whole words.
    fn bytes(&mut self, bytes: &[u8]);
}

impl dyn Sink + '_ {
    /// A number or nothing.
    pub fn option(&mut self, value: Option<u64>) {
        self.word(u64::from(value.is_some()));
        self.word(value.unwrap_or(0));
    }

    /// An array.
    pub fn array<T: NoUninit>(&mut self, values: &[T]) {
        self.word(values.len() as u64);
        self.bytes(bytemuck::cast_slice(values));
    }

    /// A text.
    pub fn text(&mut self, text: &str) {
        self.array(text.as_bytes());
    }
}

/// How many words something takes.
#[derive(Default)]
pub struct Counter(pub usize);

impl Sink for Counter {
    fn word(&mut self, _word: u64) {
        self.0 += 1;
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0 += bytes.len().div_ceil(8);
    }
}

/// How many words `write` takes.
pub fn count(write: &dyn Fn(&mut dyn Sink)) -> usize {
    let mut counter = Counter::default();
    write(&mut counter);
    counter.0
}

/// Writes into shared memory. What does not fit is left out: callers count first.
pub struct Writer<'a>(pub &'a [AtomicU64]);

impl Sink for Writer<'_> {
    fn word(&mut self, word: u64) {
        if let Some((cell, rest)) = self.0.split_first() {
            cell.store(word, Ordering::Relaxed);
            self.0 = rest;
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let (cells, rest) = self.0.split_at(bytes.len().div_ceil(8).min(self.0.len()));
        self.0 = rest;
        let (whole, tail) = bytes.as_chunks::<8>();
        for (cell, word) in cells.iter().zip(whole) {
            cell.store(u64::from_ne_bytes(*word), Ordering::Relaxed);
        }
        if let (false, Some(cell)) = (tail.is_empty(), cells.get(whole.len())) {
            let mut word = [0; 8];
            word[..tail.len()].copy_from_slice(tail);
            cell.store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }
    }
}

/// Copies words out of shared memory, where they may change at any moment.
pub fn copy(from: &[AtomicU64], to: &mut Vec<u64>) {
    to.clear();
    to.extend(from.iter().map(|cell| cell.load(Ordering::Relaxed)));
}

/// Reads words that nobody else writes. Takes nothing that it is told for granted.
pub struct Reader<'a>(pub &'a [u64]);

impl<'a> Reader<'a> {
    /// One word.
    pub fn word(&mut self) -> Result<u64> {
        let (word, rest) = self.0.split_first().ok_or(Error::Malformed("a message is cut off"))?;
        self.0 = rest;
        Ok(*word)
    }

    /// A number that is smaller than a word.
    pub fn small<T: TryFrom<u64>>(&mut self) -> Result<T> {
        T::try_from(self.word()?).map_err(|_| Error::Malformed("a number is too large"))
    }

    /// A number or nothing.
    pub fn option(&mut self) -> Result<Option<u64>> {
        let (is_some, value) = (self.word()?, self.word()?);
        Ok((is_some != 0).then_some(value))
    }

    /// An array, in place.
    pub fn array<T: AnyBitPattern>(&mut self) -> Result<&'a [T]> {
        let length = self.small::<usize>()?;
        let bytes = length.checked_mul(size_of::<T>());
        let words = bytes.map(|bytes| bytes.div_ceil(8)).filter(|&words| words <= self.0.len());
        let (words, rest) =
            self.0.split_at(words.ok_or(Error::Malformed("an array is longer than its message"))?);
        self.0 = rest;
        let bytes = &bytemuck::cast_slice::<u64, u8>(words)[..length * size_of::<T>()];
        bytemuck::try_cast_slice(bytes).map_err(|_| Error::Malformed("an array is not aligned"))
    }

    /// A text.
    pub fn text(&mut self) -> Result<&'a str> {
        std::str::from_utf8(self.array()?).map_err(|_| Error::Malformed("a text is not UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(write: &dyn Fn(&mut dyn Sink)) -> Vec<u64> {
        let cells: Vec<AtomicU64> = (0..count(write)).map(|_| AtomicU64::new(u64::MAX)).collect();
        let mut writer = Writer(&cells);
        write(&mut writer);
        assert!(writer.0.is_empty());
        let mut copied = Vec::new();
        copy(&cells, &mut copied);
        copied
    }

    #[test]
    fn what_is_written_is_read() {
        let written = words(&|sink| {
            sink.word(7);
            sink.array(&[1i32, -2, 3]);
            sink.option(None);
            sink.text("zwölf");
            sink.option(Some(9));
            sink.array::<f32>(&[]);
        });
        let mut reader = Reader(&written);
        assert_eq!(reader.word().unwrap(), 7);
        assert_eq!(reader.array::<i32>().unwrap(), [1, -2, 3]);
        assert_eq!(reader.option().unwrap(), None);
        assert_eq!(reader.text().unwrap(), "zwölf");
        assert_eq!(reader.option().unwrap(), Some(9));
        assert!(reader.array::<f32>().unwrap().is_empty());
        assert!(reader.word().is_err());
    }

    #[test]
    fn lengths_are_not_believed() {
        assert!(Reader(&[3, 0]).array::<i64>().is_err());
        assert!(Reader(&[u64::MAX, 0]).array::<i64>().is_err());
        assert!(Reader(&[1 << 61, 0]).array::<i64>().is_err());
        assert!(Reader(&[2, 0xa9c3]).text().is_ok());
        assert!(Reader(&[1, 0x80]).text().is_err());
    }
}
